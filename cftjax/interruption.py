"""SIGTERM and Ctrl-C, put off until what has been computed is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        """Nobody has, yet."""
        self.requested = False

    def request(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; the second ends the work at once."""
        if self.requested:
            raise KeyboardInterrupt("stopped at the second signal, without saving")
        self.requested = True


@contextlib.contextmanager
def deferred() -> Iterator[Interruption]:
    """Signals set `requested` while the block runs: it must look, save, and raise KeyboardInterrupt.

    Outside of the main thread, where Python allows no handlers, nothing changes.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption.request) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
