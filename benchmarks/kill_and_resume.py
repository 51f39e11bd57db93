"""Kill a run at random moments of every stage, go on with it, and compare with a run that nobody touched.

    python benchmarks/kill_and_resume.py --kills 200 --folder FOLDER [--hosts 2] [options of cftjax.train]

Every process gets SIGKILL, SIGTERM or Ctrl-C at a moment drawn from the time that a stage takes (or that it takes to
start); long and near stages are drawn more often. A run that ends is compared with the
whole one file by file: heads, embeddings, weights, scores, tables, figures; only the seconds spent may differ. Then the
next one is begun, until there were as many kills as asked for. The folder keeps the whole run and the ledger, so that
the same command goes on. Exits with 1 where anything differed, a temporary file was left, or a signal was not obeyed.

With several hosts, processes of this machine with a device each, one of them gets SIGKILL, and the others must end by
themselves.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from cftjax.runs import Run
from cftjax.runtime import checkpoints, digests, storage

# A signal -> how often it is drawn.
SIGNALS = {signal.SIGKILL: 0.5, signal.SIGTERM: 0.35, signal.SIGINT: 0.15}
STARTING = "starting"
# Of all kills, those that meet a process that starts; it takes about so many seconds.
STARTING_SHARE, STARTING_SECONDS = 0.04, 5.0
# Longer than any stage of a run that this is used for.
PATIENCE = 3600.0
CHECKPOINTS = ("backbone/best", "backbone/state")
TIMED = ("seconds", digests.SEAL, "digests")
# A host that is left alone ends by itself before that.
ALONE_SECONDS = 90.0
# What only says how long it took.
SECONDS = {"table.txt": re.compile(rb"Seconds: .*", re.S), "index.html": re.compile(rb"<h3>Time</h3>.*?</table>", re.S)}


class Hosts:
    """The training command as processes of their own, one a host."""

    def __init__(self, workdir: Path, options: list[str], log: Path, number: int) -> None:
        """Start all of them."""
        command = [sys.executable, "-m", "cftjax.train", "--workdir", str(workdir), *options]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs = [log.with_suffix(f".{i}.log") for i in range(number)]
        for i, own in enumerate(self.logs):
            place = ["--coordinator", address, "--num-processes", str(number), "--process-id", str(i)]
            environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
            with own.open("wb") as said:
                words = command if number == 1 else [*command, *place]
                own_environment = None if number == 1 else environment
                process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, env=own_environment)
            self.processes.append(process)

    def ended(self) -> bool:
        """Whether all have."""
        return all(process.poll() is not None for process in self.processes)

    def wait(self, seconds: float) -> list[int]:
        """The exit codes of all.

        Raises:
            subprocess.TimeoutExpired: where one has not ended in time.
        """
        until = time.monotonic() + seconds
        return [process.wait(max(until - time.monotonic(), 0.0)) for process in self.processes]

    def said(self) -> str:
        """The words of all."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that a finished run holds but for seconds, and what it only needs to go on: name -> bytes."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or "/categories" in name or name.startswith(CHECKPOINTS):
            continue
        if path.name in (digests.LOCK, digests.RECORD):
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            stored = storage.read_json(path)
            # With the seconds, the digests of what names them differ.
            timed = isinstance(stored, dict) and "seconds" in stored
            content = json.dumps({k: v for k, v in stored.items() if k not in TIMED} if timed else stored).encode()
        found[name] = SECONDS[path.name].sub(b"", content) if path.name in SECONDS else content
    for kind in CHECKPOINTS:
        last = checkpoints.steps(folder / kind)[-1]
        leaves, _ = jax.tree.flatten_with_path(checkpoints.restore(folder / kind, last, like(folder / kind, last)))
        for place, leaf in leaves:
            found[f"{kind}/{last}{jax.tree_util.keystr(place)}"] = np.asarray(leaf).tobytes()
    return found


def like(folder: Path, step: int) -> Any:
    """What a checkpoint holds, to be read onto one device whichever had it."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = ocp.metadata(str((folder / str(step)).absolute())).metadata
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), stored)


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders in a run."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [n for n in names if n.endswith((storage.PART, checkpoints.REPLACED)) or "orbax-checkpoint-tmp" in n]


def complete(record: Path) -> bool:
    """Whether a stage is done."""
    return record.is_file() and storage.read_json(record)["complete"]


def wait_for(process: Hosts, record: Path, began: float) -> None:
    """Wait until the processes, started at that time, have begun a stage or have ended."""
    wrote = 0.0
    while not process.ended() and wrote < began and time.time() - began < PATIENCE:
        time.sleep(0.005)
        with contextlib.suppress(FileNotFoundError):
            wrote = record.stat().st_mtime


def kill_once(
    workdir: Path, options: list[str], seconds: dict[str, float], rng: np.random.Generator, log: Path, number: int
) -> dict[str, Any]:
    """One process, or one of several hosts: killed somewhere, or ended before; what happened."""
    kind = signal.SIGKILL if number > 1 else rng.choice([int(s) for s in SIGNALS], p=list(SIGNALS.values()))
    remaining = [stage for stage in seconds if not complete(workdir / stage / "stage.json")]
    target = STARTING
    if not remaining:
        return let_end(workdir, options, log, number)
    if rng.random() > STARTING_SHARE:
        # Long stages and near ones more often, so that a run meets several kills, not all in the same stage.
        weights = [max(seconds[stage], 0.1) ** 0.5 * 0.6**i for i, stage in enumerate(remaining)]
        target = str(rng.choice(remaining, p=np.divide(weights, sum(weights))))
    began = time.time()
    process = Hosts(workdir, options, log, number)
    if target != STARTING:
        wait_for(process, workdir / target / "stage.json", began)
    delay = rng.uniform(0, STARTING_SECONDS if target == STARTING else seconds[target])
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    config = workdir / "config.json"
    opened = config.is_file() and config.stat().st_mtime >= began
    remaining = [stage for stage in seconds if not complete(workdir / stage / "stage.json")]
    met = (remaining[0] if remaining else "ending") if opened else STARTING
    asked, killed = time.monotonic(), int(rng.integers(number))
    process.processes[killed].send_signal(int(kind))
    try:
        codes = process.wait(ALONE_SECONDS if number > 1 else PATIENCE)
    except subprocess.TimeoutExpired:
        codes = [each.kill() or each.wait() for each in process.processes]
        return {"stage": met, "signal": signal.Signals(kind).name, "wrong": f"did not end: {process.said()[-1500:]}"}
    code, said = codes[killed], process.said()
    event = {"stage": met, "signal": signal.Signals(kind).name, "exit": code, "until_exit": time.monotonic() - asked}
    event |= {"host": killed, "codes": codes} if number > 1 else {}
    if not any(codes):
        return {"ended": True}
    # Killed when the work was done, it may have been missed by nobody.
    if number > 1 and remaining and any(code == 0 for code in codes):
        event["wrong"] = f"exit codes {codes}: {said[-1500:]}"
    obeyed = {-kind} if kind == signal.SIGKILL else {128 + kind}
    # The command handles signals until it has done everything.
    if not remaining:
        obeyed |= {-kind}
    # Before, libraries are imported, some of which end by a signal of their own.
    own = not opened and code < 0
    if not own and (code not in obeyed or (code > 0 and "Stopped" not in said)):
        event["wrong"] = f"exit code {code}: {said[-1500:]}"
    return event


def let_end(workdir: Path, options: list[str], log: Path, number: int) -> dict[str, Any]:
    """One process, or several hosts, that nobody disturbs."""
    process = Hosts(workdir, options, log, number)
    codes = process.wait(PATIENCE)
    return {"ended": True, **({"wrong": process.said()[-1500:]} if any(codes) else {})}


def main() -> None:
    """Kill and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; a temporary one by default")
    parser.add_argument("--hosts", type=int, default=1, help="processes that work together")
    given, options = parser.parse_known_args()
    # A background job ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(soak(given.folder or Path(temporary), given.kills, given.seed, given.hosts, options))


def soak(folder: Path, kills: int, seed: int, number: int, options: list[str]) -> bool:
    """Kill so many times; whether anything was wrong."""
    whole, warm, workdir = (folder / name / "run" for name in ("whole", "warm", "killed"))
    ledger, log = folder / "ledger.jsonl", folder / "said.log"
    folder.mkdir(parents=True, exist_ok=True)
    # Stages take what they take the second time, when everything is compiled.
    for undisturbed in (whole, warm):
        if not complete(undisturbed / "report" / "stage.json"):
            event = let_end(undisturbed, options, log, number)
            if "wrong" in event:
                sys.exit(f"a run failed: {event['wrong']}")
    expected, seconds = outcome(whole), Run(warm).seconds()
    if outcome(warm) != expected:
        sys.exit(f"two runs that nobody touched differ: {whole} and {warm}")
    events = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.is_file() else []
    while sum("signal" in event for event in events) < kills or workdir.exists():
        rng = np.random.default_rng([seed, len(events)])
        going_on = sum("signal" in event for event in events) < kills
        if going_on:
            event = kill_once(workdir, options, seconds, rng, log, number)
        else:
            event = let_end(workdir, options, log, number)
        if "ended" in event and "wrong" not in event:
            found = outcome(workdir)
            names = sorted(expected.keys() | found.keys())
            event["different"] = [name for name in names if expected.get(name) != found.get(name)]
            event["left"] = leftovers(workdir)
        if "wrong" in event or event.get("different") or event.get("left"):
            shutil.copytree(workdir, folder / f"wrong_{len(events)}")
        if "ended" in event:
            shutil.rmtree(workdir)
        events.append(event)
        with ledger.open("a") as file:
            file.write(json.dumps(event) + "\n")
        print(len(events), json.dumps(event), flush=True)
    return summary(events, len(expected))


def summary(events: list[dict[str, Any]], files: int) -> bool:
    """Print kills by stage and signal, and what was wrong; whether anything was."""
    counts = collections.Counter((event["stage"], event["signal"]) for event in events if "signal" in event)
    names = [number.name for number in SIGNALS]
    print(f"\n{'stage':<24}" + "".join(f"{name:>9}" for name in names))
    for stage in dict.fromkeys(stage for stage, _ in counts):
        print(f"{stage:<24}" + "".join(f"{counts[stage, name]:>9}" for name in names))
    print(f"{'all':<24}" + "".join(f"{sum(n for (_, s), n in counts.items() if s == name):>9}" for name in names))
    ended = [event for event in events if "ended" in event]
    print(f"\nruns ended: {len(ended)}, each compared in {files} files and arrays")
    for title, key in (("runs that differ", "different"), ("runs with leftovers", "left"), ("wrong endings", "wrong")):
        print(f"{title}: {sum(bool(event.get(key)) for event in events)}")
    slow = [event["until_exit"] for event in events if event.get("exit", -1) > 0] or [0.0]
    print(f"seconds from SIGTERM or Ctrl-C to the end: median {np.median(slow):.2f}, at most {max(slow):.2f}")
    if alone := [event["until_exit"] for event in events if "host" in event]:
        print(f"seconds from a host's end to that of all: median {np.median(alone):.2f}, at most {max(alone):.2f}")
    return any(event.get(key) for event in events for key in ("different", "left", "wrong"))


if __name__ == "__main__":
    main()
