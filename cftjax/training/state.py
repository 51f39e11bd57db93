"""What a step of training changes, and what stays the same from step to step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from cftjax import types, unknowns
from cftjax.backbones import DepthGroups
from cftjax.config import LabelsConfig, TrainingConfig
from cftjax.input.preprocessing import Normalisation
from cftjax.runtime import devices
from cftjax.training import classifier
from cftjax.training.classifier import Abstract
from cftjax.training.optimizer import optimizer

# A state is also made of shapes, of places and of whatever else JAX and orbax put where arrays are.
if TYPE_CHECKING:
    Leaf = jax.Array
else:
    Leaf = object


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: [] int32, steps done.
        params: of the classifier.
        stats: running statistics of its batch normalisations.
        rest: its other variables, such as the keys of dropout.
        ema: moving averages of (params, stats).
        opt_state: of the optimizer.
        finite: [] bool, False from the first step on whose loss or gradient was not finite; nothing changes any more.
        memory: what the mode of unknown labels remembers, by name; see `unknowns.Mode`.
        positive_weights: [c] factors of the losses of positives, or None.
    """

    step: Leaf
    params: PyTree
    stats: PyTree
    rest: PyTree
    ema: tuple[PyTree, PyTree]
    opt_state: optax.OptState
    finite: Leaf
    memory: PyTree = dataclasses.field(default_factory=dict)
    positive_weights: PyTree = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """What stays the same from step to step, and is part of the compiled program.

    Attributes:
        graphdef: of the classifier: its structure without its variables.
        config: loss, optimizer, schedule and decay.
        num_steps: length of the schedule.
        mesh: of the devices.
        labels: what becomes of unknown labels.
        steps_per_epoch: for modes of unknown labels that look at the epoch.
        seed: of mixing.
        depth_groups: of the backbone, for layer decay.
        normalisation: of the images; None where batches hold what the model takes.
    """

    graphdef: nnx.GraphDef[nnx.Module]
    config: TrainingConfig
    num_steps: int
    mesh: Mesh
    labels: LabelsConfig
    steps_per_epoch: int
    seed: int
    depth_groups: DepthGroups = ()
    normalisation: Normalisation | None = None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """What makes updates of gradients."""
        return optimizer(self.config, self.num_steps, self.depth_groups)


def new_spec(
    model: Abstract,
    config: TrainingConfig,
    num_steps: int,
    mesh: Mesh,
    *,
    labels: LabelsConfig | None = None,
    steps_per_epoch: int = 1,
    seed: int = 0,
) -> Spec:
    """A spec without the settings that steps do not read: other ones need not be compiled anew.

    Args:
        model: what is trained.
        config: loss, optimizer, schedule and decay.
        num_steps: length of the schedule.
        mesh: of the devices.
        labels: what becomes of unknown labels; None where batches resolve them.
        steps_per_epoch: for modes of unknown labels that look at the epoch.
        seed: of mixing.
    """
    config = dataclasses.replace(config, epochs=1, max_steps=None, patience=1, checkpoint_seconds=0.0)
    labels = labels or LabelsConfig()
    # What batches resolve themselves is one program.
    mode = "ignore" if labels.unknown in get_args(unknowns.Simple) else labels.unknown
    if "unknown_warmup" not in labels.mode.options:
        steps_per_epoch = 1
    seed = seed if config.mixup else 0
    depth_groups = model.depth_groups if config.layer_decay < 1 else ()
    labels = LabelsConfig(unknown=mode, **labels.mode_options)
    return Spec(
        model.graphdef, config, num_steps, mesh, labels, steps_per_epoch, seed, depth_groups, model.normalisation
    )


def new_state(
    spec: Spec, model: nnx.Module, memory: unknowns.Memory | None = None, positive_weights: types.Array | None = None
) -> TrainState:
    """The state before the first step, on all devices; it takes copies of the model's variables.

    Args:
        spec: of the training.
        model: as it begins.
        memory: of the mode of unknown labels; None where it remembers nothing.
        positive_weights: [c] factors of the losses of positives, or None.
    """
    variables = classifier.of_model(model)
    params, stats, rest = devices.replicate((variables.params, variables.stats, variables.rest), spec.mesh)
    # Copies, since a buffer that appears twice, or in the model too, cannot be donated.
    (params, stats, rest), ema = jax.tree.map(jnp.copy, ((params, stats, rest), (params, stats)))
    begin = jax.jit(spec.optimizer.init, out_shardings=devices.replicated(spec.mesh))
    step, finite = devices.replicate((jnp.int32(0), jnp.bool(True)), spec.mesh)
    kept = devices.replicate((memory or {}, positive_weights), spec.mesh)
    return TrainState(step, params, stats, rest, ema, begin(params), finite, *kept)


def abstract_state(
    spec: Spec, model: Abstract, memory: unknowns.Memory | None = None, positive_weights: types.Array | None = None
) -> TrainState:
    """Shapes and places of `new_state`, for restoring one."""
    params, stats = model.params, model.stats
    opt_state = jax.eval_shape(spec.optimizer.init, params)
    step, finite = jax.eval_shape(lambda: (jnp.int32(0), jnp.bool(True)))
    kept = memory or {}, positive_weights
    state = TrainState(step, params, stats, model.rest, (params, stats), opt_state, finite, *kept)
    return devices.abstract(state, devices.replicated(spec.mesh))
