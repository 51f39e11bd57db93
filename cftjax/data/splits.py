"""From the splits as files give them to those of a run: labels hidden on train, validation carved if there is none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from scipy.sparse import csr_array

from cftjax import types
from cftjax.config import LabelsConfig, SplitConfig
from cftjax.data import hiding, sparse


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set ready for a run.

    Attributes:
        dataset: train with labels hidden, validation and test complete.
        validation_rows: rows of the data set's own train split that became validation, ascending; None if none did.
        test_rows: those that became test.
    """

    dataset: types.Dataset
    validation_rows: Int[np.ndarray, " v"] | None
    test_rows: Int[np.ndarray, " t"] | None = None


def prepare(dataset: types.Dataset, labels_config: LabelsConfig, split_config: SplitConfig) -> Prepared:
    """Hide labels of the train split, then carve from it the test split asked for, and validation if there is none.

    The masks are drawn over the whole train split in file order, so that they do not depend on the carving; validation
    and test keep every label the data set has.

    Args:
        dataset: the splits as the files give them.
        labels_config: which labels are hidden.
        split_config: how validation and test are carved.

    Returns:
        The data set, whose fingerprint reflects the settings of hiding and carving, and the rows carved.

    Raises:
        ValueError: if a split is empty, or would be after carving, or there is a test split where one is asked for.
    """
    if "train" not in dataset.splits:
        raise ValueError(f"the data set has no train split, only {', '.join(dataset.splits) or 'none at all'}")
    for name, records in dataset.splits.items():
        if len(records) == 0:
            raise ValueError(f"the {name} split is empty: check the paths and filters of the data set")
    if not 0 <= split_config.validation_share < 1:
        raise ValueError(f"validation_share is {split_config.validation_share}: it must be at least 0 and below 1")

    complete = dataset.splits["train"]
    splits = dict(dataset.splits)
    splits["train"] = dataclasses.replace(complete, labels=hiding.hide(complete.labels, labels_config))
    settings = {"data": dataset.fingerprint, **hiding.hiding(labels_config)}
    train_rows = np.arange(len(complete))
    validation_rows = test_rows = None
    # Of the settings only what a draw depends on: what is merely refused or not must not make other data of the same.
    if split_config.test_share or split_config.folds:
        if "test" in splits:
            raise ValueError("the data set has a test split of its own: leave out --split.test-share and --split.folds")
        test_rows, drawn = draw_test(complete, split_config)
        settings |= drawn | {"seed": split_config.seed}
        train_rows = np.setdiff1d(train_rows, test_rows, assume_unique=True)
        splits["test"] = select(complete, test_rows)
    if "validation" not in splits and split_config.validation_share > 0:
        settings |= {"validation_share": split_config.validation_share, "seed": split_config.seed}
        share = split_config.validation_share
        validation_rows = train_rows[_carve(select(complete, train_rows), share, split_config.seed, "validation")]
        train_rows = np.setdiff1d(train_rows, validation_rows, assume_unique=True)
        splits["validation"] = select(complete, validation_rows)
    if len(train_rows) < len(complete):
        splits["train"] = select(splits["train"], train_rows)
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    ordered = {name: splits[name] for name in types.SPLITS if name in splits}
    return Prepared(dataclasses.replace(dataset, splits=ordered, fingerprint=fingerprint), validation_rows, test_rows)


def draw_test(train: types.Records, config: SplitConfig) -> tuple[Int[np.ndarray, " t"], dict[str, float | int]]:
    """The rows of train that become test, and the settings that they depend on.

    Parts of a cross-validation are dealt one after the other, each from what the ones before have left, so that every
    row is in one of them.
    """
    if not config.folds:
        return _carve(train, config.test_share, config.seed, "test"), {"test_share": config.test_share}
    fold, left = config.fold or 0, np.arange(len(train))
    for earlier in range(fold):
        part = left[_carve(select(train, left), 1 / (config.folds - earlier), config.seed, "test")]
        left = np.setdiff1d(left, part, assume_unique=True)
    if fold < config.folds - 1:
        left = left[_carve(select(train, left), 1 / (config.folds - fold), config.seed, "test")]
    return left, {"folds": config.folds, "fold": fold}


def select(records: types.Records, rows: Int[np.ndarray, " m"]) -> types.Records:
    """The records of some rows, in the order given.

    Args:
        records: a split.
        rows: rows of `records`; row i of the result is row rows[i].

    Returns:
        A split of m images.
    """
    return dataclasses.replace(
        records,
        image=SelectedImage(records.image, rows),
        labels=records.labels.take(rows),
        names=[records.names[int(row)] for row in rows],
        groups=None if records.groups is None else records.groups[rows],
    )


def stratify(
    positive: Bool[np.ndarray, "n c"] | csr_array,
    share: float,
    seed: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " v"]:
    """Draw a share of the rows that holds that share of every category's positives, whole groups together.

    Iterative stratification: the category with the fewest positives left is dealt out first, each of its images to the
    side that still wants most of that category, ties to the side that wants most images, then by chance.
    Source: Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1.

    Args:
        positive: [n c] where each category is present; sparse where dense would be too large.
        share: the share to draw, in (0, 1).
        seed: seed of the order in which images are dealt, and of ties.
        groups: a mark shared by the rows that must stay together; None if each row stands alone.

    Returns:
        The rows drawn, ascending.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    shape: Any = positive.shape  # SciPy declares that it may be None
    n, c = shape
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(unit)
    rows, categories = positive.nonzero()
    # Positives per unit and category; duplicates are summed. Sparse, for most images show few of many categories.
    counts = csr_array((np.ones(len(rows), np.int64), (unit[rows], categories)), shape=(len(sizes), c))
    by_category = counts.tocsc()

    shares = np.array([1 - share, share])
    wanted = shares[:, None] * counts.sum(axis=0)
    wanted_images = shares * n
    left = counts.sum(axis=0)
    side = np.full(len(sizes), -1)

    def deal(units: np.ndarray, per_unit: np.ndarray, want: Float[np.ndarray, " 2"]) -> None:
        order = rng.permutation(len(units))
        units = units[order]
        side[units] = _deal(per_unit[order], sizes[units], want, wanted_images, rng)
        for s in (0, 1):
            dealt = units[side[units] == s]
            wanted[s] -= counts[dealt].sum(axis=0)
            wanted_images[s] -= sizes[dealt].sum()
        left[:] -= counts[units].sum(axis=0)

    while left.any():
        j = np.argmin(np.where(left > 0, left, np.iinfo(left.dtype).max))
        column = slice(by_category.indptr[j], by_category.indptr[j + 1])
        units, per_unit = by_category.indices[column], by_category.data[column]
        free = side[units] < 0
        deal(units[free], per_unit[free], wanted[:, j])
    rest = np.flatnonzero(side < 0)
    deal(rest, sizes[rest], wanted_images)
    return np.flatnonzero(side[unit] == 1)


def _deal(
    counts: Int[np.ndarray, " u"],
    sizes: Int[np.ndarray, " u"],
    wanted: Float[np.ndarray, " 2"],
    wanted_images: Float[np.ndarray, " 2"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " u"]:
    """Send units one by one to the side that wants most; each lowers that side's wants by its count and size."""
    # Plain floats: the loop runs once per image, and NumPy scalars would make it ten times slower.
    want, images = wanted.tolist(), wanted_images.tolist()
    sides = np.empty(len(counts), np.int64)
    chance = rng.random(len(counts)) < 0.5
    for i, (count, size, coin) in enumerate(zip(counts.tolist(), sizes.tolist(), chance.tolist(), strict=True)):
        if want[0] != want[1]:
            side = int(want[1] > want[0])
        elif images[0] != images[1]:
            side = int(images[1] > images[0])
        else:
            side = int(coin)
        sides[i] = side
        want[side] -= count
        images[side] -= size
    return sides


def _carve(train: types.Records, share: float, seed: int, name: str) -> Int[np.ndarray, " v"]:
    """The rows of train that become the split of this name; refused if either side would be empty."""
    rows = stratify(sparse.of(train.labels).positive(), share, seed, train.groups)
    if len(rows) in (0, len(train)):
        empty = name if len(rows) == 0 else "train"
        units = len(train) if train.groups is None else len(np.unique(train.groups))
        raise ValueError(
            f"a share of {share:g} for {name} leaves the {empty} split empty: train has {len(train)} images "
            f"in {units} groups; choose another share or give more images"
        )
    return rows


@dataclasses.dataclass(frozen=True)
class SelectedImage:
    """Opens the image of a selected row; a class and not a closure, so that worker processes can receive it.

    Attributes:
        image: opens the image of a row before the selection.
        rows: [m] the row before the selection of each row after it.
    """

    image: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    rows: Int[np.ndarray, " m"]

    def __call__(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """Open the image of this row."""
        return self.image(int(self.rows[row]))
