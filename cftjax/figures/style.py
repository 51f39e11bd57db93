"""What the figures share: colours, names that fit, quiet axes.

Names of categories are drawn with `parse_math=False`: a dollar sign in one begins no formula.
"""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cftjax.text import printable

GREY, BLUE, ORANGE, INK = "#8c8c8c", "#1766a6", "#c8500a", "#222222"
MINUS = "\N{MINUS SIGN}"
STEPS = [1, 2, 5, 10]  # between ticks, times a power of ten


def short(name: str, length: int) -> str:
    """A name on one line, cut to at most `length` characters."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def in_legend(name: str, length: int = 60) -> str:
    """A name as a label: matplotlib begins a formula at a dollar sign, and leaves out what begins with a line."""
    words = short(name, length).replace("$", r"\$")
    return f" {words}" if words.startswith("_") else words


def signed(points: float) -> str:
    """A change to one decimal with its sign; what rounds to nothing has none."""
    text = f"{points:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def quiet(ax: Axes, grid: Literal["both", "x", "y"]) -> None:
    """Leave only what helps to read off a value."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="#e4e4e4", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.5, length=0)


def only_text(message: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = Figure(figsize=(7, 2.5), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=11, color=INK)
    return figure
