"""How far a stage is: a bar with the time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import collections
import time
from types import TracebackType

import jax
from rich import progress
from rich.console import Console

# Between two lines where the output is not a terminal.
SECONDS = 10.0
# Characters below which the bar is short, so that what stands beside it is not cut.
NARROW = 100
# Seconds back to which the rate is counted; one as old is kept, so that there always is one where work is slow.
RECENT = 120.0


def clock(seconds: float) -> str:
    """A time to wait for, as exact as anybody needs it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


class Progress:
    """Shows one stage's progress on standard error, from the first host only.

    As a context manager: `with Progress("Training", unit="steps") as shown: shown.update(3, 10, "loss 0.31")`.
    """

    def __init__(self, title: str, unit: str = "", console: Console | None = None) -> None:
        """Name the stage and what it counts.

        Args:
            title: the stage.
            unit: of `done` and `total`.
            console: where to write; standard error if None.
        """
        self.title, self.unit = title, unit
        self.console = Console(stderr=True) if console is None else console
        self.silent = jax.process_index() != 0
        self.bar: progress.Progress | None = None
        self.began = self.printed = time.monotonic()
        # How much was done when, the oldest first.
        self.seen: collections.deque[tuple[float, int]] = collections.deque()
        self.last = ""

    def __enter__(self) -> Progress:
        """Begin."""
        self.began = self.printed = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: leave the bar as it stands, or the last line."""
        if self.bar is not None:
            self.bar.stop()
        elif self.last and not self.silent:
            self.console.print(self.last, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Say at once what is going on before anything is done, such as the compiling of programs."""
        if not self.silent:
            self.console.print(f"{self.title}: {text}", highlight=False, soft_wrap=True)

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` are done, with a few words such as the loss."""
        if self.silent:
            return
        seconds = self._seconds_left(done, total)
        if self.console.is_terminal:
            self._update_bar(done, total, "" if seconds is None else f"{clock(seconds)} left", text)
        else:
            self._update_line(done, total, "" if seconds is None else f", {clock(seconds)} left", text)

    def _seconds_left(self, done: int, total: int) -> float | None:
        """By the rate since the first news; None before the second.

        What an earlier attempt had done, and the time before the first news, in which programs are compiled, say
        nothing about the speed.
        """
        now = time.monotonic()
        self.seen.append((now, done))
        while len(self.seen) > 2 and self.seen[1][0] < now - RECENT:
            self.seen.popleft()
        since, at_first = self.seen[0]
        if done == at_first or done >= total:
            return None
        return (total - done) * (now - since) / (done - at_first)

    def _update_bar(self, done: int, total: int, left: str, text: str) -> None:
        bar = self.bar
        if bar is None:
            self.bar = bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=10 if self.console.width < NARROW else 40),
                progress.TextColumn("{task.completed:.0f}/{task.total:.0f} " + self.unit),
                progress.TextColumn("{task.fields[words]}"),
                console=self.console,
            )
            bar.add_task(self.title, total=total, completed=done, words="")
            bar.start()
        bar.update(bar.task_ids[0], completed=done, total=total, words=", ".join(w for w in (left, text) if w))

    def _update_line(self, done: int, total: int, left: str, text: str) -> None:
        now = time.monotonic()
        self.last = f"{self.title}: {done}/{total} {self.unit}{left}{', ' * bool(text)}{text}"
        if now - self.printed >= SECONDS:
            self.console.print(self.last, highlight=False, soft_wrap=True)
            self.printed, self.last = now, ""
