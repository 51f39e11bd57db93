"""One step of backbone training: masked loss, gradients, clipped and scheduled update, moving averages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from cftjax import backbones, devices, losses, types
from cftjax.config import BackboneConfig, TrainingConfig

LOSSES = {"bce": losses.sigmoid_bce, "focal": losses.focal, "asymmetric": losses.asymmetric}
MOMENTUM = 0.9


class Classifier(nnx.Module):
    """A backbone and the last layer, one logistic regression per category."""

    def __init__(self, config: BackboneConfig, num_categories: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Build with random weights; `dtype` is that of the backbone's arithmetic, the head's is float32."""
        self.backbone = backbones.create(config, rngs, dtype)
        self.head = nnx.Linear(self.backbone.dim, num_categories, rngs=rngs)

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n c"]:
        """Raw logits."""
        return self.head(self.backbone.embed(images))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Fields have no types of arrays, for it is also made of shapes and of whatever else orbax puts in their place.

    Attributes:
        step: [] int32, steps done.
        params: of the classifier.
        stats: running statistics of its batch normalisations.
        rest: its other variables, such as the keys of dropout.
        ema: moving averages of (params, stats).
        opt_state: of the optimizer.
        finite: [] bool, False from the first step on whose loss or gradient was not finite; nothing changes any more.
    """

    step: Any
    params: Any
    stats: Any
    rest: Any
    ema: Any
    opt_state: Any
    finite: Any


@dataclasses.dataclass(frozen=True)
class Spec:
    """What stays the same from step to step, and is part of the compiled program.

    Attributes:
        graphdef: of the classifier: its structure without its variables.
        config: loss, optimizer, schedule and decay.
        num_steps: length of the schedule.
        mesh: of the devices.
    """

    graphdef: nnx.GraphDef[Classifier]
    config: TrainingConfig
    num_steps: int
    mesh: Mesh


def new_spec(graphdef: nnx.GraphDef[Classifier], config: TrainingConfig, num_steps: int, mesh: Mesh) -> Spec:
    """A spec without the settings of the loop around the steps: other ones need not be compiled anew."""
    config = dataclasses.replace(config, epochs=1, max_steps=None, patience=1, checkpoint_seconds=0.0)
    return Spec(graphdef, config, num_steps, mesh)


def schedule(config: TrainingConfig, num_steps: int) -> optax.Schedule:
    """The backbone's learning rate by step."""
    if config.schedule == "onecycle":
        return optax.cosine_onecycle_schedule(num_steps, config.learning_rate, config.warmup)
    warmup = int(config.warmup * num_steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.learning_rate, config.learning_rate, warmup, num_steps
    )


def optimizer(config: TrainingConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping, Adam or SGD, decoupled weight decay, the schedule, and the head's own rate."""
    kind = optax.scale_by_adam() if config.optimizer == "adam" else optax.trace(MOMENTUM, nesterov=True)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        kind,
        # Biases and the scales of normalisations are spared: pulling them to zero regularises nothing.
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
        optax.masked(optax.scale(config.head_learning_rate_scale), _is_head),
    )


def _is_head(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0] == jax.tree_util.DictKey("head"), params)


def new_classifier(config: BackboneConfig, num_categories: int, dtype: Any, seed: int) -> Classifier:
    """A classifier with random or, where the configuration names them, pretrained weights in the backbone."""
    graphdef, *_ = abstract_classifier(config, num_categories, dtype)

    def draw(key: jax.Array) -> Any:
        return nnx.as_pure(nnx.state(Classifier(config, num_categories, dtype=dtype, rngs=nnx.Rngs(key))))

    # One program for all layers, and on the CPU one that is quickly compiled: it runs once. Level 0 would be quicker
    # still, but XLA's CPU backend has been seen to compute NaN there.
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    model = nnx.merge(graphdef, jax.jit(draw, compiler_options=quick)(jax.random.key(seed)))
    backbones.load_weights(model.backbone, config)
    return model


def abstract_classifier(config: BackboneConfig, num_categories: int, dtype: Any) -> tuple[Any, Any, Any, Any]:
    """Structure, and shapes of parameters, statistics and other variables, without computing any."""
    build = functools.partial(Classifier, config, num_categories, dtype=dtype)
    model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    graphdef, *variables = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = map(nnx.as_pure, variables)
    return graphdef, params, stats, rest


def other_variables(config: BackboneConfig, num_categories: int, dtype: Any) -> Any:
    """What is neither a parameter nor a running statistic, and need not be stored to embed."""

    def build() -> Any:
        model = Classifier(config, num_categories, dtype=dtype, rngs=nnx.Rngs(0))
        return nnx.as_pure(nnx.split(model, nnx.Param, nnx.BatchStat, ...)[3])

    return jax.jit(build)()


def new_state(spec: Spec, model: Classifier) -> TrainState:
    """The state before the first step, on all devices; it takes copies of the model's variables."""
    _, *variables = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = (devices.replicate(nnx.as_pure(part), spec.mesh) for part in variables)
    # Copies, since a buffer that appears twice, or in the model too, cannot be donated.
    (params, stats, rest), ema = jax.tree.map(jnp.copy, ((params, stats, rest), (params, stats)))
    begin = jax.jit(optimizer(spec.config, spec.num_steps).init, out_shardings=devices.replicated(spec.mesh))
    step, finite = devices.replicate((jnp.int32(0), jnp.bool(True)), spec.mesh)
    return TrainState(step, params, stats, rest, ema, begin(params), finite)


def abstract_state(spec: Spec, params: Any, stats: Any, rest: Any) -> TrainState:
    """Shapes and places of `new_state`, for restoring one."""
    opt_state = jax.eval_shape(optimizer(spec.config, spec.num_steps).init, params)
    step, finite = jax.eval_shape(lambda: (jnp.int32(0), jnp.bool(True)))
    state = TrainState(step, params, stats, rest, (params, stats), opt_state, finite)
    return devices.abstract(state, devices.replicated(spec.mesh))


@functools.lru_cache(maxsize=8)
def compiled(spec: Spec) -> Callable[[TrainState, types.Batch], tuple[TrainState, Float[jax.Array, ""]]]:
    """`train_step` of a spec, jitted; the state's buffers are reused for the new state."""
    whole = devices.replicated(spec.mesh)
    return jax.jit(functools.partial(train_step, spec), donate_argnums=0, out_shardings=whole)


def train_step(spec: Spec, state: TrainState, batch: types.Batch) -> tuple[TrainState, Float[jax.Array, ""]]:
    """One update.

    Returns:
        The new state and the mean loss in nats per known label; NaN, and the state as it was, where the loss or the
        gradient is not finite, and ever after.
    """
    gradient = jax.value_and_grad(loss_and_variables, has_aux=True)
    (loss, (stats, rest)), grads = gradient(state.params, spec, state, batch)
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))

    updates, opt_state = optimizer(spec.config, spec.num_steps).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Young averages forget faster, or random initial weights would dominate the first epochs.
    decay = jnp.minimum(spec.config.ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update((params, stats), state.ema, 1 - decay)

    new = TrainState(state.step + 1, params, stats, rest, ema, opt_state, state.finite)
    new = jax.tree.map(functools.partial(jnp.where, finite), new, state)
    return dataclasses.replace(new, finite=finite), jnp.where(finite, loss, jnp.nan)


def loss_and_variables(
    params: Any, spec: Spec, state: TrainState, batch: types.Batch
) -> tuple[Float[jax.Array, ""], tuple[Any, Any]]:
    """Mean loss over the known labels of a batch, and the variables that the forward pass changed."""
    model = nnx.merge(spec.graphdef, params, state.stats, state.rest)
    model.train()
    loss = LOSSES[spec.config.loss](model(jnp.asarray(batch.image)), batch.labels, where=batch.known)
    # Split by hand: outside of nnx.jit running statistics would be dropped without a word.
    _, _, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return losses.mean_known(loss, batch.known), (nnx.as_pure(stats), nnx.as_pure(rest))
