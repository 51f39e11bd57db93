"""Points on their way to a service outside: sent by a thread, so that a slow network holds up no training.

A service that fails is said once, and left alone from then on.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from cftjax.runtime import digests, storage
from cftjax.text import cut, printable

FOLDER = digests.TRACKING
# What is sent at once, and how long points wait for others to go with.
BATCH_VALUES, BATCH_SECONDS = 1000, 2.0
# How long saving a stage, and ending the run, waits for a service.
DRAIN_SECONDS, CLOSE_SECONDS = 5.0, 60.0
# Points that may wait for a service that does not answer.
MOST_WAITING = 200_000

Point = tuple[int, Mapping[str, float]]


@runtime_checkable
class Service(Protocol):
    """A run of ours as a service keeps it.

    Attributes:
        title: of the service.
        id: by which the service knows the run.
        where: to look at it.
        position: whatever number the service wants back when it goes on.
    """

    title: str
    id: str
    where: str
    position: int

    def settings(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Keep all settings, and the versions of the libraries."""
        ...

    def points(self, points: Sequence[Point]) -> None:
        """Add points to curves."""
        ...

    def results(self, scores: Mapping[str, float], files: Sequence[Path]) -> None:
        """Keep the last scores, and files."""
        ...

    def close(self, ended: BaseException | None) -> None:
        """The run has ended, perhaps by an error."""
        ...


class Waiting(NamedTuple):
    """A point that waits to be sent, and who wants to know when it was."""

    point: Point
    note: Callable[[Sequence[Point]], None]


class Sender:
    """Gives a service what it is to have, in order, from a thread of its own."""

    def __init__(self, name: str, service: Service, note: Callable[[], None]) -> None:
        """Begin.

        Args:
            name: of the service as an option.
            service: where everything goes.
            note: called when something was sent.
        """
        self.name, self.service, self.note = name, service, note
        self.waiting: queue.Queue[Waiting | Callable[[], None]] = queue.Queue()
        self.failure, self.said, self.stuck = "", False, False
        self.note()
        # A thread that hangs must not keep the process from ending.
        threading.Thread(target=self.work, name=f"{name} log", daemon=True).start()

    def send(self, step: int, values: Mapping[str, float], note: Callable[[Sequence[Point]], None]) -> None:
        """Send a point of some curves; `note` is called with it afterwards, in another thread."""
        self.say()
        if self.waiting.qsize() > MOST_WAITING:
            self.failure = self.failure or "it does not answer"
        if not self.failure:
            self.waiting.put(Waiting((step, values), note))

    def do(self, work: Callable[[Service], None]) -> None:
        """Do something with the service when all that came before is sent."""
        self.waiting.put(lambda: work(self.service))

    def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Wait until everything is sent, at most so long, and not again while it hangs; whether it is."""
        done = threading.Event()
        self.waiting.put(done.set)
        # After a failure everything is passed over at once.
        self.stuck = not done.wait(0 if self.stuck else seconds)
        self.say()
        return not self.stuck

    def close(self, ended: BaseException | None) -> None:
        """Tell the service that the run has ended."""
        self.do(lambda service: service.close(ended))
        self.stuck = False
        if not self.drain(CLOSE_SECONDS):
            self.failure = self.failure or f"it has not taken everything in {CLOSE_SECONDS:.0f} seconds"
        self.say()

    def say(self) -> None:
        """Say once that the service has failed."""
        if self.failure and not self.said:
            self.said = True
            warnings.warn(
                f"--log {self.name}: {self.service.title} has failed ({self.failure}). The run goes on, and this "
                f"log ends here; the run's own folder has everything.",
                stacklevel=2,
            )

    def work(self) -> None:
        """Send what waits, some points at a time."""
        while True:
            points, work = self.next_batch()
            if not self.failure:
                try:
                    self.send_now(points)
                    if work is not None and not is_mark(work):
                        work()
                        self.note()
                # Whatever a service's library raises: it must not end a training.
                except Exception as error:
                    self.failure = in_words(error)
            if work is not None and is_mark(work):
                work()

    def next_batch(self) -> tuple[list[Waiting], Callable[[], None] | None]:
        """Points that are sent together, and what is to be done after them."""
        points: list[Waiting] = []
        num_values, until = 0, time.monotonic() + BATCH_SECONDS
        while num_values < BATCH_VALUES:
            try:
                item = self.waiting.get(timeout=max(until - time.monotonic(), 0) if points else None)
            except queue.Empty:
                break
            if not isinstance(item, Waiting):
                return points, item
            if not points:
                until = time.monotonic() + BATCH_SECONDS
            points.append(item)
            num_values += len(item.point[1])
        return points, None

    def send_now(self, points: Sequence[Waiting]) -> None:
        """Send points, and note for every stage what was."""
        if not points:
            return
        self.service.points([waiting.point for waiting in points])
        by_stage: dict[Callable[[Sequence[Point]], None], list[Point]] = {}
        for waiting in points:
            by_stage.setdefault(waiting.note, []).append(waiting.point)
        for note, sent in by_stage.items():
            note(sent)
        self.note()


class Sent:
    """The curves of a stage on their way to a service."""

    def __init__(self, sender: Sender, folder: Path) -> None:
        """Begin, or go on after what the folder of the stage says that the service has."""
        self.sender, self.path = sender, folder / FOLDER / f"{sender.name}.json"
        kept = storage.read_json(self.path) if self.path.is_file() else {}
        # Group of curves -> last step sent.
        self.last: dict[str, int] = kept["last"] if kept.get("run") == sender.service.id else {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve that is not so far yet."""
        new = {name: value for name, value in values.items() if step > self.last.get(group(name), -1)}
        if new:
            self.sender.send(step, new, self.note)

    def note(self, points: Sequence[Point]) -> None:
        """Keep what was sent; called by the thread that sends."""
        for step, values in points:
            self.last |= {group(name): step for name in values}
        storage.write_json(self.path, {"run": self.sender.service.id, "last": self.last})

    def flush(self) -> None:
        """Wait a little until the service has everything."""
        self.sender.drain()

    def close(self) -> None:
        """Wait a little until the service has everything: the stage's folder must not change any more."""
        self.sender.drain()


def group(name: str) -> str:
    """The curves that advance together, such as `training` of `training/loss`."""
    return name.partition("/")[0]


def is_mark(work: Callable[[], None]) -> bool:
    """Whether this only says how far the sender is."""
    return isinstance(getattr(work, "__self__", None), threading.Event)


def in_words(error: BaseException) -> str:
    """An error of a service's library in a line."""
    lines = str(error).strip().splitlines()
    return cut(printable(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__), 300)
