"""Fill the disk in each stage of a run, see what the command says, make room, and compare with an undisturbed run.

    sudo python benchmarks/full_disk.py [--size 200] [options of cftjax.train]

The run lies on a small disk in memory (Linux, root), of which a file takes all that is left as soon as a stage is under
way. The command must stop with exit code 1 and one line that names a file of the run and the mend; when there is room,
the same command goes on, and all that the run holds must be equal to the bit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from kill_and_resume import PATIENCE, Hosts, complete, leftovers, outcome, wait_for

from cftjax.runs import Run

MB = 2**20


def fill(disk: Path) -> Path:
    """A file that takes all space left."""
    with (disk / "filler").open("wb") as file:
        for size in (MB, 4096, 1):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                continue
    return disk / "filler"


def main() -> None:
    """Fill and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=200, help="of the disk, MB")
    given, options = parser.parse_known_args()
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    with tempfile.TemporaryDirectory() as folder:
        whole, disk, log = Path(folder) / "whole" / "run", Path(folder) / "disk", Path(folder) / "said.log"
        disk.mkdir()
        process = Hosts(whole, options, log, 1)
        if any(process.wait(PATIENCE)):
            sys.exit(process.said()[-2000:])
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={given.size}m", "tmpfs", str(disk)], check=True)
        try:
            wrong = all_stages(disk / "run", list(Run(whole).seconds()), options, log)
            found, expected = outcome(disk / "run"), outcome(whole)
            different = [n for n in sorted(found.keys() | expected.keys()) if found.get(n) != expected.get(n)]
            left = leftovers(disk / "run")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    print(f"different: {', '.join(different) or 'nothing'}; left over: {', '.join(left) or 'nothing'}")
    sys.exit(bool(wrong or different or left))


def all_stages(workdir: Path, stages: list[str], options: list[str], log: Path) -> int:
    """Fill the disk once in every stage, then let the run end; how often the command did not do as it should."""
    wrong = 0
    for stage in stages:
        if complete(workdir / stage / "stage.json"):
            continue
        began = time.time()
        process = Hosts(workdir, options, log, 1)
        wait_for(process, workdir / stage / "stage.json", began)
        filler = fill(workdir.parent)
        (code,) = process.wait(PATIENCE)
        said = [line for line in process.said().splitlines() if line.startswith("cftjax: error:")]
        filler.unlink()
        if not code:
            print(f"{stage}: was done before the disk was full")
            continue
        good = code == 1 and len(said) == 1 and str(workdir) in said[0] and "Make room" in said[0]
        wrong += not good
        print(f"{stage}: exit code {code}: {' '.join(said).replace(str(workdir), 'RUN') or process.said()[-3000:]}")
    process = Hosts(workdir, options, log, 1)
    if any(process.wait(PATIENCE)):
        print(f"did not go on: {process.said()[-3000:]}")
        wrong += 1
    return wrong


if __name__ == "__main__":
    main()
