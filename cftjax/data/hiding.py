"""Labels hidden on purpose, to simulate partial ones on a complete set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from scipy import optimize, special

from cftjax import types
from cftjax.config import LabelsConfig
from cftjax.data import sparse


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


def hide_positives_first(
    labels: types.Labels,
    known_positives: float,
    known_negatives: float,
    seed: int = 526,
    *,
    category_spread: float = 1.0,
    image_spread: float = 1.0,
) -> types.Labels:
    """Keep labels as people note them: what is there far more often than what is not, some categories more than others.

    As `hide_uneven`, with shares and category effects of their own for positives and for negatives; an image that was
    looked at with care keeps more of both.

    Args:
        labels: the labels of a whole split, in file order.
        known_positives: mean probability that a positive label stays, in [0, 1].
        known_negatives: mean probability that a negative or uncertain label stays, in [0, 1].
        seed: seed of effects and draws.
        category_spread: standard deviation of the category effects, in logits.
        image_spread: standard deviation of the image effects, in logits.

    Returns:
        The labels, hidden ones unknown.

    Raises:
        ValueError: if a share is outside [0, 1].
    """
    _check_proportion(known_positives)
    _check_proportion(known_negatives)
    rng = _generator(seed)
    n, c = labels.shape
    entries = sparse.of(labels)
    image, kept = rng.normal(scale=image_spread, size=n), np.zeros(len(entries.values), bool)
    for side, share in ((entries.values == 1, known_positives), (entries.values != 1, known_negatives)):
        category = rng.normal(scale=category_spread, size=c)
        effects = (category[entries.categories[side]] + image[entries.rows()[side]]).astype(np.float32)
        kept[side] = rng.random(len(effects)) < special.expit(effects + np.float32(_offset(effects, share)))
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
        case "positives_first":
            return hide_positives_first(labels, config.known_proportion, config.known_negatives, config.hide_seed)


def hiding(config: LabelsConfig) -> dict[str, str | int | float]:
    """The settings that decide which labels are hidden; those that the chosen way does not read are left out."""
    fields = {
        "none": (),
        "uniform": ("known_proportion", "hide_seed"),
        "single_positive": ("hide_seed",),
        "fixed_per_category": ("known_per_category", "hide_seed"),
        "uneven": ("known_proportion", "hide_seed"),
        "positives_first": ("known_proportion", "known_negatives", "hide_seed"),
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
