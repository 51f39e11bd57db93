"""The site that `make docs` builds: README.md is its first page, and links to files that are no pages become words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# [words](target) of this repository: neither another site nor a place on the same page.
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """README.md as the first page, its links as seen from docs/."""
    text = LINK.sub(from_the_root, (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=text))
    return files


def from_the_root(link: re.Match[str]) -> str:
    """A link of README.md as a page in docs/ has it."""
    mark, words, target = link.groups()
    inside = target.startswith("docs/")
    return f"{mark}[{words}]({target.removeprefix('docs/') if inside else f'../{target}'})"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The words of links to what is no page: code, notebooks, licences."""
    return LINK.sub(lambda link: link[2] if link[3].startswith("../") else link[0], markdown)
