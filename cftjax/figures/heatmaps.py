"""Where categories are seen, drawn over the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cftjax.figures.style import INK, short
from cftjax.input.preprocessing import Box

COLUMNS = 5
SIDE = 2.3  # inches


def heatmaps(
    image: UInt8[np.ndarray, "h w 3"],
    categories: Sequence[str],
    probs: Float[np.ndarray, " k"],
    maps: Float[np.ndarray, "y x k"],
    box: Box,
) -> Figure:
    """The image, and over it once per category where it is seen: red speaks for the category, blue against it.

    Args:
        image: of any size.
        categories: names, length k.
        probs: [k] calibrated.
        maps: logits by place; every map has its own scale, symmetric about 0.
        box: what of the image the places cover, in its pixels.
    """
    panels = 1 + len(categories)
    columns = min(panels, COLUMNS)
    rows = -(-panels // columns)
    height, width, _ = image.shape
    # Inches of a panel, at most SIDE either way; 0.3 above each for its title.
    tall, wide = SIDE * height / max(height, width), max(SIDE * width / max(height, width), 0.5 * SIDE)
    figure = Figure(figsize=(columns * wide + 0.1, rows * (tall + 0.3) + 0.05))
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.02, right=0.98, bottom=0.01, top=1 - 0.3 / figure.get_figheight(), wspace=0.05, hspace=0.3 / tall
    )
    for ax in grid.flat:
        ax.set_axis_off()
    _show(grid.flat[0], image, "image")
    # Continued by a place on every side, for the outer places may see less than the ends of the image.
    left, top, right, bottom = box
    y, x, _ = maps.shape
    down, across = (bottom - top) / y, (right - left) / x
    extent = (left - across - 0.5, right + across - 0.5, bottom + down - 0.5, top - down - 0.5)
    wide = np.pad(maps, ((1, 1), (1, 1), (0, 0)), mode="edge")
    for c, category in enumerate(categories):
        ax = grid.flat[c + 1]
        _show(ax, image, f"{short(category, 18)}  {100 * probs[c]:.0f} %")
        most = float(np.abs(maps[..., c]).max()) or 1.0
        ax.imshow(
            wide[..., c],
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
            alpha=0.6 * np.sqrt(np.abs(wide[..., c]) / most),
            extent=extent,
            interpolation="bilinear",
        )
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # the map goes beyond
    return figure


def _show(ax: Axes, image: UInt8[np.ndarray, "h w 3"], title: str) -> None:
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8) if title != "image" else image
    ax.imshow(grey, interpolation="nearest" if max(image.shape[:2]) < 128 else "antialiased")
    ax.set_title(title, fontsize=9, color=INK, pad=3, parse_math=False)
