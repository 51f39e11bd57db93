"""SIGTERM and Ctrl-C: both end a command in the same way, put off until what has been computed is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = "\nStopping when {} saved; a second signal stops at once.\n"


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Python turns Ctrl-C into KeyboardInterrupt."""


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell expects of a process that a signal has ended: 128 and the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self, waits_for: str) -> None:
        """Nobody has, yet; whoever does is told what is waited for."""
        self.notice = NOTICE.format(waits_for).encode()
        self.requested = False
        self.kind: type[KeyboardInterrupt] = KeyboardInterrupt

    def request(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; the second ends the work at once."""
        self.kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self.requested:
            raise self.kind("at the second signal, without saving; the same command goes on from the last save.")
        self.requested = True
        # Past Python's buffers, which the signal may have interrupted.
        with contextlib.suppress(OSError):
            os.write(2, self.notice)

    def stop(self, what: str) -> None:
        """End the work, of which `what` is saved."""
        raise self.kind(f"{what}; the same command goes on from there.")


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None], signals: Sequence[int]) -> Iterator[None]:
    """Let a function handle signals while the block runs.

    Outside of the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def deferred(waits_for: str = "what is computed is") -> Iterator[Interruption]:
    """Signals set `requested` while the block runs: it must look, save, and call `stop`.

    Args:
        waits_for: what is saved first, with its verb.
    """
    interruption = Interruption(waits_for)
    with handled(interruption.request, SIGNALS):
        yield interruption


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM as Python handles Ctrl-C."""
    raise Terminated
