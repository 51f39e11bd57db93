"""The project on a GPU in one command: what it computes is right, and how fast it is beside the card's floor.

    python benchmarks/on_gpu.py                          # every part, in under nine minutes
    python benchmarks/on_gpu.py --parts search default_run --seconds 200
    python benchmarks/on_gpu.py --small                  # a dry run anywhere: every part at tiny size

Every part is a process of its own with a limit of its own, most telling first, as many at once as `--at-once` says.
They compile side by side and take turns at the card where they time something (card/notes.py). What a part has found
is on disk and printed at once, so that one that is cut off, or ends the process as a compiler can, loses only its end.
OUT/results.json holds everything, OUT/log.txt what the parts printed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent


class Part(NamedTuple):
    """A process.

    Attributes:
        run: what it does.
        limit: its seconds at most, waiting for its turns included.
        needs: a package that it is left out without.
        paused: whether the timing of others may stop it.
    """

    run: Callable[[], None]
    limit: float
    needs: str = "jax"
    paused: bool = True


def parts() -> dict[str, Part]:
    """All of them, most telling first."""
    from card import exactness, machine, networks, rivals, runs, searching

    step = {name: Part(functools.partial(networks.network, name), 240) for name in networks.NETWORKS}
    first = next(iter(step))
    variants = (f"{first}+convolutions", "vit_base+xla")
    others = {
        name: Part(functools.partial(networks.network, name), 200)
        for name in variants
        if name.partition("+")[0] in networks.NETWORKS
    }
    return {
        "versions": Part(machine.versions, 60),
        "default_run": Part(runs.default_run, 240, paused=False),
        "peak": Part(machine.peak, 120),
        "pieces": Part(searching.pieces, 180),
        "search": Part(searching.search, 240),
        first: step.pop(first),
        "fine_tuning": Part(searching.fine_tuning, 300),
        **others,
        **step,
        "mlcpl": Part(rivals.mlcpl, 90, needs="mlcpl"),
        "metrics": Part(exactness.metrics, 120),
        "tests": Part(runs.tests, 300, needs="xdist"),
        "torch": Part(rivals.torch_networks, 150, needs="torchvision"),
        "torch_compiled": Part(rivals.torch_compiled, 150, needs="torchvision"),
    }


def main() -> None:
    """Run the parts that there is time for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", help="only these, in this order")
    parser.add_argument("--without", nargs="+", default=[], help="all but these")
    parser.add_argument("--seconds", type=float, default=530, help="for all of it")
    parser.add_argument("--at-once", type=int, help="parts side by side; by the cores if not said")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "on_gpu")), help="a folder for results")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on whatever device there is")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.small:
        os.environ["ON_GPU_SMALL"] = "1"
    os.environ.setdefault("ON_GPU_WORK", str(given.out.resolve() / "work"))
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    known = parts()
    names = [name for name in given.parts or known if name not in given.without]
    if unknown := sorted({*names, *given.without} - set(known)):
        parser.error(f"there is no part {unknown[0]}: there are {', '.join(known)}")
    if given.part:
        known[given.part].run()
        return
    at_once = given.at_once or max(1, (os.cpu_count() or 1) // 2)
    failed = Driver(known, given.out, time.perf_counter() + given.seconds).run(names, at_once)
    print(f"== written to {given.out}/results.json, log.txt", flush=True)
    # A dry run is a test; on a card a part that fails is a finding.
    if given.small and failed:
        sys.exit(f"failed: {', '.join(failed)}")


class Driver:
    """Runs parts, and writes what they find."""

    def __init__(self, known: dict[str, Part], out: Path, end: float) -> None:
        """Begin with an empty working folder; `end` by time.perf_counter()."""
        from card import notes

        self.known, self.out, self.end, self.notes = known, out, end, notes
        shutil.rmtree(notes.WORK, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        notes.WORK.mkdir(parents=True, exist_ok=True)
        if groups := os.environ.get("ON_GPU_PAUSABLE"):
            for group in groups.split():
                notes.pausable(int(group))
        self.results: dict[str, Any] = {"commit": commit(), "parts": {}}
        self.lock = threading.Lock()

    def run(self, names: list[str], at_once: int) -> list[str]:
        """All parts; the names of those that failed or found something that did."""
        with (self.out / "log.txt").open("w") as log, futures.ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda name: self.part(name, log), names))
        return [
            name
            for name, result in self.results["parts"].items()
            if result["exit"] not in (0, None) or any("FAILED" in key for key in result["found"])
        ]

    def part(self, name: str, log: Any) -> None:
        """One part as a process, stopped at its limit or when time is up."""
        part, left = self.known[name], self.end - time.perf_counter()
        if left < 10 or importlib.util.find_spec(part.needs) is None:
            self.keep(name, {"exit": None, "why": "no time left" if left < 10 else f"no {part.needs}", "found": {}})
            return
        limit, begun = min(part.limit, left), time.perf_counter()
        command = [sys.executable, str(FOLDER / "on_gpu.py"), "--part", name, "--out", str(self.out)]
        environment = {"ON_GPU_PART": name, "PYTHONUNBUFFERED": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        process = subprocess.Popen(
            [*command, *(["--small"] if self.notes.SMALL or os.environ.get("ON_GPU_SMALL") else [])],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        if part.paused:
            self.notes.pausable(process.pid)
        timer = threading.Timer(limit, functools.partial(os.killpg, process.pid, signal.SIGKILL))
        timer.start()
        for line in process.stdout or ():
            with self.lock:
                log.write(line)
                log.flush()
            if line.startswith("[") or "Error" in line:
                print(line.rstrip()[:400], flush=True)
        code, seconds = process.wait(), time.perf_counter() - begun
        timer.cancel()
        # One that was killed in its turn has left the others standing.
        self.notes.send(signal.SIGCONT)
        self.keep(name, {"exit": code, "seconds": seconds, "found": self.notes.noted_by(name)})
        print(f"== {name}: exit {code}, {seconds:.0f} s{' (cut off)' * (seconds >= limit)}", flush=True)

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Write all results so far."""
        with self.lock:
            self.results["parts"][name] = result
            (self.out / "results.json").write_text(json.dumps(self.results, indent=1, default=float))


def commit() -> str:
    """Of the repository, as far as git knows."""
    asked = subprocess.run(["git", "-C", str(FOLDER), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or os.environ.get("ON_GPU_COMMIT", "")


if __name__ == "__main__":
    main()
