"""Wheel and sdist of the commit that is checked out, equal to the byte wherever they are built: `make release`.

They are built from `git archive` by the setuptools of requirements/, with the commit's time in place of the clock's,
twice, in two folders; exits with 1 where the two differ. Prints the SHA-256 of each file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_wheel(to); b.build_sdist(to)"


def git(*words: str) -> bytes:
    """What git says."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


def plain(archive: Path, seconds: int) -> None:
    """Write a .tar.gz again without what depends on the machine: order, owners, times."""
    with tarfile.open(archive) as given:
        members = [(member, given.extractfile(member)) for member in given.getmembers()]
        contents = [(member, b"" if file is None else file.read()) for member, file in members]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as written:
        for member, content in sorted(contents, key=lambda each: each[0].name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = seconds, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() else 0o644, {}
            written.addfile(member, io.BytesIO(content) if member.isfile() else None)
    archive.write_bytes(gzip.compress(packed.getvalue(), mtime=seconds))


def build(output: Path) -> dict[str, str]:
    """Build both into a folder; digest by name."""
    seconds = int(git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as source:
        with tarfile.open(fileobj=io.BytesIO(git("archive", "HEAD"))) as archive:
            archive.extractall(source, filter="data")
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(seconds), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-c", BUILD, str(output)]
        subprocess.run(command, cwd=source, env=environment, umask=0o022, check=True, stdout=subprocess.DEVNULL)
    for archive in output.glob("*.tar.gz"):
        plain(archive, seconds)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.iterdir())}


def main() -> None:
    """Build, build again, compare."""
    output = ROOT / "dist"
    output.mkdir(exist_ok=True)
    for old in output.iterdir():
        old.unlink()
    first = build(output)
    with tempfile.TemporaryDirectory() as folder:
        second = build(Path(folder))
    for name, digest in first.items():
        print(f"{digest}  {name}")
    if first != second:
        sys.exit("release: two builds differ")


if __name__ == "__main__":
    main()
