"""What a part of `on_gpu.py` finds, on disk at once; turns at the card; seconds of a call."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("ON_GPU_WORK", "/tmp/on_gpu"))
SMALL = bool(os.environ.get("ON_GPU_SMALL"))
PART = os.environ.get("ON_GPU_PART", "part")

# What of MS-COCO with 10 % known labels reaches the search.
CATEGORIES, ROWS, DIM, POPULATION = (6, 700, 64, 50) if SMALL else (80, 8278, 2048, 50)

noted: dict[str, Any] = {}


def note(name: str, value: Any) -> None:
    """Keep a figure, on disk at once, and print it."""
    noted[name] = value
    path = WORK / "parts" / f"{PART}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(noted, default=float))
    part.replace(path)
    print(f"[{PART}] {name}: {f'{value:.5g}' if isinstance(value, float) else value}", flush=True)


def noted_by(part: str) -> dict[str, Any]:
    """What another part has found so far."""
    path = WORK / "parts" / f"{part}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def guarded(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call; where that fails the reason is noted, and the part goes on to its other figures."""
    try:
        return function(*arguments)
    except Exception as error:
        traceback.print_exc()
        note(f"{name} FAILED", f"{type(error).__name__}: {str(error)[:600]}")
        return None


@contextlib.contextmanager
def alone(pausing: bool = True) -> Iterator[None]:
    """The card to itself: parts take turns, and process groups named in `WORK/pausable` stand still meanwhile.

    Args:
        pausing: whether those groups stop; else only other parts wait.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "card.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            if pausing:
                send(signal.SIGSTOP)
            yield
        finally:
            send(signal.SIGCONT)


def send(what: signal.Signals) -> None:
    """A signal to every process group that may be paused, this one's excepted."""
    listed = WORK / "pausable"
    for group in listed.read_text().split() if listed.is_file() else []:
        if int(group) != os.getpgid(0):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(group), what)


def pausable(group: int) -> None:
    """Let `alone` stop a process group."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "pausable").open("a") as listed:
        listed.write(f"{group}\n")


def seconds(call: Callable[[], Any], repeats: int = 5, inner: int = 1) -> float:
    """Median seconds of a call that returns device arrays; `inner` calls are queued before one wait."""
    import jax

    jax.block_until_ready(call())
    taken, result = [], None
    for _ in range(1 if SMALL else repeats):
        begun = time.perf_counter()
        for _ in range(inner):
            result = call()
        jax.block_until_ready(result)
        taken.append((time.perf_counter() - begun) / inner)
    return statistics.median(taken)


def ms(name: str, call: Callable[[], Any], repeats: int = 5, inner: int = 1) -> None:
    """Note the milliseconds of a call that has the card to itself."""
    import jax

    # Compiled before the others have to wait.
    jax.block_until_ready(call())
    with alone():
        note(f"{name}, ms", 1e3 * seconds(call, repeats, inner))


def ceilings() -> dict[str, float]:
    """TFLOP/s of bfloat16 products and GB/s of copies, as `peak` measured them or else an H100's data sheet says."""
    found = noted_by("peak")
    return {"bf16": found.get("bf16 product, TFLOP/s", 989.0), "copy": found.get("copy, GB/s", 3350.0)}
