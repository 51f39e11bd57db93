"""The same work for many images in threads, with the time left, and stopped soon by Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from typing import TypeVar

from cftjax.runtime.progress import Progress

T = TypeVar("T")
R = TypeVar("R")

# Items that a thread takes at a time.
CHUNK = 64


def each(items: Sequence[T], work: Callable[[T], R], workers: int, title: str) -> Generator[tuple[T, R]]:
    """Every item with the result of its work, a chunk after the other in the order in which they are done.

    Args:
        items: of the work.
        work: called in threads; what it raises is raised here.
        workers: number of threads.
        title: what the progress says is done.
    """
    stopped = threading.Event()

    def do(start: int) -> list[tuple[T, R]]:
        done = []
        for item in items[start : start + CHUNK]:
            if stopped.is_set():
                break
            done.append((item, work(item)))
        return done

    with futures.ThreadPoolExecutor(max(workers, 1)) as pool, Progress(title, unit="images") as shown:
        chunks = [pool.submit(do, start) for start in range(0, len(items), CHUNK)]
        done = 0
        try:
            for chunk in futures.as_completed(chunks):
                found = chunk.result()
                done += len(found)
                shown.update(done, len(items))
                yield from found
        finally:
            # After an error or Ctrl-C, nothing more is begun.
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
