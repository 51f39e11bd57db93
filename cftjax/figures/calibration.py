"""What the probabilities are worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from cftjax.figures.style import BLUE, GREY, INK, ORANGE, only_text, quiet
from cftjax.scores.reliability import Bins

# Of the models in their order, the last one excepted.
OTHERS = ((INK, "s"), (ORANGE, "^"), (GREY, "D"), (ORANGE, "v"), (INK, "P"))


def reliability(models: Mapping[str, Bins], *, split: str) -> Figure:
    """Observed against predicted probability over the known labels of all categories, and how many labels say so.

    Args:
        models: name in the legend -> its bins; the last is drawn as what it is all about.
        split: the images scored.
    """
    if not any(bins.count.sum() for bins in models.values()):
        return only_text(f"No label of {split} is known, so there is nothing to calibrate against.")
    figure = Figure(figsize=(6.4, 7.2), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    ax.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", zorder=1, label="perfect calibration")
    edges = np.linspace(0, 100, len(next(iter(models.values())).count) + 1)
    width = edges[1] / (len(models) + 0.5)
    for place, (name, bins) in enumerate(models.items()):
        colour, marker = (BLUE, "o") if place == len(models) - 1 else OTHERS[place % len(OTHERS)]
        filled = bins.count > 0
        label = f"{name}: calibration error (ECE) {100 * bins.calibration_error:.1f} %"
        ax.plot(
            100 * bins.predicted[filled],
            100 * bins.observed[filled],
            color=colour,
            marker=marker,
            markersize=6,
            markerfacecolor=colour if marker == "o" else "white",
            linewidth=1.6,
            clip_on=False,
            zorder=3,
            label=label,
        )
        left = edges[:-1] + (place + 0.25) * width
        face = colour if marker == "o" else "white"
        below.bar(left, bins.count, width, align="edge", color=face, edgecolor=colour, linewidth=0.9)
    if len(models) > 2:
        ax.legend(loc="best", fontsize=9, frameon=False)
    else:
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.06), fontsize=9, frameon=False)
    ax.set_ylabel("labels that are positive (%)", fontsize=9)
    ax.set(xlim=(0, 100), ylim=(0, 100))
    ax.set_title(
        f"Reliability on {split}:\nis what gets 30 % present 30 % of the time?", fontsize=11, fontweight="bold", pad=12
    )
    ax.text(98, 3, "above the dashed line: predicted too low; below: too high", ha="right", fontsize=8.5, color=GREY)
    below.set_yscale("log")
    below.set_ylim(bottom=0.8)  # so that a bar of one label shows
    below.set_ylabel("known labels\n(log scale)", fontsize=9)
    below.set_xlabel("predicted probability (%)", fontsize=9)
    quiet(ax, "both")
    quiet(below, "y")
    return figure
