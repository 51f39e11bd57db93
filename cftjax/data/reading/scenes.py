"""The drawing of the digits data: paper, clutter and handwriting of four sites, vectorised over blocks of scenes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

NUM_CATEGORIES = 10
NUM_SITES = 4
# Shares of scenes with one, two and three categories.
COUNT_SHARES = (0.55, 0.3, 0.15)
MAX_DIGITS = 6  # places for digits; scenes fill up to four: three categories, and sometimes one of them twice
# Uneven on purpose: real categories are.
CATEGORY_WEIGHTS = np.geomspace(0.8, 1.25, NUM_CATEGORIES)[[3, 8, 5, 1, 9, 0, 6, 4, 2, 7]]
# Scenes are drawn in blocks, each with its own generator: bounded memory, and a scene does not depend on the number.
BLOCK = 256
# Side of the smooth, enlarged source digit that scenes are sampled from, in pixels.
SOURCE_SIZE = 32

# What each site looks like. RGB of paper and ink in [0, 1]: dark on light everywhere, so that what is learned of
# writing on one site helps on the others.
PAPER = np.array([[0.95, 0.93, 0.86], [0.80, 0.64, 0.46], [0.66, 0.82, 0.68], [0.74, 0.80, 0.96]], np.float32)
INK = np.array([[0.13, 0.17, 0.48], [0.16, 0.09, 0.06], [0.04, 0.22, 0.14], [0.60, 0.10, 0.16]], np.float32)
# Share of the light that printed lines take, standard deviation of the grain, and amplitude of uneven lighting.
RULES = np.array([0.25, 0.0, 0.05, 0.2], np.float32)
GRAIN = np.array([0.02, 0.06, 0.03, 0.02], np.float32)
SHADE = np.array([0.10, 0.15, 0.25, 0.12], np.float32)
SQUARED_SITE = 3


class Sources(NamedTuple):
    """Source digits of one split.

    Attributes:
        ink: [m 32 32] coverage by ink in [0, 1], smooth.
        category: [m] in 0..9.
        ids: [m] rows of scikit-learn's digits.
    """

    ink: Float32[np.ndarray, "m y x"]
    category: Int[np.ndarray, " m"]
    ids: Int[np.ndarray, " m"]


def draw_split(
    sources: Sources, size: int, side: int, seed: tuple[int, ...]
) -> tuple[UInt8[np.ndarray, "n y x 3"], Bool[np.ndarray, "n 10"], Int[np.ndarray, " n"]]:
    """Scenes, their complete labels and their sites, [n]."""
    blocks = [draw_block(sources, side, np.random.default_rng([*seed, start])) for start in range(0, size, BLOCK)]
    images, labels, sites = (np.concatenate(part)[:size] for part in zip(*blocks, strict=True))
    return images, labels, sites


def draw_block(
    sources: Sources, side: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "n y x 3"], Bool[np.ndarray, "n 10"], Int[np.ndarray, " n"]]:
    """One block of scenes: what is written and where, then ink over paper."""
    n = BLOCK
    sites = rng.integers(NUM_SITES, size=n)
    count = 1 + rng.choice(len(COUNT_SHARES), size=n, p=COUNT_SHARES)
    # Distinct categories by Gumbel's trick; the digit after the last one sometimes repeats the first category.
    gumbel = rng.gumbel(size=(n, NUM_CATEGORIES)) + np.log(CATEGORY_WEIGHTS)
    category = np.argsort(-gumbel, axis=1)[:, :MAX_DIGITS]
    twice = rng.random(n) < 0.15
    category[np.arange(n), count] = category[:, 0]
    present = np.arange(MAX_DIGITS)[None, :] < (count + twice)[:, None]
    labels = np.zeros((n, NUM_CATEGORIES), bool)
    np.put_along_axis(labels, category, present, axis=1)
    labels[np.arange(n), category[:, 0]] = True

    digit_size = side * rng.uniform(0.45, 0.6, (n, MAX_DIGITS)) * (1 - 0.07 * (count + twice)[:, None])
    centre = place(digit_size, present, side, rng)
    # All ink of a scene has one colour, so layers of it multiply: one blend of paper and ink is the same as many.
    bare = strokes(n, side, rng)
    for slot in range(MAX_DIGITS):
        rows = np.flatnonzero(present[:, slot])
        write(bare, rows, sources, category[rows, slot], digit_size[rows, slot], centre[rows, slot], rng)
    sheet = paper(sites, side, rng)
    tint = (PAPER[sites] + uniform(rng, -0.07, 0.07, n, 3))[:, :, None, None]
    ink = (INK[sites] + uniform(rng, -0.06, 0.06, n, 3))[:, :, None, None]
    scene = (tint * sheet[:, None] - ink) * bare[:, None] + ink
    scene *= uniform(rng, 0.75, 1.1, n, 1, 1, 1)
    scene += (GRAIN[sites][:, None, None] * rng.standard_normal((n, side, side), np.float32))[:, None]
    pixels = (255 * np.clip(scene, 0, 1) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels, sites


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Float32[np.ndarray, "*shape"]:
    """Uniform draws in float32."""
    return np.float32(low) + np.float32(high - low) * rng.random(shape, np.float32)


def place(
    digit_size: Float[np.ndarray, "n k"], present: Bool[np.ndarray, "n k"], side: int, rng: np.random.Generator
) -> Float[np.ndarray, "n k 2"]:
    """Centres (y, x) in pixels: of 24 places tried for each digit the one that covers earlier digits least."""
    n, slots = digit_size.shape
    centre = np.zeros((n, slots, 2))
    for slot in range(slots):
        half = digit_size[:, slot, None, None] / 2
        tries = half + rng.random((n, 24, 2)) * (side - 2 * half)
        # Handwriting is narrower than its box, so boxes may touch: the reach is 0.85 of it.
        reach = 0.85 * (digit_size[:, None, :slot] + digit_size[:, slot, None, None]) / 2
        gap = np.abs(tries[:, :, None] - centre[:, None, :slot])
        overlap = np.maximum(reach[..., None] - gap, 0).prod(axis=-1) * present[:, None, :slot]
        centre[:, slot] = tries[np.arange(n), overlap.sum(axis=-1).argmin(axis=1)]
    return centre


def paper(sites: Int[np.ndarray, " n"], side: int, rng: np.random.Generator) -> Float32[np.ndarray, "n y x"]:
    """How light the paper is: a gradient, broad stains and, on some sites, rules or squares."""
    n = len(sites)
    position = np.linspace(-1, 1, side, dtype=np.float32)
    y, x = position[None, :, None], position[None, None, :]
    light = uniform(rng, -1.0, 1.0, n, 1, 1) * y + uniform(rng, -1.0, 1.0, n, 1, 1) * x
    for _ in range(2):
        light += 0.5 * np.sin(uniform(rng, -3.0, 3.0, n, 1, 1) * y + uniform(rng, -3.0, 3.0, n, 1, 1) * x)
    light *= SHADE[sites][:, None, None]
    pixel = np.arange(side, dtype=np.float32) * (40 / side)
    pitch = uniform(rng, 6.0, 10.0, n, 1)
    rows, columns = (np.mod(pixel + uniform(rng, 0.0, 10.0, n, 1), pitch) < 1 for _ in range(2))
    squared = (sites == SQUARED_SITE)[:, None]
    ruled = rows[:, :, None] | (columns & squared)[:, None, :]
    return 1 + light - RULES[sites][:, None, None] * ruled


def strokes(n: int, side: int, rng: np.random.Generator) -> Float32[np.ndarray, "n y x"]:
    """Share of the paper left bare by three short strokes a scene: ink that is not writing."""
    pixel = np.arange(side, dtype=np.float32)
    y, x = pixel[None, :, None], pixel[None, None, :]
    bare = np.ones((n, side, side), np.float32)
    for _ in range(3):
        start_y, start_x = uniform(rng, 0.0, float(side), 2, n, 1, 1)
        angle = uniform(rng, 0.0, 2 * np.pi, n, 1, 1)
        length = side * uniform(rng, 0.08, 0.3, n, 1, 1)
        width = side / 40 * uniform(rng, 0.5, 1.0, n, 1, 1)
        strength = uniform(rng, 0.2, 0.6, n, 1, 1)
        dy, dx = y - start_y, x - start_x
        along = np.clip(np.sin(angle) * dy + np.cos(angle) * dx, 0, length)
        distance = np.sqrt((dy - along * np.sin(angle)) ** 2 + (dx - along * np.cos(angle)) ** 2)
        bare *= 1 - strength * np.clip(width + 0.5 - distance, 0, 1)
    return bare


def write(
    bare: Float32[np.ndarray, "n y x"],
    rows: Int[np.ndarray, " m"],
    sources: Sources,
    category: Int[np.ndarray, " m"],
    digit_size: Float[np.ndarray, " m"],
    centre: Float[np.ndarray, "m 2"],
    rng: np.random.Generator,
) -> None:
    """Write one digit into each of some scenes, turned by up to 9 degrees, slanted, and pressed more or less hard.

    Args:
        bare: share of the paper still bare; changed in place.
        rows: the scenes to write into.
        sources: the handwriting to draw from.
        category: the digit for each scene.
        digit_size: height in pixels.
        centre: (y, x) in pixels.
        rng: of the choice among the sources of a category, of form and of pressure.
    """
    m, side = len(rows), bare.shape[1]
    by_category = np.argsort(sources.category, kind="stable")
    first = np.searchsorted(sources.category[by_category], np.arange(NUM_CATEGORIES + 1))
    available = first[category + 1] - first[category]
    chosen = by_category[first[category] + (rng.random(m) * available).astype(int)]
    turn, slant = uniform(rng, -0.15, 0.15, 2, m, 1, 1)
    narrow = uniform(rng, 0.85, 1.15, m, 1, 1)
    pressure = uniform(rng, 0.7, 1.0, m, 1, 1)
    # Only a window that holds the largest digit, turned, is sampled; it is moved to lie within the scene.
    window = min(side, int(0.65 * side) + 2)
    corner = np.clip(np.round(centre - window / 2).astype(int), 0, side - window)
    y = corner[:, 0, None, None] + np.arange(window)[None, :, None]
    x = corner[:, 1, None, None] + np.arange(window)[None, None, :]
    zoom = (SOURCE_SIZE / digit_size)[:, None, None]
    dy = ((y - centre[:, 0, None, None]) * zoom).astype(np.float32)
    dx = ((x - centre[:, 1, None, None]) * zoom).astype(np.float32)
    middle = np.float32((SOURCE_SIZE - 1) / 2)
    source_y = np.cos(turn) * dy - np.sin(turn) * dx + middle
    source_x = (np.sin(turn) * dy + np.cos(turn) * dx) * narrow + slant * dy + middle
    bare[rows[:, None, None], y, x] *= 1 - pressure * sample(sources.ink[chosen], source_y, source_x)


def sample(
    images: Float32[np.ndarray, "m a a"], y: Float32[np.ndarray, "m h w"], x: Float32[np.ndarray, "m h w"]
) -> Float32[np.ndarray, "m h w"]:
    """Bilinear samples of each image at (y, x) in pixels; 0 outside."""
    m, size, _ = images.shape
    # One row and column of zeros before and two after: every clipped position has its four neighbours.
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2))).reshape(-1)
    y, x = np.clip(y + 1, 0, size + 1), np.clip(x + 1, 0, size + 1)
    top, left = np.floor(y), np.floor(x)
    y, x = y - top, x - left
    corner = top.astype(np.intp) * (size + 3) + left.astype(np.intp)
    index = np.arange(m)[:, None, None] * (size + 3) ** 2 + corner
    above = padded[index] * (1 - x) + padded[index + 1] * x
    below = padded[index + size + 3] * (1 - x) + padded[index + size + 4] * x
    return above * (1 - y) + below * y
