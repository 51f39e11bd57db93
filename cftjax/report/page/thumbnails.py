"""The worst mistakes on the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from cftjax.report import tables
from cftjax.report.mistakes import Mistake, Mistakes
from cftjax.report.page import table, text

OPEN_AT_FIRST = 10


def section(metrics: dict[str, Any], mistakes: Sequence[Mistakes] | None, calibrated: bool) -> str:
    """All of them; a reason where there are none."""
    split = tables.reported_split(metrics)
    if mistakes is None:
        return "<p>This run has embeddings and no images, so that its mistakes cannot be shown.</p>"
    if not mistakes:
        return f"<p>None: every category ranks all its known {split} images right, or has no image that opens.</p>"
    words = (
        f"Known {split} images on the wrong side of others, by the final heads: absent, yet ranked above an image that "
        "has the category; present, yet ranked below one that has not. No threshold plays a part. Rank 1 is the image "
        "that the category's head is surest of; the percentage is its probability, "
        f"{'calibrated' if calibrated else 'the sigmoid of its logit, not calibrated'}."
    )
    scored = sum(value is not None for value in metrics[split]["final"]["AP"])
    if len(mistakes) < scored:
        words += f" Shown: the {len(mistakes)} of {scored:,} categories with the lowest AP."
    if any(one.heat for of in mistakes for one in (*of.false_positives, *of.false_negatives)):
        words += (
            " Beside each image, its head's logit by place: red speaks for the category, blue against it, each picture "
            "on a scale of its own."
        )
    sections = "".join(_category(metrics, one, opened=i < OPEN_AT_FIRST) for i, one in enumerate(mistakes))
    return f'<p class="soft small">{escape(words)}</p>{sections}'


def _category(metrics: dict[str, Any], found: Mistakes, opened: bool) -> str:
    split = tables.reported_split(metrics)
    name = text.name(metrics["categories"][found.category], table.LONGEST_NAME)
    score = metrics[split]["final"]["AP"][found.category]
    kinds = (
        ("Absent, yet ranked high", "known absent", found.false_positives),
        ("Present, yet ranked low", "known present", found.false_negatives),
    )
    lists = ""
    for title, truth, some in kinds:
        if some:
            figures = "".join(_thumbnail(one, name, truth, found.known) for one in some)
            pairs = " pairs" if some[0].heat else ""
            lists += f'<div><h4>{title}</h4><div class="thumbs{pairs}">{figures}</div></div>'
    return (
        f'<details class="card mistakes"{" open" if opened else ""}><summary><h3>{name}</h3>'
        f'<span class="soft small">AP {text.percent(score)} %, {found.known:,} known</span></summary>'
        f'<div class="kinds">{lists}</div></details>'
    )


def _thumbnail(one: Mistake, category: str, truth: str, known: int) -> str:
    file, whole = (text.name(one.name, length) for length in (table.LONGEST_NAME, table.LONGEST_TITLE))
    alt = f"{file}: {category} is {truth}"
    pictures = f'<img src="{text.data_url(one.jpeg, "image/jpeg")}" alt="{alt}">'
    if one.heat is not None:
        pictures += f'<img src="{text.data_url(one.heat, "image/jpeg")}" alt="where the head sees {category}">'
    return (
        f'<figure><div class="pictures">{pictures}</div><figcaption>{100 * one.probability:.1f} %, '
        f'rank {one.rank:,} of {known:,}<span title="{whole}">{file}</span></figcaption>'
        "</figure>"
    )
