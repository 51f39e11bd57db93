"""How the page writes numbers, changes and pictures."""

from __future__ import annotations

import base64
from html import escape

from cftjax.text import cut, printable

UNDEFINED = "–"  # noqa: RUF001


def name(words: str, length: int) -> str:
    """A stranger's name as HTML: control characters escaped, the middle of what is too long left out."""
    return escape(cut(printable(words), length))


def percent(value: float | None) -> str:
    """A score in [0, 1] in %."""
    return UNDEFINED if value is None else f"{100 * value:.2f}"


def points(value: float | None) -> str:
    """A change of a score, in points with its sign."""
    return UNDEFINED if value is None else f"{100 * value:+.2f}".replace("-", "−")  # noqa: RUF001


def interval(low: float | None, high: float | None) -> str:
    """Both ends in points."""
    return UNDEFINED if low is None or high is None else f"[{points(low)}, {points(high)}]"


def direction(low: float | None, high: float | None) -> str:
    """A class for colour, only where the interval excludes 0."""
    if low is None or high is None:
        return ""
    return "up" if low > 0 else "down" if high < 0 else ""


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def scale(before: float | None, after: float | None) -> str:
    """Before (open) and after (filled) on a line from 0 to 100 %; a picture of numbers that stand beside it."""
    if before is None or after is None:
        return ""
    low, width = 100 * min(before, after), 100 * abs(after - before)
    fell = ' class="fell"' if after < before else ""
    filled = "after fell" if after < before else "after"
    return (
        f'<div class="scale" aria-hidden="true"><i{fell} style="--l:{low:.1f};--w:{width:.1f}"></i>'
        f'<b style="--x:{100 * before:.1f}"></b><b class="{filled}" style="--x:{100 * after:.1f}"></b></div>'
    )


def data_url(content: bytes, kind: str) -> str:
    """A file of a media type, embedded."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
