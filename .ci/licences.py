"""The licences of every pinned package: `python .ci/licences.py`, or `make licences`, writes docs/licences.md.

Reads what the installed packages say of themselves; a pinned one that is not installed, such as one for another
system, is listed as such. Exits with 1 where a licence is not among those that a user of this library can live with.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK, OUTPUT = ROOT / "requirements" / "test.txt", ROOT / "docs" / "licences.md"
# What binds who passes a program on to more than a notice.
BINDING = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)
HEAD = """# Licences of what is installed
What `make test` installs, by what each package says of itself (`make licences`). This library is under the licence in
[LICENSE](../LICENSE); it ships none of these.

| package | version | licence |
| --- | --- | --- |
"""


def pinned(lock: Path) -> dict[str, str]:
    """Version by name."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(), flags=re.MULTILINE))


def licence(name: str) -> str | None:
    """In the package's own words, the shortest that it has; None where it is not installed."""
    try:
        told = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    classifiers = [text.split(" :: ")[-1] for text in told.get_all("Classifier") or [] if text.startswith("License ::")]
    for text in (told.get("License-Expression"), ", ".join(classifiers), told.get("License")):
        if text and text not in ("UNKNOWN", "OSI Approved"):
            return text.strip().splitlines()[0]
    return "says none"


def main() -> None:
    """Write the list."""
    lines, binding, silent = [], [], []
    for name, version in sorted(pinned(LOCK).items()):
        text = licence(name)
        lines.append(f"| {name} | {version} | {text or 'not installed on this system'} |\n")
        if text and BINDING.search(text.replace("LGPL", "")):
            binding.append(f"{name} ({text})")
        if text == "says none":
            silent.append(name)
    OUTPUT.write_text(HEAD + "".join(lines))
    print(
        f"licences: {len(lines)} packages in {OUTPUT.relative_to(ROOT)}; binding: {', '.join(binding) or 'none'}; ",
        end="",
    )
    print(f"without a licence of their own: {', '.join(silent) or 'none'}")
    sys.exit(bool(binding))


if __name__ == "__main__":
    main()
