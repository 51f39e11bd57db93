"""What the probabilities are worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from cftjax.figures.style import BLUE, GREY, INK, ORANGE, in_legend, only_text, quiet
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
    figure = Figure(figsize=(12.6, 5.4 + 0.2 * (len(models) // 3)), layout="constrained")
    ax, counts = figure.subplots(1, 2, width_ratios=[1, 1.1])
    ax.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", zorder=1, label="perfect calibration")
    edges = np.linspace(0, 100, len(next(iter(models.values())).count) + 1)
    width = edges[1] / (len(models) + 0.5)
    for place, (name, bins) in enumerate(models.items()):
        colour, marker = (BLUE, "o") if place == len(models) - 1 else OTHERS[place % len(OTHERS)]
        filled = bins.count > 0
        label = f"{in_legend(name)}: calibration error (ECE) {100 * bins.calibration_error:.1f} %"
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
        counts.bar(left, bins.count, width, align="edge", color=face, edgecolor=colour, linewidth=0.9)
    # Below both: inside, it would hide the curve of some model or other.
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    ax.set_ylabel("labels that are positive (%)", fontsize=9)
    ax.set(xlim=(0, 100), ylim=(0, 100))
    ax.set_title(
        f"Reliability on {split}:\nis what gets 30 % present 30 % of the time?", fontsize=11, fontweight="bold", pad=12
    )
    for x, y, words, align in ((2, 95, "predicted too low", "left"), (98, 4, "predicted too high", "right")):
        ax.text(x, y, words, ha=align, fontsize=8.5, color=GREY)
    counts.set_title("How many labels say so\n", fontsize=11, fontweight="bold", pad=12)
    counts.set_yscale("log")
    counts.set(xlim=(0, 100))
    counts.set_ylim(bottom=0.8)  # so that a bar of one label shows
    counts.set_ylabel("known labels (log scale)", fontsize=9)
    for axes in (ax, counts):
        axes.set_xlabel("predicted probability (%)", fontsize=9)
    quiet(ax, "both")
    quiet(counts, "y")
    return figure
