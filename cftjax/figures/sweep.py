"""Scores over the share of labels that is known, and over modes of unknown labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from cftjax.figures.style import BLUE, GREY, INK, ORANGE, only_text, quiet

# Of the lines in their order, the strong one excepted.
LINES = ((GREY, "s", "--"), (INK, "D", ":"), (ORANGE, "^", "-."), (ORANGE, "v", "-."), (INK, "o", "--"))


def over_proportions(
    proportions: Sequence[float],
    scores: Mapping[str, Float[np.ndarray, "s p"]],
    *,
    strong: str,
    metric: str,
    split: str,
) -> Figure:
    """A line per method over known proportions; with several seeds their mean, and the standard deviation as bars.

    Args:
        proportions: known share of the training labels, length p.
        scores: name in the legend -> [s p] mean score of each seed, in [0, 1]; NaN where undefined.
        strong: the name of the one that it is all about.
        metric: "mAP" or "mAUC".
        split: the images scored, as the axis should call them.
    """
    if not any(np.isfinite(values).any() for values in scores.values()):
        return only_text(f"{metric} on {split} is undefined for every run.")
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    ax = figure.subplots()
    order = np.argsort(proportions)
    x = 100 * np.asarray(proportions)[order]
    lines = itertools.cycle(LINES)
    for name, values in scores.items():
        main = name == strong
        colour, marker, style = (BLUE, "o", "-") if main else next(lines)
        y = 100 * values.mean(axis=0)[order]
        spread = 100 * values.std(axis=0, ddof=1)[order] if len(values) > 1 else None
        ax.errorbar(
            x,
            y,
            yerr=spread,
            color=colour,
            marker=marker,
            markersize=7 if main else 5.5,
            markerfacecolor=colour if main else "white",
            linestyle=style,
            linewidth=2.2 if main else 1.3,
            capsize=3,
            zorder=4 if main else 3,
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


def over_modes(
    before: Mapping[str, Float[np.ndarray, "s p"]],
    after: Mapping[str, Float[np.ndarray, "s p"]],
    *,
    proportions: Sequence[float],
    metric: str,
    split: str,
) -> Figure:
    """A row per mode, from its score before CFT to that after; a panel per known proportion, on one scale.

    With several seeds, dots are their means and bars their standard deviations.

    Args:
        before: mode -> [s p] mean score of each seed and proportion, in [0, 1]; NaN where undefined.
        after: the same after CFT, for modes that were tuned.
        proportions: known share of the training labels, length p.
        metric: "mAP" or "mAUC".
        split: the images scored, as the axis should call them.
    """
    if not any(np.isfinite(values).any() for values in before.values()):
        return only_text(f"{metric} on {split} is undefined for every run.")
    order = np.argsort(proportions)
    figure = Figure(figsize=(1.6 + 2.7 * len(order), 1.6 + 0.34 * len(before)), layout="constrained")
    axes = figure.subplots(1, len(order), sharey=True, sharex=True, squeeze=False)[0]
    names = list(before)
    for ax, place in zip(axes, order, strict=True):
        for row, name in enumerate(names):
            ends = []
            for values, colour, marker, shift in ((before, GREY, "s", -0.1), (after, BLUE, "o", 0.1)):
                if name not in values:
                    continue
                some = 100 * values[name][:, place]
                spread = some.std(ddof=1) if len(some) > 1 else None
                ends.append((some.mean(), row + shift))
                filled = colour if colour == BLUE else "white"
                style = {"color": colour, "marker": marker, "markerfacecolor": filled, "markersize": 6, "capsize": 2.5}
                ax.errorbar(*ends[-1], xerr=spread, linestyle="none", linewidth=1.2, zorder=4, **style)
            if len(ends) == 2:
                ax.plot(*zip(*ends, strict=True), color="#c9d6e2", linewidth=3, zorder=2, solid_capstyle="butt")
        ax.set_title(f"{100 * proportions[place]:g} % known", fontsize=9.5)
        ax.set_xlabel(f"{metric} on {split} (%)", fontsize=9)
        quiet(ax, "x")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    for label, colour, marker in (("before CFT", GREY, "s"), ("after CFT", BLUE, "o")):
        filled = colour if colour == BLUE else "white"
        axes[0].plot([], [], color=colour, marker=marker, markerfacecolor=filled, linestyle="none", label=label)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure
