"""Values and names within a message: short, on one line, the nearest of many."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

# Characters of a value that came from a file, at most, in a message.
VALUE_LENGTH = 80


def shown(value: Any) -> str:
    """A value from a file as a message shows it: on one line, printable, not too long."""
    text = repr(value)
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 3] + "..."


def few(names: Sequence[str], most: int = 10) -> str:
    """Names within a sentence, the first of too many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def closest(name: str, names: Sequence[str]) -> str:
    """What there is instead of `name`, as the end of a sentence: the nearest, or the first few."""
    if not names:
        return "is empty"
    folded = {existing.lower(): existing for existing in reversed(names)}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    return f"has {folded[close[0]] if close else few(names, 5)}"
