"""A backbone under one logistic regression per category: built, drawn, and read from a training that is done."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from cftjax import backbones
from cftjax.backbones import Embedder, places
from cftjax.backbones.places import LikeliestPlaces
from cftjax.config import BackboneConfig, ClassifierConfig
from cftjax.input.preprocessing import Normalisation
from cftjax.runtime import checkpoints, devices, digests
from cftjax.types import Heads


class Architecture(NamedTuple):
    """What decides which variables a classifier has.

    Attributes:
        backbone: the network.
        num_categories: of the last layer.
        dtype: of the backbone's arithmetic; the last layer's is float32.
        last_layer: how what is seen at every place becomes a logit.
    """

    backbone: BackboneConfig
    num_categories: int
    dtype: DTypeLike
    last_layer: ClassifierConfig = ClassifierConfig()


class Abstract(NamedTuple):
    """A model without its values.

    Attributes:
        graphdef: its structure.
        params: shapes of its parameters.
        stats: shapes of the running statistics of its batch normalisations.
        rest: shapes of its other variables, such as the keys of dropout.
        depth_groups: names of parameters, as `Backbone.depth_groups` has them; empty where there is no backbone.
        normalisation: that grey levels go through first; None where batches hold what the model takes.
    """

    graphdef: nnx.GraphDef[nnx.Module]
    params: PyTree
    stats: PyTree
    rest: PyTree
    depth_groups: backbones.DepthGroups = ()
    normalisation: Normalisation | None = None


class Classifier(nnx.Module):
    """A backbone and the last layer, one logistic regression per category."""

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs) -> None:
        """Build with random weights."""
        self.backbone = backbones.create(architecture.backbone, rngs, architecture.dtype)
        # Accelerators would round its float32 to bfloat16 or TF32; the heads that are made of it are exact.
        highest = jax.lax.Precision.HIGHEST
        self.head = nnx.Linear(self.backbone.dim, architecture.num_categories, precision=highest, rngs=rngs)
        self.last_layer = architecture.last_layer

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n c"]:
        """Raw logits."""
        if not self.last_layer.places:
            return self.head(self.backbone.embed(images))
        assert self.head.bias is not None
        kernel, bias = self.head.kernel.get_value(), self.head.bias.get_value()
        return places.pooled_logits(self.backbone.features(images), kernel, bias, self.last_layer)

    @property
    def embedder(self) -> Embedder:
        """What makes the embeddings of which the head's logits are those of the classifier."""
        if not self.last_layer.places:
            return self.backbone
        return LikeliestPlaces(self.backbone, self.head.kernel.get_value().T, self.last_layer)


class Logits(nnx.Module):
    """A classifier in the place of a backbone, with logits for embeddings: a tenth of the size, or less."""

    def __init__(self, classifier: Classifier) -> None:
        """Of this classifier."""
        self.classifier = classifier

    def embed(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n c"]:
        """Raw logits."""
        return self.classifier(images)


def new(architecture: Architecture, seed: int) -> Classifier:
    """A classifier with random or, where the configuration names them, pretrained weights in the backbone."""

    def draw(key: jax.Array) -> PyTree:
        return nnx.as_pure(nnx.state(Classifier(architecture, rngs=nnx.Rngs(key))))

    # One program for all layers, and on the CPU one that is quickly compiled: it runs once. Level 0 would be quicker
    # still, but XLA's CPU backend has been seen to compute NaN there.
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    variables = jax.jit(draw, compiler_options=quick)(jax.random.key(seed))
    model = nnx.merge(abstract(architecture).graphdef, variables)
    assert isinstance(model, Classifier)
    backbones.load_weights(model.backbone, architecture.backbone)
    return model


def abstract(architecture: Architecture) -> Abstract:
    """Structure and shapes of a classifier, without computing any value."""
    model = nnx.eval_shape(lambda: Classifier(architecture, rngs=nnx.Rngs(0)))
    return of_model(model, model.backbone.depth_groups())


def of_model(model: nnx.Module, depth_groups: backbones.DepthGroups = ()) -> Abstract:
    """Structure and variables of a model, of which a training changes each kind in its own way."""
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return Abstract(graphdef, nnx.as_pure(params), nnx.as_pure(stats), nnx.as_pure(rest), depth_groups)


def other_variables(architecture: Architecture) -> PyTree:
    """What is neither a parameter nor a running statistic, and need not be stored to embed."""
    return jax.jit(lambda: of_model(Classifier(architecture, rngs=nnx.Rngs(0))).rest)()


def heads_of(model: Classifier) -> Heads:
    """The last layer of a classifier, kernel [c d] and bias [c]."""
    head: PyTree = nnx.as_pure(nnx.state(model.head, nnx.Param))
    return Heads(head["kernel"].T, head["bias"])


def load(folder: Path, mesh: Mesh | None = None, dtype: DTypeLike | None = None) -> tuple[Embedder, Heads]:
    """The backbone of the best epoch, ready to embed, and its heads for these embeddings.

    Args:
        folder: that `loop.fit` wrote.
        mesh: of the devices to place the weights on; all of them if None.
        dtype: of the backbone's arithmetic; the one it was trained in if None.

    Raises:
        FileNotFoundError: where no epoch is finished.
    """
    steps = checkpoints.steps(folder / "best")
    if not steps:
        raise FileNotFoundError(f"{folder} holds no trained backbone: run the training command again to finish it.")
    metadata = checkpoints.metadata(folder / "best", steps[-1], needed=("backbone", "num_categories", "compute_dtype"))
    with digests.describing(folder / "best" / str(steps[-1]) / checkpoints.DESCRIPTION):
        arithmetic = devices.compute_dtype(metadata["compute_dtype"]) if dtype is None else dtype
        # What trainings without it, and older ones, do not say.
        last_layer = ClassifierConfig(**metadata.get("classifier", {}))
        backbone = BackboneConfig(**metadata["backbone"])
        architecture = Architecture(backbone, metadata["num_categories"], arithmetic, last_layer)
    empty = abstract(architecture)
    whole = devices.replicated(devices.mesh() if mesh is None else mesh)
    like = devices.abstract({"params": empty.params, "stats": empty.stats}, whole)
    weights = checkpoints.restore(folder / "best", steps[-1], like)
    model = nnx.merge(empty.graphdef, weights["params"], weights["stats"], other_variables(architecture))
    model.eval()
    assert isinstance(model, Classifier)
    return model.embedder, heads_of(model)
