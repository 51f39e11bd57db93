"""A small Hugging Face hub on this machine: what `huggingface_hub` asks of the real one to upload and to download."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN, READ_ONLY = "hf_fake_token", "hf_read_only"


class Hub:
    """Repositories by name: whether private, and branch -> commits, each of files by name."""

    def __init__(self):
        self.repositories, self.asked, self.break_after = {}, [], None

    def add(self, name, files, private=False):
        self.repositories[name] = {"private": private, "branches": {"main": [{}]}}
        self.commit(name, "main", files)

    def commit(self, name, branch, files):
        commits = self.repositories[name]["branches"][branch]
        commits.append(commits[-1] | files)
        return sha(commits[-1])

    def files(self, name, revision):
        """The files of a branch or commit; None where there is none."""
        branches = self.repositories[name]["branches"]
        if revision in branches:
            return branches[revision][-1]
        return next((files for commits in branches.values() for files in commits if sha(files) == revision), None)


def sha(files):
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.hub.break_after
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None and len(body) > cut:
                self.close_connection = True

    def refuse(self, status, code, words):
        self.answer(status, {"error": words}, **{"X-Error-Code": code, "X-Error-Message": words})

    @property
    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def repository(self, name):
        """The repository, if whoever asks may see it; else it is refused, as one that is not there."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository["private"] and self.token not in (TOKEN, READ_ONLY)):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self.seen(match[1], match[2])
            if files is not None:
                self.answer(200, [{"type": "file", "path": p, "size": len(c), "oid": oid(c)} for p, c in files.items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(match[1], match[2], match[3])
        else:
            self.refuse(404, "", "nothing here")

    def seen(self, name, revision):
        if self.repository(name) is None:
            return None
        files = self.hub.files(name, revision)
        if files is None:
            self.refuse(404, "RevisionNotFound", "no such revision")
        return files

    def info(self, name, revision):
        files = self.seen(name, revision)
        if files is not None:
            content = {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": sha(files),
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            content |= {"private": self.hub.repositories[name]["private"]}
            self.answer(200, content | {"siblings": [{"rfilename": path} for path in files]})

    def resolve(self, name, revision, path):
        files = self.seen(name, revision)
        if files is None:
            return
        if path not in files:
            self.refuse(404, "EntryNotFound", "no such file")
            return
        content = files[path]
        headers = {"ETag": f'"{oid(content)}"', "X-Repo-Commit": sha(files), "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], Content_Range=span, **headers)
        else:
            self.answer(200, content, **headers)

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.token != TOKEN:
            known = self.token == READ_ONLY
            self.refuse(403 if known else 401, "", "You may not write" if known else "Invalid token")
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|branch|commit)/(.+)", path):
            if self.repository(match[1]) is not None:
                getattr(self, match[2])(match[1], match[3], body)
        else:
            self.refuse(404, "", "nothing here")

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self.answer(409, {"url": f"http://{self.headers['Host']}/{name}"})
            return
        # Older versions of the library say it in the first way.
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.add(name, {}, private=private)
        self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})

    def branch(self, name, branch, _):
        branches = self.hub.repositories[name]["branches"]
        known = branch in branches
        branches.setdefault(branch, [*branches["main"]])
        self.answer(409 if known else 200, {"error": "there already"} if known else {})

    def preupload(self, name, revision, body):
        files = json.loads(body)["files"]
        modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
        self.answer(200, {"files": modes})

    def commit(self, name, revision, body):
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        number = self.hub.commit(name, revision, files)
        self.answer(
            200,
            {
                "success": True,
                "commitOid": number,
                "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{number}",
            },
        )


def oid(content):
    """As git names a file's content."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextlib.contextmanager
def served():
    """A hub, and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
