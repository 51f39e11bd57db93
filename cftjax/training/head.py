"""The head alone, trained on embeddings of a backbone that stays as it is (a linear probe): minutes instead of hours.

Labels, loss, batches, schedule, moving averages and the choice of the epoch are those of a whole classifier. Embeddings
are those of images as they are: augmentation would need the backbone at every step. The optimizer is SGD whatever the
network's is: stopped early it prefers the directions in which embeddings vary most, as a ridge penalty does, and the
head's one learning rate serves any number of dimensions and categories.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Num, PyTree

from cftjax import types
from cftjax.config import BackboneConfig, ClassifierConfig, Config, InputConfig, LabelsConfig, TrainingConfig
from cftjax.data import labels
from cftjax.input import pipeline
from cftjax.runtime import devices
from cftjax.training import classifier
from cftjax.training.classifier import Abstract, Architecture, Classifier
from cftjax.training.source import Validation, logits_of

# Rows of embeddings read at a time.
ROWS_AT_ONCE = 16384
# Accelerators would round float32 to bfloat16 or TF32.
PRECISION = jax.lax.Precision.HIGHEST


class Head(nnx.Module):
    """The last layer, on embeddings of which all dimensions are brought to mean 0 and one variance, 1 all together.

    Dimensions of different spread would learn at different speeds, and a mean other than 0 would tie kernel and bias
    together. With squared norms of 1 on average, the curvature of a category's cross-entropy is at most about 1/4, so
    that steps of 4 times its gradient suit every backbone. What is learned is a head of plain embeddings all the same:
    see `plain`.
    """

    def __init__(
        self, mean: Float[types.Array, " d"], scale: Float[types.Array, " d"], bias: Float[types.Array, " c"]
    ) -> None:
        """Begin with a kernel of zeros.

        Args:
            mean: of the training embeddings.
            scale: that brings them to one variance.
            bias: to begin with.
        """
        self.mean, self.scale = nnx.Variable(jnp.asarray(mean)), nnx.Variable(jnp.asarray(scale))
        zeros = nnx.initializers.zeros_init()
        self.head = nnx.Linear(len(mean), len(bias), kernel_init=zeros, precision=PRECISION, rngs=nnx.Rngs(0))
        self.head.bias = nnx.Param(jnp.asarray(bias))

    def __call__(self, z: Float[jax.Array, "n d"]) -> Float[jax.Array, "n c"]:
        """Raw logits."""
        return self.head((z - self.mean[None]) * self.scale[None])


def plain(
    head: Mapping[str, jax.Array], mean: Float[types.Array, " d"], scale: Float[types.Array, " d"]
) -> dict[str, jax.Array]:
    """Kernel [d c] and bias [c] that give embeddings as they are the logits of a `Head`."""
    kernel = head["kernel"] * scale[:, None]
    return {"kernel": kernel, "bias": head["bias"] - jnp.matmul(mean, kernel, precision=PRECISION)}


@dataclasses.dataclass(frozen=True)
class HeadOnEmbeddings:
    """A head, trained on embeddings; what `images.Images` is for a whole classifier.

    Attributes:
        dataset: labels of the split `train`, and of `validation` where there is one.
        embeddings: of these splits.
        pretrained: the classifier whose backbone made them.
        labels: what becomes of unknown and uncertain ones.
        input: its number of threads is read.
        backbone: the network that made the embeddings.
        training: as `settings` makes it.
        seed: of order and mixing.
    """

    dataset: types.Dataset
    embeddings: Mapping[str, types.Embeddings]
    pretrained: Classifier
    labels: LabelsConfig
    input: InputConfig
    backbone: BackboneConfig
    training: TrainingConfig
    seed: int

    @property
    def records(self) -> types.Records:
        """The training split."""
        return self.dataset.splits["train"]

    @property
    def last_layer(self) -> ClassifierConfig:
        """One logit for the whole embedding: places are behind it."""
        return ClassifierConfig()

    @functools.cached_property
    def opened(self) -> Bool[np.ndarray, " n"]:
        """Training images that could be opened."""
        return ~np.isin(np.asarray(self.records.names), np.asarray(self.embeddings["train"].unopened, str))

    def batches(self, bad_images: set[str]) -> grain.DatasetIterator[types.Batch]:
        """Embeddings in the order in which `images.Images` has the images."""
        bad_images.update(self.embeddings["train"].unopened)
        batch_size = self.training.batch_size
        local = pipeline.local_rows(batch_size, devices.host_shard())
        pipeline.check_size(batch_size, len(self.records))
        make = EmbeddedBatch(self, batch_size, local)
        return iter(pipeline.in_threads(grain.MapDataset.range(pipeline.ENDLESS).map(make), self.input))

    def abstract(self) -> Abstract:
        """Structure and shapes of the head."""
        d, c = self.embeddings["train"].z.shape[1], self.records.labels.shape[1]
        return classifier.of_model(nnx.eval_shape(lambda: Head(jnp.zeros(d), jnp.zeros(d), jnp.zeros(c))))

    def create(self) -> Head:
        """A kernel of zeros, and the bias that gives every category the share of positives among its labels."""
        mean, scale = moments(self.embeddings["train"].z, self.opened)
        total, count = labels.target_sums(self.records.labels, self.labels, self.seed, self.opened)
        # One more of each, or a category without positives or negatives would begin at infinity.
        return Head(mean, scale, np.log((total + 1) / (count - total + 1)).astype(np.float32))

    def judged(self, model: Head, mesh: Mesh) -> Validation | None:
        """Validation embeddings, which do not change, under the head of the moment."""
        if "validation" not in self.embeddings:
            return None
        split = self.embeddings["validation"]
        trained = nnx.as_pure(nnx.state(model.head, nnx.Param))
        last_layer = plain(trained, model.mean.get_value(), model.scale.get_value())
        heads = types.Heads(last_layer["kernel"].T, last_layer["bias"])

        def columns(some: Int[np.ndarray, " k"]) -> tuple[np.ndarray, np.ndarray]:
            return np.asarray(split.labels[:, some]), np.asarray(split.known[:, some])

        return Validation((len(split), len(heads.bias)), logits_of(split.z, heads), columns)

    def classifier(self, params: PyTree, stats: PyTree, rest: PyTree) -> tuple[PyTree, PyTree]:
        """The backbone as it was given, and the head for its embeddings."""
        whole = classifier.of_model(self.pretrained)
        head = plain(params["head"], rest["mean"], rest["scale"])
        return {**whole.params, "head": head}, whole.stats


def settings(training: TrainingConfig, num_categories: int) -> TrainingConfig:
    """Settings under which a head is trained alone: SGD on the sum over categories, with decay of each one's loss.

    The loop takes the mean over categories, so that rate and decay are scaled by their number.

    Args:
        training: as they were given.
        num_categories: of the head.
    """
    return dataclasses.replace(
        training,
        optimizer="sgd",
        learning_rate=training.frozen_learning_rate * num_categories,
        head_learning_rate_scale=1.0,
        weight_decay=training.weight_decay / num_categories,
    )


@dataclasses.dataclass(frozen=True)
class EmbeddedBatch:
    """The number of a step to this host's part of its training batch."""

    source: HeadOnEmbeddings
    batch_size: int
    local: slice

    def __call__(self, step: int) -> types.Batch:
        """Read the rows, and resolve their labels."""
        source, seed = self.source, self.source.seed
        rows = pipeline.rows_of(step, len(source.records), self.batch_size, seed, self.local)
        z = np.asarray(source.embeddings["train"].z[rows], np.float32)
        labels_of_rows = source.records.labels[rows]
        return pipeline.labelled(z, labels_of_rows, source.labels, seed, rows, source.opened[rows])


def moments(
    z: Num[types.Array, "n d"], where: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Mean of every dimension over the rows that count, and the factor that brings it to its share of a variance of 1.

    The factor is 0 where a dimension never varies. Read in blocks, in double precision.
    """
    n = len(z)
    blocks = [slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE)]
    count = max(np.count_nonzero(where), 1)
    mean = sum(np.asarray(z[rows])[where[rows]].sum(0, dtype=np.float64) for rows in blocks) / count
    squares = sum(((np.asarray(z[rows])[where[rows]] - mean) ** 2).sum(0) for rows in blocks)
    deviation = np.sqrt(squares / count)
    # Of single precision nothing less is left.
    varies = deviation > 1e-6 * np.abs(mean)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0) / np.sqrt(max(np.count_nonzero(varies), 1))
    return np.asarray(mean, np.float32), scale.astype(np.float32)


def pretrained(architecture: Architecture, seed: int) -> Classifier:
    """A classifier with the pretrained backbone, which is what all embeddings are made with.

    Raises:
        ValueError: where the configuration names no weights.
    """
    if architecture.backbone.weights is None:
        raise ValueError(
            "--training.freeze-backbone trains the head alone, and the backbone has random weights: name some with "
            "--backbone.weights"
        )
    return classifier.new(architecture, seed)


def of_experiment(
    dataset: types.Dataset, embeddings: Mapping[str, types.Embeddings], model: Classifier, config: Config[Any]
) -> HeadOnEmbeddings:
    """The head of an experiment on its embeddings.

    Args:
        dataset: labels of the split `train`, and of `validation` where there is one.
        embeddings: of these splits.
        model: that `pretrained` made, with which the embeddings were made.
        config: its labels, input.workers, backbone, training and seed are read.
    """
    training = settings(config.training, len(dataset.categories))
    return HeadOnEmbeddings(
        dataset, embeddings, model, config.labels, config.input, config.backbone, training, config.seed
    )
