"""The embedded default: handwritten digits from four sites, each of which notes some categories more than others.

The handwriting is scikit-learn's copy of the UCI optical digits (Alpaydin & Kaynak, 1998): 1797 real digits of 8x8
pixels, ten categories. Each scene holds one to five of them over clutter. Every site has a look of its own (paper,
ink, clutter) and its own habit of labelling, which is that of people: they note what they see. Of site A's 7s perhaps
nine in ten are noted and of site B's two in ten, while hardly anybody says that there is no 7. A network that takes
unknown for negative learns most of what there is to see, and that site B has few 7s, so that it ranks those too low;
one that learns from known labels alone sees next to nothing but positives.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int
from scipy import optimize
from sklearn.datasets import load_digits

from cftjax import types
from cftjax.data.reading import scenes

# Raise it with every change that alters a pixel or a label, so that runs on older scenes are refused.
VERSION = 2

CATEGORIES = tuple(str(digit) for digit in range(scenes.NUM_CATEGORIES))

# Shares of the 1797 source digits, of every category, that train and validation draw from; test has the rest.
SOURCE_SHARES = (0.6, 0.15)
# Known proportions of the four sites, to a power that gives the mean asked for; their order differs from category to
# category.
SITE_PROPORTIONS = np.array([0.02, 0.1, 0.3, 0.7])


@dataclasses.dataclass(frozen=True)
class DigitsData:
    """Scenes of handwritten digits, made in two seconds from digits that scikit-learn ships; nothing is downloaded."""

    scene_size: int = 32
    """Height and width of a scene, in pixels; at least 24."""
    num_train: int = 8000
    """Training scenes, whose labels are known only in part."""
    num_validation: int = 1000
    """Validation scenes, all labels known."""
    num_test: int = 2000
    """Test scenes, all labels known."""
    known_positives: float = 0.5
    """Share of the positive training labels that are known, over all sites and categories; 1 keeps them all."""
    known_negatives: float = 0.03
    """Share of the negative training labels that are known."""
    seed: int = 0
    """The seed of scenes and of hidden labels."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.scene_size < 24:
            raise ValueError(f"scene_size {self.scene_size} is too small for legible digits: use 24 or more.")
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: every split of the digits needs at least 1 scene.")
        for name in ("known_positives", "known_negatives"):
            if not 0 < (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name} {share} is not a share: use a value in (0, 1].")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative: use 0 or more.")

    def load(self) -> types.Dataset:
        """Draw all three splits; the same settings give the same pixels and labels."""
        splits = {}
        digest = hashlib.sha256(json.dumps([VERSION, dataclasses.asdict(self)]).encode())
        sizes = (self.num_train, self.num_validation, self.num_test)
        for index, (name, size, sources) in enumerate(zip(types.SPLITS, sizes, source_digits(), strict=True)):
            images, labels, sites = scenes.draw_split(sources, size, self.scene_size, (self.seed, index))
            known = np.ones_like(labels)
            if name == "train":
                positive = draw_known(sites, self.known_positives, [self.seed, 1000])
                known = np.where(labels, positive, draw_known(sites, self.known_negatives, [self.seed, 1001]))
            # What is not known must not be recoverable from the record.
            labels &= known
            digest.update(labels.tobytes() + known.tobytes())
            images.flags.writeable = False
            splits[name] = types.Records(
                image=images.__getitem__,
                labels=types.Labels(labels, known, np.zeros_like(known)),
                names=[f"digits/{name}/{row:05d}" for row in range(size)],
            )
        return types.Dataset(categories=CATEGORIES, splits=splits, fingerprint=digest.hexdigest())


def source_digits() -> tuple[scenes.Sources, scenes.Sources, scenes.Sources]:
    """The handwriting of train, validation and test: disjoint, with all categories in each."""
    pixels, category = map(np.asarray, load_digits(return_X_y=True))
    ink = enlarge(pixels.reshape(-1, 8, 8).astype(np.float32) / 16.0, scenes.SOURCE_SIZE)
    # The file lists each writer's digits in a run, so shares cut in file order keep most writers in one split.
    rank = np.zeros(len(category))
    for digit in range(scenes.NUM_CATEGORIES):
        rows = np.flatnonzero(category == digit)
        rank[rows] = np.arange(len(rows)) / len(rows)
    split = np.digitize(rank, np.cumsum(SOURCE_SHARES))
    parts = (np.flatnonzero(split == index) for index in range(len(types.SPLITS)))
    train, validation, test = (scenes.Sources(ink[ids], category[ids], ids) for ids in parts)
    return train, validation, test


def enlarge(images: Float32[np.ndarray, "m a a"], size: int) -> Float32[np.ndarray, "m b b"]:
    """Enlarge by Catmull-Rom interpolation, and sharpen the blurred edge of the strokes a little."""
    side = images.shape[1]
    position = (np.arange(size) + 0.5) * side / size - 0.5
    distance = np.abs(position[:, None] - np.arange(side)[None, :])
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0)).astype(np.float32)
    smooth = weights @ images @ weights.T
    return np.clip(1.4 * smooth - 0.15, 0, 1)


def draw_known(sites: Int[np.ndarray, " n"], proportion: float, seed: Sequence[int]) -> Bool[np.ndarray, "n 10"]:
    """Which labels of one kind are known: every (site, category) has a proportion of its own.

    Args:
        sites: the site of each image.
        proportion: the mean of the proportions, in (0, 1].
        seed: of the order of the proportions and of the draws.
    """
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(scenes.NUM_SITES) for _ in range(scenes.NUM_CATEGORIES)], axis=1)

    # The exponent that gives the four proportions the mean asked for: 0 where all is known.
    def excess(exponent: float) -> float:
        return float(np.mean(SITE_PROPORTIONS**exponent)) - proportion

    exponent = 0.0 if proportion == 1 else optimize.root_scalar(excess, bracket=(0.0, 64.0)).root
    chance = (SITE_PROPORTIONS**exponent)[order]
    return rng.random((len(sites), scenes.NUM_CATEGORIES)) < chance[sites]
