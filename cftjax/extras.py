"""Packages that only some of the work needs: the extra that brings them, and the command that installs it."""

from __future__ import annotations

import importlib.metadata
import re
import shlex


def install(extra: str) -> str:
    """The command that installs what an extra brings, wherever cftjax itself came from: a clone, a wheel or an index.

    Args:
        extra: as pyproject.toml names it, such as `onnx`.
    """
    try:
        required = importlib.metadata.requires("cftjax") or []
    except importlib.metadata.PackageNotFoundError:
        return f"pip install -e '.[{extra}]' in the folder of cftjax"
    marked = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    packages = [requirement.partition(";")[0].strip() for requirement in required if marked.search(requirement)]
    return f"pip install {shlex.join(packages)}" if packages else f"pip install 'cftjax[{extra}]'"
