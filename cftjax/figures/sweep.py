"""Scores over the share of labels that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from cftjax.figures.style import BLUE, GREY, INK, ORANGE, only_text, quiet

# Of the lines in their order, the last one excepted.
LINES = ((GREY, "s", "--"), (INK, "D", ":"), (ORANGE, "^", "-."), (ORANGE, "v", "-."))


def over_proportions(
    proportions: Sequence[float],
    scores: Mapping[str, Float[np.ndarray, "s p"]],
    *,
    metric: str,
    split: str,
) -> Figure:
    """A line per method over known proportions; with several seeds their mean, and the standard deviation as bars.

    Args:
        proportions: known share of the training labels, length p.
        scores: name in the legend -> [s p] mean score of each seed, in [0, 1]; NaN where undefined. The last one is
            drawn as what it is all about.
        metric: "mAP" or "mAUC".
        split: the images scored, as the axis should call them.
    """
    if not any(np.isfinite(values).any() for values in scores.values()):
        return only_text(f"{metric} on {split} is undefined for every run.")
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    ax = figure.subplots()
    order = np.argsort(proportions)
    x = 100 * np.asarray(proportions)[order]
    for place, (name, values) in enumerate(scores.items()):
        last = place == len(scores) - 1
        colour, marker, style = (BLUE, "o", "-") if last else LINES[place % len(LINES)]
        y = 100 * values.mean(axis=0)[order]
        spread = 100 * values.std(axis=0, ddof=1)[order] if len(values) > 1 else None
        ax.errorbar(
            x,
            y,
            yerr=spread,
            color=colour,
            marker=marker,
            markersize=7 if last else 5.5,
            markerfacecolor=colour if last else "white",
            linestyle=style,
            linewidth=2.2 if last else 1.3,
            capsize=3,
            zorder=4 if last else 3,
            label=name,
        )
    ax.set_xlim(0, 100)
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.set_xlabel("known training labels (%)", fontsize=9)
    ax.set_ylabel(f"{metric} on {split} (%)", fontsize=9)
    ax.set_title(f"{metric} on {split} by the share of training labels known", fontsize=11, fontweight="bold")
    ax.legend(fontsize=9, frameon=False)
    quiet(ax, "both")
    return figure
