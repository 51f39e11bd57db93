"""The polish: gradient descent on each category's known labels, from the heads that the search found.

Every strength of the pull towards the starting head descends side by side; after each step all are scored on
validation, where only a strictly better score replaces the head kept (the gradient variant of Chong et al. 2023, sec.
3.2).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from cftjax import losses, metrics
from cftjax.cft import problems
from cftjax.cft.problems import Rows, Space
from cftjax.cft.search import Progress, Store
from cftjax.config import PolishConfig
from cftjax.types import Embeddings, Heads


@dataclasses.dataclass(frozen=True)
class Polished:
    """What the polish brought back.

    Attributes:
        heads: [c d]; untuned categories keep the head they came with.
        before: [c] validation score of the heads it started from.
        after: [c] validation score of the heads kept.
        steps: [c] the step that was kept, 0 where none was better.
        l2: [c] the strength that was kept.
        untuned: category -> why it could not be tuned.
    """

    heads: Heads
    before: Float[np.ndarray, " c"]
    after: Float[np.ndarray, " c"]
    steps: Float[np.ndarray, " c"]
    l2: Float[np.ndarray, " c"]
    untuned: dict[int, str]


def _logits(rows: Rows, genes: Float[jax.Array, " r"], bias: Float[jax.Array, ""]) -> Float[jax.Array, " k"]:
    """Of one category: z [k r], base [k]."""
    return jnp.einsum("kr,r->k", rows.z, genes, precision=jax.lax.Precision.HIGHEST) + rows.base + bias


def _objective(parameters: Any, rows: Rows, l2: jax.Array, loss: str) -> jax.Array:
    """Mean loss over the known rows of one category, plus half the squared length of the step times its strength."""
    genes, bias = parameters
    logits, targets = _logits(rows, genes, bias)[:, None], rows.labels.astype(jnp.float32)[:, None]
    if loss == "bce":
        found = losses.sigmoid_bce(logits, targets, where=rows.where[:, None])
    else:  # the focusing factor is a constant in the gradient, as in the authors' code
        found = losses.asymmetric(logits, targets, where=rows.where[:, None], stop_focusing_gradient=True)
    return losses.mean_known(found, rows.where[:, None]) + 0.5 * l2 * jnp.sum(genes**2)


def _optimizer(config: PolishConfig) -> Any:
    return optax.lbfgs() if config.optimizer == "lbfgs" else optax.adam(config.learning_rate)


def _update(parameters: Any, state: Any, rows: Rows, l2: jax.Array, config: PolishConfig) -> tuple[Any, Any]:
    """One step of one category under one strength."""
    value, gradient = jax.value_and_grad(_objective)(parameters, rows, l2, config.loss)
    extra: dict[str, Any] = {}
    if config.optimizer == "lbfgs":
        extra = {"value": value, "grad": gradient, "value_fn": lambda p: _objective(p, rows, l2, config.loss)}
    updates, state = _optimizer(config).update(gradient, state, parameters, **extra)
    return optax.apply_updates(parameters, updates), state


def _descend(train: Rows, validation: Rows, config: PolishConfig) -> dict[str, jax.Array]:
    """All strengths of one category, until none has improved for `patience` steps."""
    strengths = jnp.asarray(config.l2, jnp.float32)

    def score(genes: jax.Array) -> jax.Array:
        """[s r] to [s]; the bias does not change a ranking."""
        product = jnp.einsum("sr,kr->sk", genes, validation.z, precision=jax.lax.Precision.HIGHEST)
        logits = product + validation.base[None, :]
        labels, where = (jnp.broadcast_to(x[None, :], logits.shape) for x in (validation.labels, validation.where))
        return metrics.OF_KEYS[config.metric](metrics.ranking_keys(logits, labels, where))

    parameters = (jnp.zeros((len(config.l2), train.z.shape[-1])), jnp.zeros((len(config.l2),)))
    first = {
        "genes": parameters[0][0],
        "bias": parameters[1][0],
        "score": score(parameters[0][:1])[0],
        "step": jnp.int32(0),
        "l2": jnp.float32(0),
    }

    def go_on(carry: Any) -> jax.Array:
        step, best, _, _ = carry
        return (step < config.num_steps) & (step - best["step"] < config.patience)

    def body(carry: Any) -> Any:
        step, best, parameters, state = carry
        parameters, state = jax.vmap(lambda p, s, l2: _update(p, s, train, l2, config))(parameters, state, strengths)
        scores = score(parameters[0])
        i = jnp.argmax(scores)
        candidate = {
            "genes": parameters[0][i],
            "bias": parameters[1][i],
            "score": scores[i],
            "step": step + 1,
            "l2": strengths[i],
        }
        better = scores[i] > best["score"]
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, best)
        return step + 1, best, parameters, state

    state = jax.vmap(_optimizer(config).init)(parameters)
    _, best, _, _ = jax.lax.while_loop(go_on, body, (jnp.int32(0), first, parameters, state))
    return best | {"before": first["score"]}


@functools.lru_cache(maxsize=8)
def _program(config: PolishConfig, mesh: Mesh | None) -> Any:
    """Rows of train and of validation to the best of each category; kept, so that a second polish compiles nothing."""

    def of_group(train: Rows, validation: Rows) -> dict[str, jax.Array]:
        return jax.vmap(lambda t, v: _descend(t, v, config))(train, validation)

    if mesh is None:
        return jax.jit(of_group)
    split = PartitionSpec("data")
    return jax.jit(jax.shard_map(of_group, mesh=mesh, in_specs=(split, split), out_specs=split, check_vma=False))


def polish(
    heads: Heads,
    train: Embeddings,
    validation: Embeddings,
    *,
    config: PolishConfig | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Polished:
    """Descend from each category's head on its known training labels, keeping the best step by validation.

    Args:
        heads: where to start, kernel [c d] and bias [c].
        train: embeddings [n d] or [n c d] (arrays or memory maps) with labels and known.
        validation: the same for the split that judges.
        config: loss, optimizer and strengths; None for the defaults.
        store: where finished categories are kept, so that an interrupted polish goes on.
        progress: called with categories done, categories, and the mean validation score so far.
        mesh: devices with an axis `data`, over which categories are split; None for one device.

    Returns:
        Polished: heads, scores, and the categories that could not be tuned, with the reason.
    """
    config = config or PolishConfig()
    store = {} if store is None else store
    kernel, bias = np.array(heads.kernel, np.float32), np.array(heads.bias, np.float32)
    untuned = problems.untunable(train, validation)
    space = Space() if config.dimensions is None else problems.principal_space(train, config.dimensions)
    seen_train, seen_validation = (problems.see(split, heads, space) for split in (train, validation))
    unit = np.ones(len(kernel), np.float32)
    counts = {c: int(seen_train.known[:, c].sum()) for c in range(len(kernel)) if c not in untuned}
    validation_counts = seen_validation.known.sum(0)

    devices = 1 if mesh is None else mesh.shape["data"]
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))

    run = _program(config, mesh)
    each = (
        4.0
        * problems.padded_length(max(counts.values(), default=1))
        * (2 * seen_train.z.shape[-1] + 8 * len(config.l2))
    )
    at_once = problems.categories_at_once(each, devices)
    before, after, steps, l2 = (np.full(len(kernel), np.nan, np.float32) for _ in range(4))
    done = 0

    for length, group in problems.groups(counts, at_once):
        name = "group-" + "-".join(map(str, group))
        results = store.get(name)
        if results is None:
            members = [*group, *[group[-1]] * (-len(group) % devices)]
            longest_validation = problems.padded_length(int(validation_counts[members].max()))
            rows = [
                jax.device_put(problems.rows_of(seen, members, size, unit), sharding)
                for seen, size in ((seen_train, length), (seen_validation, longest_validation))
            ]
            results = {name: np.asarray(value)[: len(group)] for name, value in run(*rows).items()}
            store[name] = results
        for g, c in enumerate(group):
            step, shift = space.step(results["genes"][g], c)
            if results["step"][g] > 0:
                kernel[c] += step
                bias[c] += shift + results["bias"][g]
        before[group], after[group] = results["before"], results["score"]
        steps[group], l2[group] = results["step"], results["l2"]
        done += len(group)
        if progress is not None:
            progress(done, len(counts), float(np.nanmean(after)))
    if config.refit_bias:
        bias = problems.refit_bias(Heads(kernel, bias), train, sorted(c for c in counts if steps[c] > 0))
    return Polished(Heads(kernel, bias), before, after, steps, l2, untuned)
