"""Ask pip-audit for known vulnerabilities of every pinned version: `python .ci/audit.py`, or `make audit`.

Exits with 0 where there are none, 1 where there are some, 2 where advisories cannot be had, which it says. pip-audit
itself lives in an environment of its own, so that it adds nothing to what is audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements" / "test.txt"
# A network that drops packets must not hold up CI.
SECONDS = 60


def report(lock: Path, folder: Path) -> list[dict]:
    """What pip-audit says of each pinned package.

    Raises:
        OSError: where it cannot be installed, or cannot ask.
    """
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    audit = ["-m", "pip_audit", "--require-hashes", "--disable-pip", "--format", "json", "--requirement", str(lock)]
    try:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "pip-audit"], check=True, timeout=SECONDS)
        done = subprocess.run([python, *audit], capture_output=True, text=True, timeout=SECONDS)
        return json.loads(done.stdout)["dependencies"]
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    except ValueError as error:
        raise OSError(done.stderr.strip().splitlines()[-1:]) from error


def main() -> None:
    """Print what is known."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = report(LOCK, Path(folder))
    except OSError as error:
        print(f"audit: not done, since advisories cannot be had here ({error})")
        sys.exit(2)
    asked = [package for package in found if "vulns" in package]
    for package in asked:
        for one in package["vulns"]:
            mend = f"fixed in {', '.join(one['fix_versions'])}" if one["fix_versions"] else "no fix yet"
            print(f"audit: {package['name']} {package['version']} has {one['id']} ({mend})")
    count = sum(len(package["vulns"]) for package in asked)
    unknown = len(found) - len(asked)
    if not asked:
        print("audit: not done, since the package index that is reached from here has no advisories")
        sys.exit(2)
    print(f"audit: {len(asked)} packages, {count} known vulnerabilities; {unknown} more that the index does not know")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
