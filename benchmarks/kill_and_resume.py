"""SIGKILL a run in each stage, start it again, and compare with a run that nobody touched.

    python benchmarks/kill_and_resume.py [options of cftjax.train]

Every run is a process of its own, killed as soon as the folder shows that the stage is under way. Prints a line per
stage; exits with 1 where a score differs in a single bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Stage -> the file whose appearance says that it is under way.
UNDER_WAY = {
    "backbone": "backbone/state/*",
    "embeddings": "embeddings/train/stage.json",
    "search": "heads/ga/categories/*-done.npz",
    "polish": "heads/polish/categories/*.npz",
    "report": "report/stage.json",
}


def start(workdir: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """The training command as a process of its own."""
    command = [sys.executable, "-m", "cftjax.train", "--workdir", str(workdir), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait, and stop with what it said if it failed."""
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"a run failed: {said.decode()[-2000:]}")


def scores(workdir: Path) -> str:
    """All scores of a run, as text."""
    metrics = json.loads((workdir / "report" / "metrics.json").read_text())
    return json.dumps({key: value for key, value in metrics.items() if key != "seconds"}, sort_keys=True)


def main() -> None:
    """Compare."""
    options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(start(whole, options))
        for stage, pattern in UNDER_WAY.items():
            process = start(killed, options)
            while process.poll() is None and not any(killed.glob(pattern)):
                time.sleep(0.02)
            if process.poll() is not None:
                sys.exit(f"the run ended before {stage} could be killed: {(process.stderr or sys.stdin).read()!r}")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed in {stage}", flush=True)
        finish(start(killed, options))
        same = scores(killed) == scores(whole)
        print("scores after five kills:", "equal to the bit" if same else "DIFFERENT")
        sys.exit(not same)


if __name__ == "__main__":
    main()
