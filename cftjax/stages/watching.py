"""Work that may take long: news of it on the screen, and a signal that waits until what is computed is saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from cftjax.cft.evolution import GENERATIONS_AT_ONCE
from cftjax.cft.work import Progress as News
from cftjax.runtime import interruption
from cftjax.runtime.progress import Progress

# Unit of progress -> what a signal waits for, since no program is left in its midst.
WAITS_FOR = {
    "generations": f"the {GENERATIONS_AT_ONCE} generations under way are done and",
    "categories": "the category under way is done and",
}


@contextlib.contextmanager
def watched(title: str, unit: str, words: str = "", num_parts: int = 1) -> Iterator[Callable[[int], News]]:
    """Show how far search or polish is, and stop it by a signal once its news say that what is computed is stored.

    Args:
        title: of the work, `Search`.
        unit: of what is counted, one of WAITS_FOR.
        words: before the score that the news bring; empty where they bring none.
        num_parts: pieces of equal length that the work goes through, one after the other.

    Yields:
        The place of a piece to what it calls with its news.
    """
    with interruption.deferred(WAITS_FOR[unit]) as asked, Progress(title, unit=unit) as shown:
        shown.say("reading the embeddings and compiling its programs")

        def of_part(place: int) -> News:
            def news(done: int, total: int, score: float) -> None:
                shown.update(done + place * total, total * num_parts, f"{words} {score:.4f}" if words else "")
                if asked.requested:
                    asked.stop(f"{title.lower()} is saved")

            return news

        yield of_part
