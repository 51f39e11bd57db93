"""The arrays that pass between stages: labels, records of one split, batches, embeddings and heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num, UInt8

Array = np.ndarray | jax.Array

SPLITS = ("train", "validation", "test")
# Those that nothing is learned from, so that heads may be judged by them; the last that there is, is reported.
JUDGED_SPLITS = SPLITS[1:]
# Where there are heads: as the backbone's training left them, searched, polished, chosen. Folders, settings and
# metrics.json say so; people read the words of `word`.
STAGES = ("backbone", "ga", "polish", "final")


def word(stage: str) -> str:
    """What people call a stage or a candidate of it: `ga x0.5` is `search x0.5`, all others go by their names."""
    first, *rest = stage.split(" ")
    return " ".join(["search" if first == "ga" else first, *rest])


@dataclasses.dataclass(frozen=True)
class Labels:
    """What is known of each image's categories.

    `labels` is meaningful only where `known`; a label the source hedged on (CheXpert's -1) has `uncertain` set and
    `known` unset; a label that nobody gave has neither.

    Attributes:
        labels: [n c], True where the category is known to be present.
        known: [n c], True where the label is a definite positive or negative.
        uncertain: [n c], True where the source gave a label but hedged.
    """

    labels: Bool[np.ndarray, "n c"]
    known: Bool[np.ndarray, "n c"]
    uncertain: Bool[np.ndarray, "n c"]

    def __getitem__(self, rows: Any) -> Labels:
        """Select rows."""
        return Labels(self.labels[rows], self.known[rows], self.uncertain[rows])

    def take(self, rows: Int[np.ndarray, " k"]) -> Labels:
        """Select rows by their indices, stored as these labels are."""
        return self[rows]

    def columns(self, categories: Sequence[int] | Integer[np.ndarray, " k"]) -> Labels:
        """All rows of some categories, dense [n k], in the order asked for."""
        chosen = np.asarray(categories, np.int64).reshape(-1)
        return Labels(self.labels[:, chosen], self.known[:, chosen], self.uncertain[:, chosen])

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        n, c = self.labels.shape
        return n, c

    @property
    def unknown(self) -> Bool[np.ndarray, "n c"]:
        """[n, c], True where nobody said anything."""
        return ~(self.known | self.uncertain)

    def dense(self) -> Labels:
        """All of them as arrays."""
        return self


class Marks(np.lib.mixins.NDArrayOperatorsMixin):
    """One of the matrices [n c] of labels that are stored sparse: read by rows or by categories as an array is.

    `marks[rows]`, `marks[:, some]` and `marks[rows, category]` give arrays. All else, arithmetic included, makes the
    whole matrix, or raises ValueError where that would be too large.
    """

    dtype, ndim = np.dtype(bool), 2

    def __init__(self, of: Labels, kind: str) -> None:
        """Show `labels`, `known`, `uncertain` or `unknown` of labels."""
        self.of, self.kind = of, kind

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        return self.of.shape

    def __len__(self) -> int:
        """The number of images."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Rows; or of some categories all rows, or rows picked afterwards."""
        if isinstance(key, int | np.integer):
            return self[np.array([key])][0]
        if not isinstance(key, tuple):
            return getattr(self.of[key], self.kind)
        rows, categories = key
        chosen = np.arange(self.shape[1])[categories]
        if chosen.ndim and not isinstance(rows, slice):
            raise IndexError("rows and categories of sparse labels are not picked at once: use marks[:, some][rows]")
        block = getattr(self.of.columns(chosen.reshape(-1)), self.kind)
        return block[rows] if chosen.ndim else block[:, 0][rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole matrix, made anew at each call."""
        whole = getattr(self.of.dense(), self.kind)
        return whole if dtype is None else whole.astype(dtype)

    def astype(self, dtype: Any) -> np.ndarray:
        """The whole matrix as numbers."""
        return np.asarray(self).astype(dtype)

    def sum(self, *given: Any, **options: Any) -> Any:
        """As of an array."""
        return np.asarray(self).sum(*given, **options)

    def mean(self, *given: Any, **options: Any) -> Any:
        """As of an array."""
        return np.asarray(self).mean(*given, **options)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Arithmetic on the whole matrix."""
        return getattr(ufunc, method)(*(np.asarray(x) if isinstance(x, Marks) else x for x in inputs), **options)


# Labels [n c] in memory, on disk, or stored sparse.
Matrix = np.ndarray | jax.Array | Marks


def together(labels: Bool[Matrix, "n c"], known: Bool[Matrix, "n c"], uncertain: Bool[Matrix, "n c"] | None) -> Labels:
    """Matrices as labels: those that they are of, where they are `Marks`."""
    if isinstance(labels, Marks) and isinstance(known, Marks) and labels.of is known.of:
        return labels.of
    labels, known = np.asarray(labels, bool), np.asarray(known, bool)
    return Labels(labels, known, np.zeros_like(known) if uncertain is None else np.asarray(uncertain, bool))


@dataclasses.dataclass(frozen=True)
class Records:
    """One split of a data set: images that are opened one at a time, and their labels.

    Attributes:
        image: row -> uint8 [h w 3]; opens and decodes that image.
        labels: the labels of all rows.
        names: what a person calls each row (a path, or `test/00012`), length n.
        groups: [n] integers or strings shared by images of one patient or study; None where every image stands alone.
    """

    image: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    labels: Labels
    names: Sequence[str]
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """All splits of a data set under one list of categories.

    Attributes:
        categories: the names, in the order of every [... c] axis.
        splits: `train`, `validation` and, where there is one, `test`.
        fingerprint: a hash of names, labels and settings; a run refuses to go on when it changes.
        notes: how the files were read, line by line, for a person to see before anything runs.
    """

    categories: tuple[str, ...]
    splits: dict[str, Records]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def reported(self) -> Records | None:
        """The split that a report is about: test where there is one, else validation; None without either."""
        return next((self.splits[split] for split in reversed(JUDGED_SPLITS) if split in self.splits), None)


@runtime_checkable
class DataSource(Protocol):
    """Where a data set comes from: a frozen dataclass whose fields are its options on the command line.

    Two fields mean the same wherever a source has them: `check_files`, whether every image must exist, and
    `scene_size`, see below.
    """

    def load(self) -> Dataset:
        """Labels and names of all splits; images are opened later, one at a time.

        Raises:
            ValueError: naming file, place and mend, for everything in the files that is wrong.
        """
        ...


def scene_size(source: object) -> int | None:
    """Height and width of images that are drawn on the spot, in pixels; None where images come as they are."""
    size = getattr(source, "scene_size", None)
    return None if size is None else int(size)


class Batch(NamedTuple):
    """What one training or embedding step takes.

    Attributes:
        image: [n h w 3] grey levels in [0, 255], uint8, or float32 where augmentation ends between two of them; or
            embeddings [n d], where the head is trained alone.
        labels: [n c] float32 targets in [0, 1].
        known: [n c] bool, where the target counts.
        rows: [n] int32 row of the split; -1 for padding that fills the last batch.
        unknown: [n c] bool, labels that nobody gave and that a mode of `unknowns` decides about; None where
            `labels` and `known` say it all.
        hidden: [n 4] int32 (top, bottom, left, right) of the square of each image that cutout hides; None without it.
    """

    image: Array
    labels: Array
    known: Array
    rows: Array
    unknown: Array | None = None
    hidden: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Heads:
    """The last layer: one logistic regression per category.

    Attributes:
        kernel: [c d].
        bias: [c].
    """

    kernel: Float[Array, "c d"]
    bias: Float[Array, " c"]

    def __call__(self, z: Num[Array, ...]) -> Float[jax.Array, "n c"]:
        """Raw logits of embeddings shared by the categories, [n d], or of one embedding per category, [n c d]."""
        z = jnp.asarray(z)
        product = jnp.einsum(
            "ncd,cd->nc" if z.ndim == 3 else "nd,cd->nc",
            z,
            jnp.asarray(self.kernel),
            # Accelerators would round to bfloat16, differently from batch to batch.
            precision=jax.lax.Precision.HIGHEST,
        )
        return product + jnp.asarray(self.bias)[None, :]


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """A split seen through the backbone, once.

    Attributes:
        z: [n d], or [n c d] where each category has an embedding of its own. May be a memory map.
        labels: [n c] bool, meaningful where `known`. It and the next two are arrays, or all three of `Marks`.
        known: [n c] bool.
        uncertain: [n c] bool.
        groups: [n] or None, as in `Records`.
        unopened: names of the images that could not be opened; z stands for a blank one there, and no label is known.
    """

    z: Num[Array, ...]
    labels: Bool[Matrix, "n c"]
    known: Bool[Matrix, "n c"]
    uncertain: Bool[Matrix, "n c"] | None = None
    groups: np.ndarray | None = None
    unopened: Sequence[str] = ()

    @classmethod
    def of(
        cls, z: Num[Array, ...], given: Labels, groups: np.ndarray | None = None, unopened: Sequence[str] = ()
    ) -> Embeddings:
        """Embeddings and their labels, dense or sparse."""
        return cls(z, given.labels, given.known, given.uncertain, groups, unopened)

    @property
    def given(self) -> Labels:
        """What is known of each image, stored as it was given."""
        return together(self.labels, self.known, self.uncertain)

    def __len__(self) -> int:
        """The number of images."""
        return self.z.shape[0]
