"""What a data set says: labels of each kind per category, and which categories go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cftjax.figures.style import BLUE, GREY, INK, ORANGE, only_text, short

# Positive, uncertain, negative, unknown: colour, hatching and name.
KINDS = (
    (BLUE, "", "1 (positive)"),
    (ORANGE, "////", "-1 (uncertain)"),
    ("#c9cdd1", "", "0 (negative)"),
    ("white", "", "unknown"),
)
# Categories up to which every cell of the heat map has its number.
NUMBERED = 20
NAME_LENGTH = 26


def label_counts(
    categories: Sequence[str],
    counts: Mapping[str, Int[np.ndarray, "4 k"]],
    together: Float[np.ndarray, "k k"],
    *,
    num_categories: int,
    split: str = "train",
) -> Figure:
    """Stacked bars of labels per category and split, and beside them a heat map of co-occurrence, row beside row.

    Args:
        categories: names, length k, in the order of the rows.
        counts: title of each panel of bars -> images whose label is positive, uncertain, negative and unknown.
        together: share of the row's positive images that are positive for the column, NaN where nothing is known.
        num_categories: of the data set, of which k are drawn.
        split: that `together` is of.
    """
    k = len(categories)
    if k == 0:
        return only_text("The data set has no category.")
    # Inches: rows stay readable, the heat map's cells square, the top holds the columns' names.
    row = 0.34 if k <= NUMBERED else 0.19
    names = [short(name, NAME_LENGTH) for name in categories]
    longest = max(map(len, names)) * (0.068 if k <= NUMBERED else 0.053) + 0.15
    # Few categories make a small map, which must not become narrower than its title.
    height = max(row * k, 1.8)
    bars, side, gap, top, bottom = 2.1, height, 0.75, max(longest, 0.5) + 0.75, 0.85
    width = longest + len(counts) * (bars + gap) + longest + side + 1.2
    total = height + top + bottom
    figure = Figure(figsize=(width, total))
    left = longest
    for number, (title, content) in enumerate(counts.items()):
        ax = figure.add_axes((left / width, bottom / total, bars / width, height / total))
        stacked_bars(ax, content, title, 8.5 if k <= NUMBERED else 6.5)
        ax.set_yticks(range(k), names if number == 0 else [""] * k, parse_math=False)
        left += bars + gap
    left += longest
    ax = figure.add_axes((left / width, bottom / total, side / width, height / total))
    bar = figure.add_axes(((left + side + 0.15) / width, bottom / total, 0.14 / width, min(height, 3.0) / total))
    heat_map(ax, bar, names, together)
    ax.set_xlabel(
        f"% of {split} images positive for the row that are\npositive for the column, where its label is known",
        fontsize=9,
    )
    title = f"Labels of {k} categories"
    if k < num_categories:
        title = f"Labels of the {k} categories with the most positives, of {num_categories:,}"
    figure.suptitle(title, x=0.15 / width, y=1 - 0.12 / total, ha="left", va="top", fontsize=12, fontweight="bold")
    handles, kinds = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        kinds,
        loc="upper left",
        bbox_to_anchor=(0.05 / width, 1 - 0.38 / total),
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure


def stacked_bars(ax: Axes, counts: Int[np.ndarray, "4 k"], title: str, fontsize: float) -> None:
    """One bar per category, which ends at the number of images; how many are positive stands behind it."""
    images = int(counts.sum(axis=0).max())
    rows = np.arange(counts.shape[1])
    start = np.zeros(len(rows), int)
    for count, (colour, hatch, kind) in zip(counts, KINDS, strict=True):
        ax.barh(
            rows, count, 0.74, left=start, color=colour, edgecolor="#9aa0a6", linewidth=0.4, hatch=hatch, label=kind
        )
        start = start + count
    for row, number in zip(rows.tolist(), counts[0].tolist(), strict=True):
        text = f"{number:,}"
        ax.text(1.02, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize=fontsize, color=BLUE)
    ax.text(1.02, 1, "1", transform=ax.transAxes, va="bottom", fontsize=fontsize, color=BLUE, fontweight="bold")
    ax.set_title(f"{title}\n{images:,} images", fontsize=9.5, loc="left", color=INK)
    ax.set(xlim=(0, max(images, 1)), ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.tick_params(labelsize=fontsize, length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def heat_map(ax: Axes, bar: Axes, names: Sequence[str], together: Float[np.ndarray, "k k"]) -> None:
    """Shares from white to blue; grey where nothing is known, and on the diagonal, which is 100 % anyway."""
    k = len(names)
    shown = np.where(np.eye(k, dtype=bool), np.nan, 100 * together)
    ax.set_facecolor("#ececec")
    image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    fontsize = 8.5 if k <= NUMBERED else 6.5
    ax.set_yticks(range(k), names, parse_math=False)
    ax.set_xticks(range(k), names, rotation=90, parse_math=False)
    ax.tick_params(labelsize=fontsize, length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    if k <= NUMBERED:
        for (row, column), value in np.ndenumerate(shown):
            text = "" if row == column else "?" if np.isnan(value) else f"{value:.0f}"
            colour = GREY if np.isnan(value) else "white" if value > 55 else INK
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    ax.figure.colorbar(image, cax=bar)
    bar.tick_params(labelsize=fontsize, length=0)
    bar.set_title("%", fontsize=9)
