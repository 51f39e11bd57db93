"""How the search went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cftjax.figures.style import BLUE, GREY, STEPS, only_text, quiet, short, signed
from cftjax.metrics import MEAN, Metric

MOST_SMALL_MULTIPLES = 20


def search_history(
    categories: Sequence[str],
    generation: Shaped[np.ndarray, " g"],
    score: Float[np.ndarray, "g c"],
    *,
    metric: Metric,
) -> Figure:
    """The best validation score so far, its mean on the left and every tuned category's gain on the right.

    Args:
        categories: names, length c.
        generation: [g] ascending; 0 is the head the search began with.
        score: [g c] in [0, 1]; NaN once a category has stopped, and throughout if it was not tuned.
        metric: "AP" or "AUROC".
    """
    tuned = np.flatnonzero(~np.isnan(score).all(axis=0))
    if len(tuned) == 0:
        return only_text("No category could be tuned, so there was no search.")
    stopped = np.array([np.flatnonzero(~np.isnan(column))[-1] for column in score[:, tuned].T])
    ran = stopped.max() + 1
    generation, score = generation[:ran], 100 * score[:ran, tuned]
    filled = np.fmax.accumulate(score, axis=0)
    gain = filled - filled[0]
    few = len(tuned) <= MOST_SMALL_MULTIPLES
    columns = min(5, int(np.ceil(np.sqrt(1.5 * len(tuned)))))
    rows = -(-len(tuned) // columns) if few else 1
    widths = [4.2, max(1.75 * columns, 4.6) if few else 6.0]
    figure = Figure(figsize=(sum(widths), max(4.2, 0.6 + 1.45 * rows)), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=widths, wspace=0.04)[0]
    _mean_history(left.subplots(), generation, filled.mean(axis=1), metric, len(tuned))
    names = [categories[i] for i in tuned.tolist()]
    if few:
        axes = right.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        _small_multiples(axes, generation, gain, filled[-1], stopped, names)
        right.supxlabel("generation", fontsize=9)
        right.supylabel(f"gain in validation {metric} (points)", fontsize=9)
        right.suptitle(f"Gain of each category, and the {metric} reached (%)", fontsize=10.5, fontweight="bold")
    else:
        _gain_lines(right.subplots(), generation, gain, stopped, names, metric)
    return figure


def _mean_history(
    ax: Axes, generation: Shaped[np.ndarray, " g"], mean: Float[np.ndarray, " g"], metric: Metric, tuned: int
) -> None:
    ax.plot(generation, mean, color=BLUE, linewidth=2.4)
    for index, where, align in ((0, (5, -6), "left"), (-1, (-4, 5), "right")):
        ax.scatter(generation[index], mean[index], s=26, color=BLUE, zorder=3)
        ax.annotate(
            f"{mean[index]:.1f}",
            (float(generation[index]), float(mean[index])),
            xytext=where,
            textcoords="offset points",
            ha=align,
            va="bottom" if index else "top",
            fontsize=10,
            fontweight="bold",
            color=BLUE,
        )
    ax.margins(y=0.12)
    ax.set_title(f"Search: mean validation {metric}\nof {tuned} tuned categories", fontsize=10.5, fontweight="bold")
    ax.set_xlabel("generation", fontsize=9)
    ax.set_ylabel(f"{MEAN[metric]} on validation, best so far (%)", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    quiet(ax, "both")


def _small_multiples(
    axes: np.ndarray,
    generation: Shaped[np.ndarray, " g"],
    gain: Float[np.ndarray, "g k"],
    reached: Float[np.ndarray, " k"],
    stopped: Shaped[np.ndarray, " k"],
    names: Sequence[str],
) -> None:
    for index, ax in enumerate(axes.flat):
        if index >= len(names):
            ax.set_visible(False)
            continue
        ax.tick_params(labelbottom=index + axes.shape[1] >= len(names))
        end = stopped[index]
        ax.plot(generation[: end + 1], gain[: end + 1, index], color=BLUE, linewidth=1.8)
        ax.plot(generation[end:], gain[end:, index], color=BLUE, linewidth=1, linestyle=":")
        ax.scatter(generation[end], gain[end, index], s=14, color=BLUE, zorder=3)
        title = f"{short(names[index], 14)}  {reached[index]:.1f}"
        ax.set_title(title, fontsize=8.5, loc="left", pad=3, parse_math=False)
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=STEPS))
        ax.yaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        quiet(ax, "y")


def _gain_lines(
    ax: Axes,
    generation: Shaped[np.ndarray, " g"],
    gain: Float[np.ndarray, "g k"],
    stopped: Shaped[np.ndarray, " k"],
    names: Sequence[str],
    metric: str,
) -> None:
    """Thin lines, each until its category stopped; the largest gains are named at the right."""
    order: list[int] = np.argsort(-gain[-1], kind="stable").tolist()
    named = order[: min(8, int((gain[-1] > 0).sum()))]
    for index in order[::-1]:
        end = stopped[index]
        colour, width, alpha = (BLUE, 1.3, 0.9) if index in named else (GREY, 0.8, 0.45)
        ax.plot(generation[: end + 1], gain[: end + 1, index], color=colour, linewidth=width, alpha=alpha)
        ax.scatter(generation[end], gain[end, index], s=7, color=colour, alpha=alpha)
    if len(named) == 0:
        ax.set_ylim(-0.5, 1)
    level, step = np.inf, 0.042 * float(np.diff(ax.get_ylim())[0])
    for index in named:
        level = min(float(gain[-1, index]), level - step)
        text = f"{short(names[index], 18)}  {signed(gain[-1, index])}"
        right = ax.get_yaxis_transform()
        ax.text(1.01, level, text, transform=right, va="center", fontsize=8.5, color=BLUE, parse_math=False)
    middle = float(np.median(gain[-1]))
    ax.set_title(
        f"Gain of each of the {len(names)} categories until it stopped (median {signed(middle)})",
        fontsize=10.5,
        fontweight="bold",
    )
    ax.set_xlabel("generation", fontsize=9)
    ax.set_ylabel(f"gain in validation {metric} (points)", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=STEPS))
    quiet(ax, "both")
