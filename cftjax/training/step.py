"""One step of backbone training: masked loss, gradients, clipped and scheduled update, moving averages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Bool, Float, PyTree

from cftjax import losses, types
from cftjax.input import augment
from cftjax.runtime import devices
from cftjax.training.mixing import mixed
from cftjax.training.state import Spec, TrainState
from cftjax.unknowns import SeenBatch

LOSSES = {"bce": losses.sigmoid_bce, "focal": losses.focal, "asymmetric": losses.asymmetric}


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
    batch = normalised(spec, batch)
    batch, weights = mixed(spec, state.step, batch) if spec.config.mixup else (batch, None)
    if spec.config.accumulate == 1:
        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (stats, rest, memory)), grads = gradient(state.params, spec, state, batch, weights)
    else:
        loss, (stats, rest, memory), grads = accumulated(spec, state, batch, weights)
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))

    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Young averages forget faster, or random initial weights would dominate the first epochs.
    decay = jnp.minimum(spec.config.ema_decay, (1 + state.step) / (10 + state.step))
    ema: PyTree = optax.incremental_update((params, stats), state.ema, 1 - decay)

    new = TrainState(state.step + 1, params, stats, rest, ema, opt_state, state.finite, memory, state.positive_weights)
    new = jax.tree.map(functools.partial(jnp.where, finite), new, state)
    return dataclasses.replace(new, finite=finite), jnp.where(finite, loss, jnp.nan)


def normalised(spec: Spec, batch: types.Batch) -> types.Batch:
    """The batch as the model takes it: grey levels normalised, the squares of cutout hidden; embeddings as they are."""
    if spec.normalisation is None:
        return batch
    image = spec.normalisation(jnp.asarray(batch.image))
    return batch._replace(image=image if batch.hidden is None else augment.cut_out(image, batch.hidden), hidden=None)


Weights = Float[types.Array, "n c"] | None
Changed = tuple[PyTree, PyTree, PyTree]


def losses_and_variables(
    params: PyTree, spec: Spec, state: TrainState, batch: types.Batch, weights: Weights
) -> tuple[Float[types.Array, "n c"], Bool[types.Array, "n c"], Changed]:
    """Loss of every label, where it counts, and what the forward pass changed: statistics, variables, memory."""
    model = nnx.merge(spec.graphdef, params, state.stats, state.rest)
    model.train()
    logits = model(jnp.asarray(batch.image))
    loss_of = functools.partial(LOSSES[spec.config.loss], positive_weights=state.positive_weights)
    targets, where, memory = batch.labels, batch.known, state.memory
    if batch.unknown is not None:
        seen = jax.lax.stop_gradient(logits)
        looked_at = SeenBatch(
            seen,
            batch.labels,
            batch.known,
            batch.unknown,
            batch.rows,
            state.step // spec.steps_per_epoch,
            memory,
            lambda targets: loss_of(seen, targets.targets, where=targets.where),
        )
        resolved, memory = spec.labels.mode.resolve(looked_at, **spec.labels.mode_options)
        targets, where = resolved.targets, resolved.where
        weights = resolved.weights if weights is None else resolved.weights * weights
    loss = loss_of(logits, targets, where=where)
    if weights is not None:
        loss = loss * weights
    # Split by hand: outside of nnx.jit running statistics would be dropped without a word.
    _, _, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return loss, where, (nnx.as_pure(stats), nnx.as_pure(rest), memory)


def mean_loss(
    params: PyTree, spec: Spec, state: TrainState, batch: types.Batch, weights: Weights
) -> tuple[Float[jax.Array, ""], Changed]:
    """Mean loss over the labels of a batch that count, and what the forward pass changed."""
    loss, where, changed = losses_and_variables(params, spec, state, batch, weights)
    return losses.mean_known(loss, where), changed


def accumulated(
    spec: Spec, state: TrainState, batch: types.Batch, weights: Weights
) -> tuple[Float[jax.Array, ""], Changed, PyTree]:
    """What `mean_loss` and its gradient are for the whole batch, of which parts go through the network one by one.

    Sums are divided by the whole batch's number of labels, so that parts of few known labels do not weigh more. What
    looks at a batch as a whole sees its parts: batch normalisation, and modes that rank the losses of unknown labels.
    """

    def total(
        params: PyTree, state: TrainState, part: tuple[types.Batch, Weights]
    ) -> tuple[jax.Array, tuple[jax.Array, Changed]]:
        loss, where, changed = losses_and_variables(params, spec, state, *part)
        return jnp.sum(loss), (jnp.sum(where), changed)

    def split(x: jax.Array) -> jax.Array:
        # Every part takes rows from all over the batch, and so from every device.
        return jnp.moveaxis(x.reshape(-1, spec.config.accumulate, *x.shape[1:]), 1, 0)

    def add(
        carry: tuple[Changed, jax.Array, jax.Array, PyTree], part: tuple[types.Batch, Weights]
    ) -> tuple[tuple[Changed, jax.Array, jax.Array, PyTree], None]:
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
