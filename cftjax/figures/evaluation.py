"""Models beside each other: scores with their intervals, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cftjax.figures.style import BLUE, GREY, INK, ORANGE, in_legend, only_text, quiet, short

ROWS_PER_COLUMN, MOST_COLUMNS = 30, 3
# Of all models but the last.
OTHERS = ((INK, "s", "-"), (ORANGE, "^", "--"), (GREY, "D", "-."), (ORANGE, "v", ":"), (INK, "P", ":"))
# Models besides the last that a picture has room for.
MOST_OTHERS = len(OTHERS)
MOST_CURVES = 20
# Of people, whose decisions are points.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Points = Mapping[str, Mapping[str, Float[np.ndarray, " 3"]]]


def score_intervals(
    categories: Sequence[str],
    models: Mapping[str, Float[np.ndarray, "3 c"]],
    means: Mapping[str, float],
    *,
    metric: str,
    split: str,
) -> Figure:
    """Each category's score with its interval, highest first by the last model; a column per thirty categories.

    Categories without a score are left out and counted; of too many the highest and the lowest are shown.

    Args:
        categories: names, length c.
        models: name in the legend -> [3 c] score and both ends of its interval in [0, 1], NaN where undefined; the last
            one is drawn as what it is all about.
        means: name -> mean score in [0, 1].
        metric: "AP" or "AUROC".
        split: the images scored, as the axis should call them.
    """
    last = list(models.values())[-1][0]
    order = np.argsort(-last, kind="stable")
    order = order[~np.isnan(last[order])]
    if len(order) == 0:
        return only_text(f"{metric} on {split} is undefined for every category.")
    most = ROWS_PER_COLUMN * MOST_COLUMNS
    shown = order if len(order) <= most else np.concatenate([order[: most // 2], order[-most // 2 :]])
    columns = -(-len(shown) // ROWS_PER_COLUMN)
    rows = -(-len(shown) // columns)
    pitch = 0.16 + 0.1 * len(models)  # inches of a row
    size = (max(8.0, 5.0 * columns), 1.7 + 0.22 * len(models) + pitch * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    for ax, some in zip(axes, np.array_split(shown, columns), strict=True):
        y = np.arange(len(some))
        for place, (name, values) in enumerate(models.items()):
            colour, marker, _ = style(place, len(models))
            value, low, high = 100 * values[:, some]
            at = y + 0.7 * ((place + 0.5) / len(models) - 0.5)
            label = f"{in_legend(name)} (mean {100 * means[name]:.1f})"
            ax.hlines(at, low, high, color=colour, linewidth=1.6, alpha=0.6, zorder=2)
            ax.scatter(value, at, s=26, marker=marker, color=colour, zorder=3, label=label)
        ax.set_yticks(y, [short(categories[int(i)], 28) for i in some], parse_math=False)
        ax.set_ylim(rows - 0.4, -0.6)
        ax.set_xlabel(f"{metric} on {split} (%)", fontsize=9)
        quiet(ax, "x")
        ax.spines["left"].set_visible(False)
        ax.hlines(y[:-1] + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="#f0f0f0", linewidth=0.7, zorder=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(models)), fontsize=9, frameon=False)
    notes = []
    if len(shown) < len(order):
        notes.append(f"{len(shown)} of {len(order)} shown, the highest and lowest")
    if len(order) < len(last):
        notes.append(f"{len(last) - len(order)} undefined")
    title = f"{metric} of each category on {split}, with 95 % intervals"
    figure.suptitle("\n".join([title, *filter(None, ["; ".join(notes)])]), fontsize=11, fontweight="bold")
    return figure


def style(place: int, num: int) -> tuple[str, str, str]:
    """Colour, marker and line of one of several models."""
    return (BLUE, "o", "-") if place == num - 1 else OTHERS[place % MOST_OTHERS]


def precision_recall_and_roc(
    categories: Mapping[str, Mapping[str, Float[np.ndarray, "3 _"]]],
    names: Sequence[str],
    *,
    split: str,
    num_categories: int,
    points: Points | None = None,
) -> Figure:
    """For each category precision over recall, and beside it recall over false positive rate.

    Args:
        categories: name -> model's name -> [3 k] recall, precision and false positive rate in [0, 1], of falling
            thresholds; models that do not give the category are left out.
        names: of the models, in the order of the legend; the last one is drawn as what it is all about.
        split: the images scored.
        num_categories: of which these are some.
        points: category -> reader's name -> recall, precision and false positive rate of what a person decided.
    """
    people = list(dict.fromkeys(name for each in (points or {}).values() for name in each))
    drawn = {name: models for name, models in categories.items() if models}
    if not drawn:
        return only_text(f"No category of {split} has known positives and negatives, so there is no curve.")
    pairs = 1 if len(drawn) == 1 else 2 if len(drawn) <= 8 else 3
    rows = -(-len(drawn) // pairs)
    columns = min(len(names) + len(people), 2 * pairs)
    more = 0.2 * ((len(names) + len(people) - 1) // columns)  # inches of further lines of the legend
    width, height = 4.9 * pairs, 2.2 * rows + 0.95 + more
    figure = Figure(figsize=(width, height))
    bottom, top = (0.6 + more) / height, 1 - 0.75 / height
    grid = figure.add_gridspec(
        rows, 2 * pairs, left=0.5 / width, right=1 - 0.15 / width, bottom=bottom, top=top, hspace=0.6, wspace=0.42
    )
    for place, (name, models) in enumerate(drawn.items()):
        row, pair = divmod(place, pairs)
        left, right = (figure.add_subplot(grid[row, 2 * pair + side]) for side in (0, 1))
        draw_curves(left, right, models, names)
        for reader, (recall, precision, false) in (points or {}).get(name, {}).items():
            looks = point_style(people.index(reader))
            left.scatter([100 * recall], [100 * precision], **looks)
            right.scatter([100 * false], [100 * recall], **looks)
        framed(left, "recall (%)", "precision (%)")
        framed(right, "false positive rate (%)", "recall (%)")
        left.set_title(short(name, 34), fontsize=9.5, loc="left", fontweight="bold", color=INK, parse_math=False)
    why = "those with the most known positives" if len(drawn) == MOST_CURVES else "where labels of both kinds are known"
    some = f"{len(drawn)} of {num_categories:,} categories, {why}" if len(drawn) < num_categories else ""
    title = f"Precision and recall, and ROC, on {split}"
    figure.suptitle(f"{title}\n{some}" if some else title, fontsize=11, fontweight="bold", y=1 - 0.08 / height)
    name_lines(figure, names, people, columns)
    return figure


def draw_curves(left: Axes, right: Axes, models: Mapping[str, Float[np.ndarray, "3 _"]], names: Sequence[str]) -> None:
    """One category's precision over recall, and its ROC, of every model."""
    right.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle="--")
    for model, curve in models.items():
        colour, _, line = style(names.index(model), len(names))
        recall, precision, false = 100 * curve
        thick = 1.8 if model == names[-1] else 1.1
        left.step(np.r_[0, recall], np.r_[precision[0], precision], color=colour, linestyle=line, linewidth=thick)
        right.plot(np.r_[0, false], np.r_[0, recall], color=colour, linestyle=line, linewidth=thick)


def name_lines(figure: Figure, names: Sequence[str], people: Sequence[str], columns: int) -> None:
    """The legend of models and people, below everything."""
    for place, name in enumerate(names):
        colour, _, line = style(place, len(names))
        figure.axes[0].plot([], [], color=colour, linestyle=line, label=in_legend(name, 24))
    for place, name in enumerate(people):
        figure.axes[0].scatter([], [], **point_style(place), label=in_legend(name, 24))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=8.5, frameon=False)


def point_style(place: int) -> dict[str, Any]:
    """How the points of one of several people look: hollow, so that curves show through."""
    looks = {"s": 30, "linewidths": 1.3, "edgecolors": INK, "facecolors": "#ffffffb0", "zorder": 4, "clip_on": False}
    return looks | {"marker": MARKERS[place % len(MARKERS)]}


def framed(ax: Axes, x: str, y: str) -> None:
    """A small square of 0 to 100 %."""
    ax.set(xlim=(0, 100), ylim=(0, 101))
    ax.set_xticks([0, 50, 100])
    ax.set_yticks([0, 50, 100])
    ax.set_xlabel(x, fontsize=8, labelpad=1)
    ax.set_ylabel(y, fontsize=8, labelpad=1)
    quiet(ax, "both")


def curves_drawn(positive: Sequence[int], negative: Sequence[int]) -> list[int]:
    """Places of the categories whose curves are drawn: of too many, those with the most positives, in order."""
    defined = [i for i, (p, n) in enumerate(zip(positive, negative, strict=True)) if min(p, n) > 0]
    return sorted(sorted(defined, key=lambda i: -positive[i])[:MOST_CURVES])
