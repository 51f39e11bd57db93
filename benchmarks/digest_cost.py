"""How much of a run's time goes into digests: the seconds spent in them, beside those of the whole command.

    python benchmarks/digest_cost.py [train | finetune FILE] [options of that command]

Runs the command in this process, with a clock around whatever digests, seals or compares: the calls from outside into
`cftjax.runtime.digests`, and the digest that grows with the rows of an embedding. Without --workdir into a temporary
folder. The speed of the digests is measured afterwards on a file of 512 MB, for larger runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()

from cftjax import finetune, train  # noqa: E402  # the imports are a part of the command
from cftjax.embeddings import embed  # noqa: E402
from cftjax.runtime import digests  # noqa: E402

TIMED = ("of_file", "of_folder", "sealed", "unsealed", "check", "read", "compare", "check_folder")
FILE_BYTES = 512 * 2**20
COMMANDS = {"train": train.main, "finetune": finetune.main}


class Clock:
    """Seconds and calls by name; what is called from within another is the other's."""

    def __init__(self) -> None:
        """Nothing was called."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.within = threading.local()

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        if getattr(self.within, "name", None):
            yield
            return
        self.within.name, began = name, time.monotonic()
        try:
            yield
        finally:
            self.within.name = None
            self.seconds[name] += time.monotonic() - began
            self.calls[name] += 1

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function with this clock."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running(name):
                return function(*args, **kwargs)

        return timed


class TimedHashes:
    """In the place of hashlib where embeddings are written."""

    def __init__(self, clock: Clock) -> None:
        """Time by this clock."""
        self.clock = clock

    def sha256(self, content: bytes = b"") -> Any:
        """A digest whose updates are timed."""
        return TimedDigest(self.clock, content)


class TimedDigest:
    """A SHA-256 that counts its time."""

    def __init__(self, clock: Clock, content: bytes) -> None:
        """Begin with some content."""
        self.clock, self.digest = clock, hashlib.sha256()
        self.update(content)

    def update(self, content: Any) -> None:
        """Add content."""
        with self.clock.running("rows of embeddings"):
            self.digest.update(content)

    def hexdigest(self) -> str:
        """What it has come to."""
        return self.digest.hexdigest()


def main() -> None:
    """Run the command and print the table."""
    words = sys.argv[1:]
    name = words.pop(0) if words and words[0] in COMMANDS else "train"
    clock = Clock()
    for function in TIMED:
        setattr(digests, function, clock.around(getattr(digests, function), function))
    writing: Any = embed
    writing.hashlib = TimedHashes(clock)
    with tempfile.TemporaryDirectory() as temporary:
        if not any(word.split("=")[0] in ("--workdir", "-o") for word in words):
            words += ["--workdir", str(Path(temporary) / "run")]
        sys.argv = [f"cftjax {name}", *words]
        COMMANDS[name]()
        whole, seconds_of = time.monotonic() - BEGAN, dict(clock.seconds)
        speed = bytes_a_second(Path(temporary) / "large")
    print(f"\n{'digests':<24}{'calls':>8}{'seconds':>10}")
    for called, seconds in sorted(seconds_of.items(), key=lambda item: -item[1]):
        print(f"{called:<24}{clock.calls[called]:>8}{seconds:>10.3f}")
    spent = sum(seconds_of.values())
    print(f"all: {spent:.3f} of {whole:.1f} s, {100 * spent / whole:.2f} %; a large file: {speed / 1e9:.2f} GB/s")


def bytes_a_second(path: Path) -> float:
    """Of a file that is in the system's memory."""
    path.write_bytes(bytes(FILE_BYTES))
    began = time.monotonic()
    digests.of_file(path)
    return FILE_BYTES / (time.monotonic() - began)


if __name__ == "__main__":
    main()
