"""Values and names as text and nothing else: short, on one line, without effect on terminal, page or spreadsheet.

Names of categories and files are strangers' words. On a terminal a control character could move the cursor or colour
what follows, in Markdown `<` begins a tag, and in a spreadsheet `=` begins a formula.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

# Characters of a value that came from a file, at most, in a message.
VALUE_LENGTH = 80
# Of a name within a sentence, at most.
NAME_LENGTH = 100
# What joins the letters of some scripts is no control character.
JOINERS = "\u200c\u200d"


def shown(value: Any) -> str:
    """A value from a file as a message shows it: on one line, printable, not too long."""
    text = repr(value)
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 3] + "..."


def printable(text: str, keep: str = "") -> str:
    """A text with its control characters escaped as Python would: no terminal acts on it.

    Args:
        text: of anybody.
        keep: characters that stay though they are no letters, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in JOINERS + keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def cut(text: str, length: int = NAME_LENGTH) -> str:
    """A text without the middle of what is too long."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}…{text[len(text) - length + length // 2 + 1 :]}"


def for_markdown(text: str) -> str:
    """A text as Markdown shows it: on one line, without a meaning of its own there or in HTML."""
    line = printable(" ".join(text.split()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore within a word, and what only begins a line, need none.
    return re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|:(?=//))", r"\\\1", line)


def for_spreadsheet(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text that begins like one has an apostrophe in front.

    Numbers stay numbers. `from_spreadsheet` takes the apostrophe away.
    """
    return f"'{cell}" if isinstance(cell, str) and re.match(r"'*[=+\-@\t\r\n]", cell) else cell


def from_spreadsheet(cell: str) -> str:
    """What `for_spreadsheet` was given."""
    return cell[1:] if re.match(r"'+[=+\-@\t\r\n]", cell) else cell


def few(names: Sequence[str], most: int = 10) -> str:
    """Names within a sentence, the first of too many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(cut(printable(name)) for name in names[:most]) + more


def names(values: Any, source: str) -> tuple[str, ...]:
    """A list of names that came from a file.

    Args:
        values: what was read.
        source: of them, for the message.

    Raises:
        ValueError: where it is no list, or something in it is no text.
    """
    if not isinstance(values, list | tuple):
        raise ValueError(f"{source} are {shown(values)}: a list of names is needed")
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{source}: number {place + 1} is {shown(value)}, which is no text: name every category")
    return tuple(values)


def closest(name: str, names: Sequence[str]) -> str:
    """What there is instead of `name`, as the end of a sentence: the nearest, or the first few."""
    if not names:
        return "is empty"
    folded = {existing.lower(): existing for existing in reversed(names)}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    return f"has {few([folded[close[0]]]) if close else few(names, 5)}"
