"""What the training loop asks of what is trained: a whole classifier on images, or a head on embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, PyTree

from cftjax import metrics, types
from cftjax.config import BackboneConfig, ClassifierConfig, LabelsConfig, Metric, TrainingConfig
from cftjax.training.classifier import Abstract

# Logits of validation computed at a time: 256 MB.
SCORED_ELEMENTS = 2**26


class Validation(NamedTuple):
    """Validation as a model of the moment sees it.

    Attributes:
        size: number of images and of categories.
        logits: some categories -> raw logits [n k].
        columns: some categories -> labels [n k] and known [n k].
    """

    size: tuple[int, int]
    logits: Callable[[slice], Float[np.ndarray, "n k"]]
    columns: Callable[[Int[np.ndarray, " k"]], tuple[Bool[np.ndarray, "n k"], Bool[np.ndarray, "n k"]]]

    def score(self, metric: Metric) -> float | None:
        """The mean score on the known labels; None where no category has both."""
        n, c = self.size
        scores = np.empty(c, np.float32)
        # A group of categories at a time: all labels of a large set do not fit into one dense array.
        size = max(SCORED_ELEMENTS // max(n, 1), 1)
        for start in range(0, c, size):
            some = slice(start, min(start + size, c))
            present, known = self.columns(np.arange(c)[some])
            scores[some] = metrics.score(metric, self.logits(some), present, known)
        mean = float(metrics.mean_defined(scores))
        return mean if math.isfinite(mean) else None


def logits_of(z: Float[types.Array, "n d"], heads: types.Heads) -> Callable[[slice], Float[np.ndarray, "n k"]]:
    """Some categories -> their raw logits of embeddings."""
    return lambda some: np.asarray(types.Heads(heads.kernel[some], heads.bias[some])(z))


@runtime_checkable
class Source(Protocol):
    """What is trained, on what, and how: the one place that the loop reads settings from."""

    @property
    def records(self) -> types.Records:
        """The training split."""
        ...

    @property
    def labels(self) -> LabelsConfig:
        """What becomes of unknown labels."""
        ...

    @property
    def training(self) -> TrainingConfig:
        """Loss, optimizer, schedule and everything else of a training."""
        ...

    @property
    def backbone(self) -> BackboneConfig:
        """The network whose weights are kept."""
        ...

    @property
    def last_layer(self) -> ClassifierConfig:
        """How what the network sees at every place becomes a logit."""
        ...

    @property
    def seed(self) -> int:
        """The seed of initial weights, order, augmentation and mixing."""
        ...

    def batches(self, bad_images: set[str]) -> grain.DatasetIterator[types.Batch]:
        """Endless training batches; names of images that could not be opened are added to the set."""
        ...

    def abstract(self) -> Abstract:
        """Structure and shapes of what is trained."""
        ...

    def create(self) -> nnx.Module:
        """What is trained, as it begins."""
        ...

    def judged(self, model: Any, mesh: Mesh) -> Validation | None:
        """Validation through a model in evaluation mode; None where there is no such split."""
        ...

    def classifier(self, params: PyTree, stats: PyTree, rest: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and statistics of the whole classifier, from those of what is trained."""
        ...
