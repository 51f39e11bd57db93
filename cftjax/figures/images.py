"""Pictures with what is true of them and what the heads say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cftjax.figures.style import BLUE, GREY, INK, ORANGE, short


def image_sheet(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    categories: Sequence[str],
    probs: Float[np.ndarray, "n c"],
    labels: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"],
    *,
    split: str,
    calibrated: bool = False,
    bars: int = 4,
) -> Figure:
    """Images with their true labels above and the highest probabilities below, each marked right, wrong or unknown.

    Args:
        images: n uint8 pictures of any size.
        categories: names, length c.
        probs: [n c] in [0, 1].
        labels: [n c], read only where known.
        known: [n c].
        split: the images' split.
        calibrated: whether the probabilities are; else the title calls them sigmoids.
        bars: how many of the highest probabilities each image shows.
    """
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    # Inches; of few images as wide as the title is.
    width, height, top = max(2.35 * columns, 7.4), 3.1 * rows + 0.6, 0.6
    kind = "highest probabilities" if calibrated else "highest sigmoids, uncalibrated"
    figure = Figure(figsize=(width, height))
    # Placed by hand, for a layout engine takes seconds over so many axes. Of each three rows the first holds the title.
    grid = figure.add_gridspec(
        3 * rows,
        columns,
        height_ratios=[0.36, 1.85, 0.85] * rows,
        left=0.08 / width,
        right=1 - 0.08 / width,
        bottom=0.1 / height,
        top=1 - top / height,
        hspace=0.04,
        wspace=0.05,
    )
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        picture, below = (figure.add_subplot(grid[3 * row + part, column]) for part in (1, 2))
        _picture(picture, image, [categories[c] for c in np.flatnonzero(labels[i] & known[i]).tolist()])
        _bars(below, categories, probs[i], labels[i], known[i], bars)
    figure.suptitle(
        f"{len(images)} {split} images drawn at random: true labels above, {kind} (%) below\n"
        "✓ present      ✗ absent      ? not known",
        fontsize=11.5,
        fontweight="bold",
        y=1 - 0.1 / height,
    )
    return figure


def _picture(ax: Axes, image: UInt8[np.ndarray, "h w 3"], present: Sequence[str]) -> None:
    ax.set_axis_off()
    ax.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 128 else "antialiased")
    lines, line = [], ""
    for name in present:
        name = short(name, 20)
        if line and len(line) + len(name) > 24:
            lines.append(line + ",")
            line = name
        else:
            line = f"{line}, {name}" if line else name
    lines.append(line or "none known present")
    text = "\n".join(lines[:2]) + (" …" if len(lines) > 2 else "")
    ax.set_title(text, fontsize=9, color=INK, pad=3, parse_math=False)


def _bars(
    ax: Axes,
    categories: Sequence[str],
    probs: Float[np.ndarray, " c"],
    labels: Bool[np.ndarray, " c"],
    known: Bool[np.ndarray, " c"],
    bars: int,
) -> None:
    ax.set_axis_off()
    top: list[int] = np.argsort(-probs, kind="stable")[:bars].tolist()
    for row, c in enumerate(top):
        colour, sign = (GREY, "?") if not known[c] else (BLUE, "✓") if labels[c] else (ORANGE, "✗")
        ax.barh(row, 1, height=0.82, color="#f1f1f1")
        ax.barh(row, probs[c], height=0.82, color=colour, alpha=0.35)
        ax.text(0.02, row, f"{sign} {short(categories[c], 17)}", va="center", fontsize=8.5, color=INK, parse_math=False)
        ax.text(0.98, row, f"{100 * probs[c]:.0f}", va="center", ha="right", fontsize=8.5, color=INK)
    ax.set(xlim=(0, 1), ylim=(max(bars, len(top)) - 0.4, -0.6))
