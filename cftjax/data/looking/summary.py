"""What a data set holds: images, patients, labels of every category, sizes, missing and repeated files.

The splits are those that training would use: validation carved where the set has none, labels hidden as configured.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from cftjax import types
from cftjax.data import sparse, splits
from cftjax.data.looking import workers
from cftjax.data.reading import files, images

if TYPE_CHECKING:
    # Not at run time: config holds the settings of modules that this one imports.
    from cftjax.config import LabelsConfig

# Bytes of a file that are read at a time.
READ_BYTES = 2**20

Place = tuple[str, str]


class Counts(NamedTuple):
    """How many images have each kind of label, per category.

    Attributes:
        positive: [c] 1.
        negative: [c] 0.
        uncertain: [c] -1.
        unknown: [c] without a label.
    """

    positive: Int[np.ndarray, " c"]
    negative: Int[np.ndarray, " c"]
    uncertain: Int[np.ndarray, " c"]
    unknown: Int[np.ndarray, " c"]


class Range(NamedTuple):
    """The least, the median and the greatest of some numbers."""

    least: int
    median: float
    greatest: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a sample of a split's images.

    Attributes:
        sampled: images looked at.
        unreadable: of those, images without a readable header.
        width: pixels; None where no image could be read.
        height: pixels.
        modes: kind of pixels -> images, the most frequent first.
    """

    sampled: int
    unreadable: int
    width: Range | None
    height: Range | None
    modes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which categories go together, among the most frequent ones.

    Attributes:
        categories: [k] their columns, the most frequent first.
        both: [k k] images known to be positive for both.
        judged: [k k] images known to be positive for the row and with the column's label known.
    """

    categories: Int[np.ndarray, " k"]
    both: Int[np.ndarray, "k k"]
    judged: Int[np.ndarray, "k k"]

    @property
    def shares(self) -> Float[np.ndarray, "k k"]:
        """P(column | row) as far as labels tell; NaN where no image does."""
        return np.divide(self.both, self.judged, out=np.full(self.both.shape, np.nan), where=self.judged > 0)


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """One split, as training would use it.

    Attributes:
        images: their number.
        groups: the number of patients, or whatever stays together; None where every image stands alone.
        given: labels that the files give.
        seen: labels that are left after hiding.
        pairs: among the labels given.
        sizes: of a sample.
        missing: names of files that do not exist.
    """

    images: int
    groups: int | None
    given: Counts
    seen: Counts
    pairs: Pairs
    sizes: Sizes
    missing: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A data set.

    Attributes:
        categories: their names.
        splits: by name.
        carved: whether validation was taken from train.
        shared_groups: groups with images in more than one split.
        repeated: names that are listed more than once, each with its splits.
        same_content: images of the same content under different names, as (split, name); None where nobody looked.
    """

    categories: tuple[str, ...]
    splits: dict[str, SplitSummary]
    carved: bool
    shared_groups: int
    repeated: dict[str, list[str]]
    same_content: list[list[Place]] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; co-occurrence by counts and as shares, None where undefined."""
        out: dict[str, Any] = {"categories": list(self.categories), "carved": self.carved, "splits": {}}
        for name, split in self.splits.items():
            shares = [[None if np.isnan(x) else x for x in row] for row in split.pairs.shares.tolist()]
            out["splits"][name] = {
                "images": split.images,
                "groups": split.groups,
                "labels_given": {kind: count.tolist() for kind, count in split.given._asdict().items()},
                "labels_after_hiding": {kind: count.tolist() for kind, count in split.seen._asdict().items()},
                "sizes": dataclasses.asdict(split.sizes),
                "missing": list(split.missing),
                "co_occurrence": {
                    "categories": [self.categories[i] for i in split.pairs.categories.tolist()],
                    "positive_for_both": split.pairs.both.tolist(),
                    "positive_for_row_and_column_known": split.pairs.judged.tolist(),
                    "share": shares,
                },
            }
        out["groups_in_several_splits"] = self.shared_groups
        out["listed_more_than_once"] = self.repeated
        out["same_content"] = self.same_content
        return out


def summarise(
    dataset: types.Dataset,
    labels_config: LabelsConfig,
    split_config: splits.SplitConfig,
    *,
    most: int,
    size_sample: int,
    contents: bool,
    threads: int,
) -> Summary:
    """Count and measure a data set; labels stored sparse stay so.

    Args:
        dataset: as the files give it.
        labels_config: which labels of train are hidden.
        split_config: how validation is carved.
        most: categories that are paired with each other, at most.
        size_sample: images of each split whose size is read, at most.
        contents: whether all images are read, to find the same content under different names.
        threads: that read files.
    """
    prepared = splits.prepare(dataset, labels_config, split_config)
    complete = dict(dataset.splits)
    carved = [rows for rows in (prepared.validation_rows, prepared.test_rows) if rows is not None]
    if carved:
        rows = np.setdiff1d(np.arange(len(complete["train"])), np.concatenate(carved), assume_unique=True)
        complete["train"] = splits.select(complete["train"], rows)
    found = {}
    top = most_frequent(count(complete["train"].labels), most)
    for name, records in prepared.dataset.splits.items():
        given = complete.get(name, records).labels
        source = files.of(records)
        absent = [] if source is None else files.missing(source.names, range(len(records)), source.root)
        found[name] = SplitSummary(
            images=len(records),
            groups=None if records.groups is None else len(np.unique(records.groups)),
            given=count(given),
            seen=count(records.labels),
            pairs=pairs(given, top),
            sizes=sizes(records, absent, size_sample, threads, f"Sizes of {name}"),
            missing=tuple(str(records.names[row]) for row in absent),
        )
    parts = prepared.dataset.splits
    return Summary(
        categories=dataset.categories,
        splits=found,
        carved=prepared.validation_rows is not None,
        shared_groups=shared_groups(parts),
        repeated=repeated(parts),
        same_content=same_content(parts, threads) if contents else None,
    )


def count(labels: types.Labels) -> Counts:
    """The number of labels of each kind, per category."""
    if isinstance(labels, sparse.SparseLabels):
        positive, negative, uncertain = labels.counts()
    else:
        positive = (labels.labels & labels.known).sum(axis=0)
        negative = (~labels.labels & labels.known).sum(axis=0)
        uncertain = labels.uncertain.sum(axis=0)
    return Counts(positive, negative, uncertain, labels.shape[0] - positive - negative - uncertain)


def most_frequent(counts: Counts, most: int) -> Int[np.ndarray, " k"]:
    """The categories with the most positives, the most frequent first."""
    return np.argsort(-counts.positive, kind="stable")[:most]


def pairs(labels: types.Labels, categories: Int[np.ndarray, " k"]) -> Pairs:
    """How often some categories are positive together."""
    n, c = labels.shape
    entries = sparse.of(labels)
    place = np.full(c, -1)
    place[categories] = np.arange(len(categories))
    columns = place[entries.categories]
    known, positive = (
        csr_array((np.ones(chosen.sum(), np.int64), (entries.rows()[chosen], columns[chosen])), (n, len(categories)))
        for chosen in ((columns >= 0) & (entries.values >= 0), (columns >= 0) & (entries.values == 1))
    )
    both, judged = ((positive.T @ other).toarray() for other in (positive, known))
    return Pairs(categories, both, judged)


def sizes(records: types.Records, absent: Sequence[int], most: int, threads: int, title: str) -> Sizes:
    """Sizes of a random sample of the images that are there: from the headers of files, else of the opened images."""
    present = np.setdiff1d(np.arange(len(records)), np.array(absent, int), assume_unique=True)
    rows = np.sort(np.random.default_rng(0).choice(present, min(most, len(present)), replace=False)).tolist()
    source = files.of(records)

    def header(row: int) -> images.Header | None:
        try:
            if source is not None:
                return images.read_header(source.names[row], source.root)
            height, width, _ = records.image(row).shape
        except images.ImageError:
            return None
        return images.Header(width, height, "RGB")

    found = [header for _, header in workers.each(rows, header, threads, title) if header is not None]
    modes = collections.Counter(header.mode for header in found)
    return Sizes(
        sampled=len(rows),
        unreadable=len(rows) - len(found),
        width=range_of([header.width for header in found]),
        height=range_of([header.height for header in found]),
        modes=dict(modes.most_common()),
    )


def range_of(values: Sequence[int]) -> Range | None:
    """The ends and the middle of some numbers; None where there are none."""
    return Range(min(values), float(np.median(values)), max(values)) if values else None


def shared_groups(parts: Mapping[str, types.Records]) -> int:
    """How many groups have images in more than one split."""
    groups = [np.unique(records.groups).astype(str) for records in parts.values() if records.groups is not None]
    if not groups:
        return 0
    return int((np.unique(np.concatenate(groups), return_counts=True)[1] > 1).sum())


def repeated(parts: Mapping[str, types.Records]) -> dict[str, list[str]]:
    """Names that are listed more than once, each with the splits that list it."""
    times = collections.Counter(name for records in parts.values() for name in records.names)
    names = {name for name, number in times.items() if number > 1}
    if not names:
        return {}
    found: dict[str, list[str]] = {}
    for split, records in parts.items():
        for name in records.names:
            if name in names:
                found.setdefault(str(name), []).append(split)
    return found


def same_content(parts: Mapping[str, types.Records], threads: int) -> list[list[Place]]:
    """Groups of images whose files hold the same bytes; where images are not files, the same pixels.

    Files that cannot be read are passed over: `missing` and the check of the data set tell of them.
    """
    sources = {split: files.of(records) for split, records in parts.items()}
    places = [(split, row) for split, records in parts.items() for row in range(len(records))]

    def length(place: tuple[str, int]) -> int | None:
        split, row = place
        source = sources[split]
        try:
            return -1 if source is None else os.path.getsize(source.root / source.names[row])
        except OSError:
            return None

    def digest(place: tuple[str, int]) -> bytes | None:
        split, row = place
        source = sources[split]
        try:
            return pixel_hash(parts[split].image(row)) if source is None else file_hash(source.root / source.names[row])
        except (OSError, images.ImageError):
            return None

    # Only files of one length can hold the same bytes, so that few need to be read.
    by_length = collected(workers.each(places, length, threads, "Lengths"))
    alike = [place for group in by_length for place in group]
    groups = collected(workers.each(alike, digest, threads, "Contents"))
    order = {split: number for number, split in enumerate(parts)}
    ordered = sorted(sorted(group, key=lambda p: (order[p[0]], p[1])) for group in groups)
    found = [[(split, str(parts[split].names[row])) for split, row in group] for group in ordered]
    # A name that is listed twice is told elsewhere.
    return [group for group in found if len({name for _, name in group}) > 1]


def collected(results: Iterable[tuple[tuple[str, int], Hashable]]) -> list[list[tuple[str, int]]]:
    """Items that share a result with another one, by result; those without a result are left out."""
    by_result: dict[Hashable, list[tuple[str, int]]] = {}
    for item, result in results:
        if result is not None:
            by_result.setdefault(result, []).append(item)
    return [group for group in by_result.values() if len(group) > 1]


def file_hash(path: Path) -> bytes:
    """A hash of the bytes of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.digest()


def pixel_hash(image: np.ndarray) -> bytes:
    """A hash of shape and pixels."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()
