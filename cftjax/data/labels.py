"""What unknown and uncertain labels become.

Unknown: nobody said. Uncertain: the source said something, and hedged. The two stay apart until `resolve`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num, UInt64

from cftjax import types
from cftjax.config import LabelsConfig
from cftjax.data import sparse
from cftjax.unknowns import Simple

Uncertain = Literal["negative", "positive", "ignore", "smooth_negative", "smooth_positive"]

# Label smoothing of CheXpert's uncertain labels: U[0, 0.3] on the negative side, U[0.55, 0.85] on the positive.
SMOOTHING = {"smooth_negative": (0.0, 0.3), "smooth_positive": (0.55, 0.85)}

MAX_NAMED = 5  # bad cells an error message names; the rest are counted


def from_values(values: Num[np.ndarray, "n c"], uncertain_value: float | int | None = -1) -> types.Labels:
    """Read labels written as numbers: 1 present, 0 absent, NaN unknown.

    Args:
        values: one number per image and category.
        uncertain_value: the number that means uncertain; None if no number does.

    Returns:
        The labels, False wherever they are not known.

    Raises:
        ValueError: if any other number occurs; the first few are named by row, column and value.
    """
    present, absent, unknown = values == 1, values == 0, np.isnan(values)
    uncertain = np.zeros(values.shape, bool) if uncertain_value is None else values == uncertain_value
    bad = ~(present | absent | unknown | uncertain)
    if bad.any():
        cells = [f"row {i}, column {j} is {values[i, j]:g}" for i, j in np.argwhere(bad)[:MAX_NAMED]]
        more = np.count_nonzero(bad) - len(cells)
        allowed = "1, 0 and NaN" if uncertain_value is None else f"1, 0, {uncertain_value:g} and NaN"
        raise ValueError(
            f"labels other than {allowed}: {'; '.join(cells)}{f'; and {more} more' if more else ''}. "
            "Correct them, leave unknown labels blank (NaN), or name the value that means uncertain"
        )
    return types.Labels(labels=present, known=present | absent, uncertain=uncertain)


def to_values(labels: types.Labels) -> Float32[np.ndarray, "n c"]:
    """Write labels as numbers, the inverse of `from_values`: 1, 0, -1 for uncertain and NaN for unknown."""
    values = np.where(labels.known, labels.labels, np.float32(np.nan)).astype(np.float32)
    return np.where(labels.uncertain, np.float32(-1), values)


def resolve(
    labels: types.Labels,
    *,
    unknown: Simple,
    uncertain: Uncertain,
    seed: int,
    rows: Int[np.ndarray, " n"] | None = None,
) -> tuple[Float32[np.ndarray, "n c"], Bool[np.ndarray, "n c"]]:
    """Turn labels into targets of a loss.

    Args:
        labels: the labels of some rows of a split.
        unknown: unknown labels become negative, or do not count.
        uncertain: uncertain labels become negative, positive, do not count, or become a soft target, drawn once per
            label from `SMOOTHING`'s range.
        seed: seed of the soft targets.
        rows: the rows' numbers in the split; 0 to n - 1 if None. A soft target depends on seed, row and column alone,
            so a label has the same one in every batch and epoch.

    Returns:
        Targets in [0, 1], and where they count; targets that do not count are 0.
    """
    targets = (labels.labels & labels.known).astype(np.float32)
    where = labels.known.copy()
    if unknown == "assume_negative":
        where |= ~labels.uncertain
    if uncertain != "ignore":
        where |= labels.uncertain
        i, j = np.nonzero(labels.uncertain)
        targets[i, j] = _of_uncertain(uncertain, seed, i if rows is None else np.asarray(rows)[i], j)
    return targets, where


def target_sums(
    labels: types.Labels, config: LabelsConfig, seed: int, opened: Bool[np.ndarray, " n"] | None = None
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Sum and number of every category's targets as training begins with them, from the labels that were given alone.

    Modes that decide about unknown labels while training begin with all of them negative, or with none that counts.

    Args:
        labels: of a whole split.
        config: what unknown and uncertain labels become.
        seed: of the soft targets.
        opened: rows that count; all if None.
    """
    entries, n = sparse.of(labels), labels.shape[0]
    rows, categories, values = entries.rows(), entries.categories, entries.values
    if opened is not None:
        n, there = np.count_nonzero(opened), opened[rows]
        rows, categories, values = rows[there], categories[there], values[there]
    targets, hedged = (values == 1).astype(np.float32), values < 0
    if config.uncertain != "ignore":
        targets[hedged] = _of_uncertain(config.uncertain, seed, rows[hedged], categories[hedged])

    def over_categories(some: np.ndarray, weights: np.ndarray | None = None) -> Float[np.ndarray, " c"]:
        return np.bincount(categories[some], weights, minlength=labels.shape[1]).astype(np.float64)

    counted = np.ones(len(values), bool) if config.uncertain != "ignore" else ~hedged
    total, count = over_categories(counted, targets[counted]), over_categories(counted)
    if config.mode.begins == "assume_negative":
        count += n - over_categories(np.ones(len(values), bool))
    return total, count


def _of_uncertain(
    uncertain: Uncertain, seed: int, rows: Int[np.ndarray, " k"], columns: Int[np.ndarray, " k"]
) -> Float[np.ndarray, " k"] | bool:
    """Targets of uncertain labels, where they count."""
    if uncertain not in SMOOTHING:
        return uncertain == "positive"
    low, high = SMOOTHING[uncertain]
    return low + (high - low) * _uniform(seed, rows, columns)


def _uniform(seed: int, rows: Int[np.ndarray, " k"], columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Numbers in [0, 1), one per (seed, row, column): a counter-based generator, so no draw depends on another."""
    state = np.full(len(rows), seed % 2**64, np.uint64)
    for counter in (rows, columns):
        state = _scramble(_scramble(state) ^ counter.astype(np.uint64))
    return (_scramble(state) >> np.uint64(11)) * 2.0**-53


def _scramble(state: UInt64[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """One step of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
