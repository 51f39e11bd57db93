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
from jaxtyping import Array, Bool, Float, Int

from cftjax import backbones, losses, types
from cftjax.config import UNKNOWN_OPTIONS, BackboneConfig, LabelsConfig, TrainingConfig
from cftjax.runtime import devices
from cftjax.training import unknowns

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
        memory: what the mode of unknown labels remembers, by name; see `unknowns.new_memory`.
        positive_weights: [c] factors of the losses of positives, or None.
    """

    step: Any
    params: Any
    stats: Any
    rest: Any
    ema: Any
    opt_state: Any
    finite: Any
    memory: Any = dataclasses.field(default_factory=dict)
    positive_weights: Any = None


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
    """

    graphdef: nnx.GraphDef[Any]
    config: TrainingConfig
    num_steps: int
    mesh: Mesh
    labels: LabelsConfig
    steps_per_epoch: int
    seed: int


def new_spec(
    graphdef: nnx.GraphDef[Any],
    config: TrainingConfig,
    num_steps: int,
    mesh: Mesh,
    *,
    labels: LabelsConfig | None = None,
    steps_per_epoch: int = 1,
    seed: int = 0,
) -> Spec:
    """A spec without the settings that steps do not read: other ones need not be compiled anew."""
    config = dataclasses.replace(config, epochs=1, max_steps=None, patience=1, checkpoint_seconds=0.0)
    labels = labels or LabelsConfig()
    mode = labels.unknown if labels.unknown in UNKNOWN_OPTIONS else "ignore"
    read = {name: getattr(labels, name) for name in UNKNOWN_OPTIONS.get(mode, ())}
    if "unknown_warmup" not in read:
        steps_per_epoch = 1
    seed = seed if config.mixup else 0
    return Spec(graphdef, config, num_steps, mesh, LabelsConfig(unknown=mode, **read), steps_per_epoch, seed)


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
    by_depth = [optax.stateless(functools.partial(_decay_by_depth, config.layer_decay))]
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        kind,
        # Biases and the scales of normalisations are spared: pulling them to zero regularises nothing.
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
        optax.masked(optax.scale(config.head_learning_rate_scale), _is_head),
        *(by_depth if config.layer_decay < 1 else ()),
    )


def _decay_by_depth(decay: float, updates: Any, params: Any) -> Any:
    """Updates times `decay` to the number of blocks between a layer and the head.

    Source: Clark et al., "ELECTRA", ICLR 2020, appendix A; a block of the backbone is their layer.
    """
    paths = [[str(getattr(key, "key", "")) for key in path] for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    last = max((int(path[2]) for path in paths if path[:2] == ["backbone", "blocks"]), default=-1)

    def blocks_to_head(path: list[str]) -> int:
        if path[0] != "backbone":
            return 0
        if path[1] == "blocks":
            return 1 + last - int(path[2])
        # What comes before the blocks, or after them.
        return 2 + last if path[1].startswith("stem") else 0

    leaves, treedef = jax.tree.flatten(updates)
    scaled = [leaf * decay ** blocks_to_head(path) for leaf, path in zip(leaves, paths, strict=True)]
    return jax.tree.unflatten(treedef, scaled)


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


def new_state(spec: Spec, model: nnx.Module, memory: Any = None, positive_weights: Any = None) -> TrainState:
    """The state before the first step, on all devices; it takes copies of the model's variables."""
    _, *variables = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = (devices.replicate(nnx.as_pure(part), spec.mesh) for part in variables)
    # Copies, since a buffer that appears twice, or in the model too, cannot be donated.
    (params, stats, rest), ema = jax.tree.map(jnp.copy, ((params, stats, rest), (params, stats)))
    begin = jax.jit(optimizer(spec.config, spec.num_steps).init, out_shardings=devices.replicated(spec.mesh))
    step, finite = devices.replicate((jnp.int32(0), jnp.bool(True)), spec.mesh)
    kept = devices.replicate((memory or {}, positive_weights), spec.mesh)
    return TrainState(step, params, stats, rest, ema, begin(params), finite, *kept)


def abstract_state(
    spec: Spec, params: Any, stats: Any, rest: Any, memory: Any = None, positive_weights: Any = None
) -> TrainState:
    """Shapes and places of `new_state`, for restoring one."""
    opt_state = jax.eval_shape(optimizer(spec.config, spec.num_steps).init, params)
    step, finite = jax.eval_shape(lambda: (jnp.int32(0), jnp.bool(True)))
    kept = memory or {}, positive_weights
    state = TrainState(step, params, stats, rest, (params, stats), opt_state, finite, *kept)
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
    batch, weights = mixed(spec, state.step, batch) if spec.config.mixup else (batch, None)
    if spec.config.accumulate == 1:
        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (stats, rest, memory)), grads = gradient(state.params, spec, state, batch, weights)
    else:
        loss, (stats, rest, memory), grads = accumulated(spec, state, batch, weights)
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))

    updates, opt_state = optimizer(spec.config, spec.num_steps).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Young averages forget faster, or random initial weights would dominate the first epochs.
    decay = jnp.minimum(spec.config.ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update((params, stats), state.ema, 1 - decay)

    new = TrainState(state.step + 1, params, stats, rest, ema, opt_state, state.finite, memory, state.positive_weights)
    new = jax.tree.map(functools.partial(jnp.where, finite), new, state)
    return dataclasses.replace(new, finite=finite), jnp.where(finite, loss, jnp.nan)


Weights = Float[types.Array, "n c"] | None
Changed = tuple[Any, Any, Any]


def losses_and_variables(
    params: Any, spec: Spec, state: TrainState, batch: types.Batch, weights: Weights
) -> tuple[Float[types.Array, "n c"], Bool[types.Array, "n c"], Changed]:
    """Loss of every label, where it counts, and what the forward pass changed: statistics, variables, memory."""
    model = nnx.merge(spec.graphdef, params, state.stats, state.rest)
    model.train()
    logits = model(jnp.asarray(batch.image))
    loss_of = functools.partial(LOSSES[spec.config.loss], positive_weights=state.positive_weights)
    targets, where, memory = batch.labels, batch.known, state.memory
    if batch.unknown is not None:
        seen = jax.lax.stop_gradient(logits)
        resolved, memory = unknowns.resolve(
            spec.labels,
            seen,
            batch.labels,
            batch.known,
            batch.unknown,
            batch.rows,
            memory,
            state.step // spec.steps_per_epoch,
            lambda given: loss_of(seen, given.targets, where=given.where),
        )
        targets, where = resolved.targets, resolved.where
        weights = resolved.weights if weights is None else resolved.weights * weights
    loss = loss_of(logits, targets, where=where)
    if weights is not None:
        loss = loss * weights
    # Split by hand: outside of nnx.jit running statistics would be dropped without a word.
    _, _, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return loss, where, (nnx.as_pure(stats), nnx.as_pure(rest), memory)


def mean_loss(
    params: Any, spec: Spec, state: TrainState, batch: types.Batch, weights: Weights
) -> tuple[Float[jax.Array, ""], Changed]:
    """Mean loss over the labels of a batch that count, and what the forward pass changed."""
    loss, where, changed = losses_and_variables(params, spec, state, batch, weights)
    return losses.mean_known(loss, where), changed


def accumulated(
    spec: Spec, state: TrainState, batch: types.Batch, weights: Weights
) -> tuple[Float[jax.Array, ""], Changed, Any]:
    """What `mean_loss` and its gradient are for the whole batch, of which parts go through the network one by one.

    Sums are divided by the whole batch's number of labels, so that parts of few known labels do not weigh more. What
    looks at a batch as a whole sees its parts: batch normalisation, and modes that rank the losses of unknown labels.
    """

    def total(params: Any, state: TrainState, part: tuple[types.Batch, Weights]) -> tuple[jax.Array, Any]:
        loss, where, changed = losses_and_variables(params, spec, state, *part)
        return jnp.sum(loss), (jnp.sum(where), changed)

    def split(x: jax.Array) -> jax.Array:
        # Every part takes rows from all over the batch, and so from every device.
        return jnp.moveaxis(x.reshape(-1, spec.config.accumulate, *x.shape[1:]), 1, 0)

    def add(carry: tuple[Any, ...], part: tuple[types.Batch, Weights]) -> tuple[tuple[Any, ...], None]:
        (stats, rest, memory), loss, count, grads = carry
        seen = dataclasses.replace(state, stats=stats, rest=rest, memory=memory)
        (new_loss, (new_count, changed)), new_grads = jax.value_and_grad(total, has_aux=True)(state.params, seen, part)
        return (changed, loss + new_loss, count + new_count, jax.tree.map(jnp.add, grads, new_grads)), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    begin = ((state.stats, state.rest, state.memory), jnp.float32(0), jnp.int32(0), zeros)
    parts = jax.tree.map(lambda x: split(jnp.asarray(x)), (batch, weights))
    (changed, loss, count, grads), _ = jax.lax.scan(add, begin, parts)
    count = jnp.maximum(count, 1).astype(jnp.float32)
    return loss / count, changed, jax.tree.map(lambda x: x / count, grads)


def mixed(spec: Spec, step: Int[Array, ""], batch: types.Batch) -> tuple[types.Batch, Float[Array, "n c"]]:
    """Every image of a batch mixed with the one at the same place from the end, and weights for the losses of labels.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, with a share of its own per image. A
    label known in both images has the mixed target and weighs 1. One known in one of them alone has that image's
    target and weighs that image's share, which is what mixup's loss, linear in the target, takes from that image. It
    is unknown where it is known in neither.
    """
    key = jax.random.fold_in(jax.random.key(spec.seed), step)
    n, alpha = len(batch.rows), spec.config.mixup
    share = jax.random.beta(key, alpha, alpha, (n, 1), jnp.float32)

    def both(x: Any) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        by = share.reshape(n, *[1] * (x.ndim - 1))
        return by * x + (1 - by) * x[::-1]

    known = jnp.asarray(batch.known)
    weights, positive = both(known), both(jnp.where(known, batch.labels, 0))
    either = known | known[::-1]
    labels = jnp.where(either, positive / jnp.where(weights > 0, weights, 1), 0)
    unknown = None
    if batch.unknown is not None:
        given = jnp.asarray(batch.unknown)
        unknown = (given | given[::-1]) & ~either
        weights = jnp.where(unknown, both(given), weights)
    mix = batch._replace(image=both(batch.image), labels=labels, known=either, unknown=unknown)
    return mix, weights
