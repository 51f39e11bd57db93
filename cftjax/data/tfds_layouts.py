"""Where TensorFlow Datasets keep their labels: a layout per known set, and one for sets that list what is there."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from cftjax.data import chexpert
from cftjax.data.reading.problems import DataError
from cftjax.text import shown

# Categories and their values, 1, 0 or -1; a category that is not among them is unknown.
Entries = tuple[np.ndarray, np.ndarray]
USUAL_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
# The test labels of these sets are not public.
VALIDATION_TESTS = {"train": "train", "test": "validation"}
# The place of `machine` among the sources of Open Images' labels: verification, crowdsource-verification, machine, …
OPEN_IMAGES_MACHINE = 2
# What CheXpert's codes 0 uncertain, 1 positive and 2 negative mean; 3 is unmentioned.
CHEXPERT_VALUES = np.array([-1, 1, 0], np.int8)
CHEXPERT_UNMENTIONED = 3


class Example:
    """One record, its features by flat names such as `objects/label`."""

    def __init__(self, record: bytes) -> None:
        """Parse the bytes that TFDS wrote."""
        messages = importlib.import_module("tensorflow_datasets.proto")
        self.features: Mapping[str, Any] = messages.tf_example_pb2.Example.FromString(record).features.feature

    def integers(self, name: str) -> Int[np.ndarray, " k"]:
        """The numbers of a feature; none where it is absent."""
        return np.array(self.features[name].int64_list.value if name in self.features else [], np.int64)

    def content(self, name: str) -> bytes:
        """The bytes of a feature.

        Raises:
            ValueError: there are none.
        """
        values = self.features[name].bytes_list.value if name in self.features else []
        if not values:
            raise ValueError(f"it has no {name}")
        return values[0]

    def text(self, name: str) -> str:
        """A feature as text, whether it is text or a number."""
        numbers = self.integers(name)
        return str(numbers[0]) if len(numbers) else self.content(name).decode()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a set keeps its labels.

    Attributes:
        categories: their names, from the set's features.
        entries: the labels of an example: (example, number of categories, `train`, `validation` or `test`) -> entries.
        splits: the set's split for each of ours, where it has it.
        title: the feature that names an image; None where there is none.
        group: the number that images of one patient or person share; None where every image stands alone.
    """

    categories: Callable[[Any], tuple[str, ...]]
    entries: Callable[[Example, int, str], Entries]
    splits: Mapping[str, str] = dataclasses.field(default_factory=lambda: USUAL_SPLITS)
    title: str | None = None
    group: Callable[[Example], int] | None = None


def layout_of(name: str) -> Layout:
    """The layout of a known set, by the name of set and configuration.

    Raises:
        DataError: the set is not known.
    """
    parts = name.replace(":", "/").split("/")
    layout = LAYOUTS.get("/".join(parts[:2])) or LAYOUTS.get(parts[0])
    if layout is None:
        known = ", ".join(key for key in LAYOUTS if "/" not in key)
        raise DataError(f"{name}: not among {known}; say which feature lists the categories present as `labels`.")
    return layout


def class_names(features: Any, feature: str) -> tuple[str, ...]:
    """The names of the class labels of a feature such as `objects/label`."""
    for part in feature.split("/"):
        features = features[part]
    # A sequence of class labels, or one.
    return tuple(getattr(features, "feature", features).names)


def listed(feature: str, **options: Any) -> Layout:
    """A set whose examples list the categories that are present: all others are absent."""
    return Layout(
        functools.partial(class_names, feature=feature),
        lambda example, c, role: present(example.integers(feature), c),
        **options,
    )


def present(names: Int[np.ndarray, " k"], c: int) -> Entries:
    """Every category known: positive where named, negative elsewhere; TFDS's -1 names none."""
    values = np.zeros(c, np.int8)
    values[names[names >= 0]] = 1
    return np.arange(c), values


def voc_entries(example: Example, c: int, role: str) -> Entries:
    """Present or absent; in the test split a category of difficult objects alone is unknown, for VOC leaves it out."""
    categories, values = present(example.integers("labels"), c)
    if role != "test":
        return categories, values
    counted = values == present(example.integers("labels_no_difficult"), c)[1]
    return categories[counted], values[counted]


def chexpert_entries(example: Example, c: int, role: str) -> Entries:
    """Codes in the order of the findings."""
    codes = example.integers("label")
    if len(codes) != c:
        raise ValueError(f"it has {len(codes)} labels instead of {c}")
    mentioned = np.flatnonzero(codes != CHEXPERT_UNMENTIONED)
    return mentioned, CHEXPERT_VALUES[codes[mentioned]]


def chexpert_patient(example: Example) -> int:
    """The patient's number, from the path."""
    title = example.text("name")
    match = chexpert.PATH_PATTERN.fullmatch(title)
    if match is None:
        raise ValueError(f"{shown(title)} is no CheXpert path")
    return int(match["patient"])


def open_images_entries(example: Example, c: int, role: str) -> Entries:
    """What people verified is known; what only a machine proposed is uncertain. Confidence is in tenths."""
    categories = example.integers("objects_trainable/label")
    people = example.integers("objects_trainable/source") != OPEN_IMAGES_MACHINE
    values = np.where(people, example.integers("objects_trainable/confidence") >= 5, -1).astype(np.int8)
    counted = people | ~np.isin(categories, categories[people])
    return categories[counted], values[counted]


def lvis_entries(example: Example, c: int, role: str) -> Entries:
    """Present where annotated, absent where said to be, unknown elsewhere."""
    positive = np.unique(example.integers("objects/label"))
    negative = np.unique(example.integers("neg_category_ids"))
    return np.concatenate([positive, negative]), np.repeat(np.array([1, 0], np.int8), [len(positive), len(negative)])


def celeb_a_names(features: Any) -> tuple[str, ...]:
    """The attributes by the alphabet, as the release has them; TFDS keeps no order."""
    return tuple(sorted(features["attributes"].keys()))


def celeb_a_entries(example: Example, c: int, role: str) -> Entries:
    """Every attribute is present or absent."""
    names = sorted(name for name in example.features if name.startswith("attributes/"))
    values = np.array([example.integers(name)[0] for name in names], np.int8)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"an attribute is {values[~np.isin(values, (0, 1))][0]}, not 0 or 1")
    return np.arange(c), values


def celeb_a_person(example: Example) -> int:
    """Whose face it is."""
    return int(example.text("identity/Identity_No"))


LAYOUTS = {
    "chexpert": Layout(
        lambda features: chexpert.FINDINGS, chexpert_entries, VALIDATION_TESTS, "name", chexpert_patient
    ),
    "coco": listed("objects/label", splits=VALIDATION_TESTS, title="image/filename"),
    "voc": Layout(functools.partial(class_names, feature="labels"), voc_entries, title="image/filename"),
    "voc/2012": Layout(
        functools.partial(class_names, feature="labels"), voc_entries, VALIDATION_TESTS, "image/filename"
    ),
    "open_images_v4": Layout(
        functools.partial(class_names, feature="objects_trainable/label"), open_images_entries, title="image/filename"
    ),
    "lvis": Layout(
        functools.partial(class_names, feature="neg_category_ids"), lvis_entries, VALIDATION_TESTS, "image/id"
    ),
    "celeb_a": Layout(celeb_a_names, celeb_a_entries, group=celeb_a_person),
    "bigearthnet": listed("labels", title="filename"),
}
