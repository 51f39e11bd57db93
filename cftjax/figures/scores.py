"""Scores of every category, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cftjax.figures.style import BLUE, GREY, INK, MINUS, ORANGE, only_text, quiet, short, signed

ROWS_PER_COLUMN, MOST_COLUMNS = 40, 3
# Of the width of the axis, where a mean stands at most if what is written beside it is to end within.
MEAN_FITS = 0.65


def before_after(
    categories: Sequence[str],
    before: Float[np.ndarray, " c"],
    after: Float[np.ndarray, " c"],
    *,
    metric: str,
    split: str,
) -> Figure:
    """Each category's score before and after fine-tuning, the largest rise first.

    Categories without a score are left out and counted; of more than 120 the 60 largest rises and falls are shown.

    Args:
        categories: names, length c.
        before: [c] score in [0, 1]; NaN where undefined.
        after: [c].
        metric: "AP" or "AUROC".
        split: the images scored, as the axis should call them.
    """
    change = after - before
    order = np.argsort(-change, kind="stable")
    order = order[~np.isnan(change[order])]
    if len(order) == 0:
        return only_text(f"{metric} on {split} is undefined for every category.")
    rose, fell = int((change > 0).sum()), int((change < 0).sum())
    means = [100 * float(x[order].mean()) for x in (before, after)]
    most = ROWS_PER_COLUMN * MOST_COLUMNS
    shown = order if len(order) <= most else np.concatenate([order[: most // 2], order[-most // 2 :]])
    columns = -(-len(shown) // ROWS_PER_COLUMN)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(8.0, 5.4 * columns), 2.0 + 0.22 * rows), layout="constrained")
    axes = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    low, high = 100 * min(before[shown].min(), after[shown].min()), 100 * max(before[shown].max(), after[shown].max())
    margin = 0.04 * (high - low) + 0.5
    axes[0].set_xlim(max(low - margin, -1.5), min(high + margin, 101.5))
    for ax, some in zip(axes, np.array_split(shown, columns), strict=True):
        names = [categories[int(i)] for i in some]
        _dumbbells(ax, names, 100 * before[some], 100 * after[some], means, rows)
        ax.set_xlabel(f"{metric} on {split} (%)", fontsize=9)
    notes = [f"{rose} rose, {fell} fell, {len(order) - rose - fell} unchanged"]
    if len(shown) < len(order):
        notes.append(f"{len(shown)} of {len(order)} shown, the largest rises and falls")
    if len(order) < len(change):
        notes.append(f"{len(change) - len(order)} undefined")
    title = f"{metric} of each category on {split}: before ○ and after ▶ or ◀ fine-tuning"
    figure.suptitle(f"{title}\n{';  '.join(notes)}", fontsize=11, fontweight="bold")
    return figure


def _dumbbells(
    ax: Axes,
    names: Sequence[str],
    before: Float[np.ndarray, " k"],
    after: Float[np.ndarray, " k"],
    means: Sequence[float],
    rows: int,
) -> None:
    """One column of before_after; scores and means in %."""
    y = np.arange(len(names))
    change = after - before
    for up, colour, marker in ((True, BLUE, ">"), (False, ORANGE, "<")):
        picked = change > 0 if up else change < 0
        ax.hlines(y[picked], before[picked], after[picked], color=colour, linewidth=2.2, alpha=0.55, zorder=2)
        ax.scatter(after[picked], y[picked], s=34, marker=marker, color=colour, zorder=4)
    ax.scatter(before, y, s=24, facecolor="white", edgecolor="#555555", linewidth=1.2, zorder=3)
    right = 1.01
    for row, value in enumerate(change.tolist()):
        text = signed(value)
        colour = {"+": BLUE, MINUS: ORANGE}.get(text[0], GREY)
        ax.text(right, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color=colour)
    low, high = ax.get_xlim()
    # The words beside the mean on the right may need the place above the changes.
    crowded = (max(means) - low) / (high - low) > MEAN_FITS
    ax.text(
        right,
        -2.0 if crowded else -1.1,
        "change",
        transform=ax.get_yaxis_transform(),
        va="center",
        fontsize=8.5,
        color=INK,
    )
    for value, style, colour, word, is_left in zip(
        means, ("--", "-"), (GREY, BLUE), ("before", "after"), (means[0] <= means[1], means[0] > means[1]), strict=True
    ):
        ax.axvline(value, linestyle=style, color=colour, linewidth=1.1, zorder=1)
        text = f"mean {word} {value:.1f} " if is_left else f" mean {word} {value:.1f}"
        ax.text(value, -1.1, text, ha="right" if is_left else "left", va="center", fontsize=8.5, color=colour)
    ax.set_yticks(y, [short(name, 28) for name in names], parse_math=False)
    ax.set_ylim(rows - 0.5, -2.6 if crowded else -1.7)
    quiet(ax, "x")
    ax.spines["left"].set_visible(False)
