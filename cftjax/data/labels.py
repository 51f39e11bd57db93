"""What unknown and uncertain labels become, and labels hidden on purpose to simulate partial ones.

Unknown: nobody said. Uncertain: the source said something, and hedged. The two stay apart until `resolve`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num, UInt64
from scipy import optimize, special

from cftjax import types
from cftjax.data import sparse

if TYPE_CHECKING:
    # Not at run time: config holds the settings of modules that import this one.
    from cftjax.config import LabelsConfig

Unknown = Literal["assume_negative", "ignore"]
Uncertain = Literal["negative", "positive", "ignore", "smooth_negative", "smooth_positive"]

# Label smoothing of CheXpert's uncertain labels: U[0, 0.3] on the negative side, U[0.55, 0.85] on the positive.
SMOOTHING = {"smooth_negative": (0.0, 0.3), "smooth_positive": (0.55, 0.85)}

ELEMENTS = 2**24  # of dense blocks of labels
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
    unknown: Unknown,
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
        if uncertain in SMOOTHING:
            low, high = SMOOTHING[uncertain]
            absolute = i if rows is None else np.asarray(rows)[i]
            targets[i, j] = low + (high - low) * _uniform(seed, absolute, j)
        else:
            targets[i, j] = uncertain == "positive"
    return targets, where


def target_sums(
    labels: types.Labels, config: LabelsConfig, seed: int, opened: Bool[np.ndarray, " n"] | None = None
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Sum and number of every category's targets as training begins with them; read in blocks.

    Modes that decide about unknown labels while training begin with all of them negative, or with none that counts.

    Args:
        labels: of a whole split.
        config: what unknown and uncertain labels become.
        seed: of the soft targets.
        opened: rows that count; all if None.
    """
    n, c = labels.shape
    unknown: Unknown = "ignore" if config.unknown in ("ignore", "selective", "curriculum") else "assume_negative"
    total, count = np.zeros(c), np.zeros(c)
    size = max(ELEMENTS // max(c, 1), 1)
    for start in range(0, n, size):
        rows = np.arange(start, min(start + size, n))
        targets, where = resolve(labels[rows], unknown=unknown, uncertain=config.uncertain, seed=seed, rows=rows)
        if opened is not None:
            where &= opened[rows, None]
        total += np.where(where, targets, 0).sum(0, dtype=np.float64)
        count += where.sum(0)
    return total, count


def hide_uniform(labels: types.Labels, known_proportion: float, seed: int = 526) -> types.Labels:
    """Keep every label with the same probability, by the generator and in the order of the published experiments.

    Row by row, every known positive in ascending order of category draws a number, then every known negative; those
    below `known_proportion` keep their label. Uncertain labels draw last, so that they do not disturb the published
    order.

    Args:
        labels: the labels of a whole split, in file order.
        known_proportion: probability that a label stays, in [0, 1].
        seed: seed of the generator; 526 is the published one.

    Returns:
        The labels, hidden ones unknown.

    Raises:
        ValueError: if known_proportion is outside [0, 1].
    """
    _check_proportion(known_proportion)
    rng = _generator(seed)
    entries = sparse.of(labels)
    known = np.flatnonzero(entries.values >= 0)
    # Stable, so that categories ascend within a row's positives and within its negatives.
    known = known[np.argsort(2 * entries.rows()[known].astype(np.int64) + (entries.values[known] == 0), kind="stable")]
    drawn = np.concatenate([known, np.flatnonzero(entries.values < 0)])
    kept = np.zeros(len(drawn), bool)
    kept[drawn] = rng.random(len(drawn)) < known_proportion
    return _stored_as(labels, entries.keep(kept))


def hide_all_but_single_positive(labels: types.Labels, seed: int = 526) -> types.Labels:
    """Keep one positive label per image, picked by the published generator in file order, and nothing else.

    Args:
        labels: the labels of a whole split, in file order.
        seed: seed of the generator; 526 is the published one.

    Returns:
        The labels; images without a positive label keep none.
    """
    entries = sparse.of(labels)
    positive = np.flatnonzero(entries.values == 1)
    counts = np.bincount(entries.rows()[positive], minlength=labels.shape[0])
    images = np.flatnonzero(counts)
    # One call draws the same numbers as one choice per image does: an image with a single positive consumes none.
    picks = _generator(seed).integers(0, counts[images])
    kept = np.zeros(len(entries.values), bool)
    kept[positive[(np.cumsum(counts) - counts)[images] + picks]] = True
    return _stored_as(labels, entries.keep(kept))


def hide_fixed_per_category(labels: types.Labels, known_per_category: int, seed: int = 526) -> types.Labels:
    """Keep the same number of positive and negative labels in every category, drawn by the published generator.

    A category keeps min(positives, negatives, known_per_category // 2) of each.

    Args:
        labels: the labels of a whole split, in file order.
        known_per_category: labels that stay per category, half of them positive.
        seed: seed of the generator; 526 is the published one.

    Returns:
        The labels, hidden and uncertain ones unknown.

    Raises:
        ValueError: if known_per_category is below 2.
    """
    if known_per_category < 2:
        raise ValueError(f"known_per_category is {known_per_category}: at least 2, one positive and one negative")
    rng = _generator(seed)
    entries = sparse.of(labels)
    known = np.flatnonzero(entries.values >= 0)
    # Category after category, of each first the positives and then the negatives, rows ascending.
    side = 2 * entries.categories[known].astype(np.int64) + (entries.values[known] == 0)
    known = known[np.argsort(side, kind="stable")]
    ends = np.cumsum(np.bincount(side, minlength=2 * labels.shape[1]))
    kept = np.zeros(len(entries.values), bool)
    sides = np.split(known, ends[:-1])
    for positive, negative in zip(sides[::2], sides[1::2], strict=True):
        number = min(len(positive), len(negative), known_per_category // 2)
        for one in (positive, negative):
            rng.shuffle(one)
            kept[one[:number]] = True
    return _stored_as(labels, entries.keep(kept))


def hide_uneven(
    labels: types.Labels,
    known_proportion: float,
    seed: int = 526,
    *,
    category_spread: float = 1.0,
    image_spread: float = 1.0,
) -> types.Labels:
    """Keep labels with probabilities that differ between categories and between images.

    The logit of a label's probability to stay is offset + category effect + image effect; effects are normal, and the
    offset makes the mean probability over the labels given equal to `known_proportion`.

    Args:
        labels: the labels of a whole split, in file order.
        known_proportion: mean probability that a label stays, in [0, 1].
        seed: seed of effects and draws.
        category_spread: standard deviation of the category effects, in logits.
        image_spread: standard deviation of the image effects, in logits.

    Returns:
        The labels, hidden ones unknown.

    Raises:
        ValueError: if known_proportion is outside [0, 1].
    """
    _check_proportion(known_proportion)
    rng = _generator(seed)
    n, c = labels.shape
    entries = sparse.of(labels)
    category, image = rng.normal(scale=category_spread, size=c), rng.normal(scale=image_spread, size=n)
    effects = (category[entries.categories] + image[entries.rows()]).astype(np.float32)
    kept = rng.random(len(effects)) < special.expit(effects + np.float32(_offset(effects, known_proportion)))
    return _stored_as(labels, entries.keep(kept))


def hide(labels: types.Labels, config: LabelsConfig) -> types.Labels:
    """Hide labels as the settings say.

    Args:
        labels: the labels of a whole split, in file order.
        config: `hide` names the way; see `hiding` for the fields it reads.

    Returns:
        The labels, hidden ones unknown.
    """
    match config.hide:
        case "none":
            return labels
        case "uniform":
            return hide_uniform(labels, config.known_proportion, config.hide_seed)
        case "single_positive":
            return hide_all_but_single_positive(labels, config.hide_seed)
        case "fixed_per_category":
            return hide_fixed_per_category(labels, config.known_per_category, config.hide_seed)
        case "uneven":
            return hide_uneven(labels, config.known_proportion, config.hide_seed)


def hiding(config: LabelsConfig) -> dict[str, str | int | float]:
    """The settings that decide which labels are hidden; those that the chosen way does not read are left out."""
    fields = {
        "none": (),
        "uniform": ("known_proportion", "hide_seed"),
        "single_positive": ("hide_seed",),
        "fixed_per_category": ("known_per_category", "hide_seed"),
        "uneven": ("known_proportion", "hide_seed"),
    }
    return {"hide": config.hide} | {name: getattr(config, name) for name in fields[config.hide]}


def _stored_as(labels: types.Labels, entries: sparse.SparseLabels) -> types.Labels:
    """Sparse where the labels given are, else dense."""
    return entries if isinstance(labels, sparse.SparseLabels) else entries[:]


def _generator(seed: int) -> np.random.Generator:
    """The published bit generator by name, for `default_rng` may change."""
    return np.random.Generator(np.random.PCG64(seed))


def _check_proportion(known_proportion: float) -> None:
    if not 0 <= known_proportion <= 1:
        raise ValueError(f"known_proportion is {known_proportion}: a share of labels must lie in [0, 1]")


def _offset(effects: Float32[np.ndarray, " k"], mean: float) -> float:
    """The number that, added to every effect, makes the mean of their sigmoids equal to `mean`."""
    if len(effects) == 0:
        return 0.0
    if mean in (0, 1):
        return np.inf if mean == 1 else -np.inf
    centre, reach = special.logit(mean), np.abs(effects).max() + 1e-3

    def excess(offset: float) -> float:
        return special.expit(effects + np.float32(offset)).mean(dtype=np.float64) - mean

    return optimize.root_scalar(excess, bracket=(centre - reach, centre + reach), xtol=1e-7).root


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
