"""The search: per category a population of heads evolves to rank the known training labels, validation keeps the best.

All categories of a group advance together in one program: candidates are bred, scored on the packed known rows by one
product and one sort, and the best of the generation is scored on validation, where only a strictly better score
replaces the head kept (Chong et al. 2023, algorithm 1). Every category sees the same random stream, so the result of
a category depends neither on its place in the list nor on the categories beside it, and the bits are drawn once for
all.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from cftjax import metrics
from cftjax.cft import algorithms, problems
from cftjax.cft.problems import Rows, Space
from cftjax.config import GAConfig
from cftjax.types import Embeddings, Heads

GENERATIONS_AT_ONCE = 50
SECONDS_BETWEEN_SAVES = 20.0

Store = MutableMapping[str, dict[str, np.ndarray]]
Progress = Callable[[int, int, float], None]


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search brought back.

    Attributes:
        heads: [c d]; untuned categories keep the head they came with.
        before: [c] validation score of the heads it started from.
        after: [c] validation score of the heads found.
        history: [g c] best validation score so far after each generation; NaN once a category has stopped.
        untuned: category -> why it could not be tuned.
    """

    heads: Heads
    before: Float[np.ndarray, " c"]
    after: Float[np.ndarray, " c"]
    history: Float[np.ndarray, "g c"]
    untuned: dict[int, str]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A group of categories in mid-search; every leaf has the categories first.

    Attributes:
        algorithm: evosax's state.
        genes: [g r] the best by validation so far.
        score: [g] its validation score.
        best_at: [g] the generation that found it.
        generation: [g] generations done.
    """

    algorithm: Any
    genes: jax.Array
    score: jax.Array
    best_at: jax.Array
    generation: jax.Array


def _scores(rows: Rows, genes: Float[jax.Array, "g p r"]) -> Float[jax.Array, "g p k"]:
    product = jnp.einsum("gpr,gkr->gpk", genes, rows.z.astype(genes.dtype), precision=jax.lax.Precision.HIGHEST)
    return product + rows.base[:, None, :]


def _fitness(rows: Rows, genes: Float[jax.Array, "g p r"], metric: str) -> Float[jax.Array, "g p"]:
    scores = _scores(rows, genes)
    labels, where = (jnp.broadcast_to(x[:, None, :], scores.shape) for x in (rows.labels, rows.where))
    return metrics.OF_KEYS[metric](metrics.ranking_keys(scores, labels, where))


def _kernel_genes(genes: jax.Array, has_bias: bool) -> jax.Array:
    """The genes that the ranking sees: a bias moves all scores of a category together."""
    return genes[..., :-1] if has_bias else genes


class _Engine:
    """The compiled programs of one configuration; shapes are compiled as they come."""

    def __init__(self, config: GAConfig, num_genes: int, has_bias: bool, mesh: Mesh | None):
        self.config = config
        self.has_bias = has_bias
        self.algorithm, self.params = algorithms.create(config, num_genes + has_bias)
        over_categories = (
            functools.partial(jax.shard_map, mesh=mesh, out_specs=PartitionSpec("data"), check_vma=False)
            if mesh is not None
            else (lambda f, in_specs: f)
        )
        split, whole = PartitionSpec("data"), PartitionSpec()
        self.sharding = NamedSharding(mesh, split) if mesh is not None else None
        self.start = jax.jit(over_categories(self._start, in_specs=(split, split, split, whole)))
        self.advance = jax.jit(
            over_categories(self._advance, in_specs=(split, split, split, whole, whole)), donate_argnums=0
        )

    def _start(self, train: Rows, validation: Rows, genes: jax.Array, key: jax.Array) -> State:
        population = jnp.repeat(genes[:, None, :], self.config.population_size, axis=1)
        score = _fitness(validation, _kernel_genes(genes, self.has_bias)[:, None, :], self.config.metric)[:, 0]
        fitness = _fitness(train, _kernel_genes(genes, self.has_bias)[:, None, :], self.config.metric)
        fitness = jnp.repeat(-fitness, self.config.population_size, axis=1)
        begin = functools.partial(algorithms.start, self.algorithm, self.params)
        state = jax.vmap(begin, (None, 0, 0))(key, population, fitness)
        zeros = jnp.zeros(genes.shape[:1], jnp.int32)
        return State(state, genes, score, zeros, zeros)

    def _active(self, state: State) -> jax.Array:
        config = self.config
        return (state.generation - state.best_at < config.patience) & (state.generation < config.num_generations)

    def _generation(self, train: Rows, validation: Rows, key: jax.Array, state: State) -> State:
        # Categories of a group that still run are at the same generation, so that they share the stream.
        key_ask, key_tell = jax.random.split(jax.random.fold_in(key, jnp.max(state.generation)))
        population, algorithm = jax.vmap(self.algorithm.ask, (None, 0, None))(key_ask, state.algorithm, self.params)
        fitness = _fitness(train, _kernel_genes(population, self.has_bias), self.config.metric)
        algorithm, _ = jax.vmap(self.algorithm.tell, (None, 0, 0, 0, None))(
            key_tell, population, -fitness, algorithm, self.params
        )
        best = jnp.take_along_axis(population, jnp.argmax(fitness, axis=1)[:, None, None], axis=1)
        score = _fitness(validation, _kernel_genes(best, self.has_bias), self.config.metric)[:, 0]
        better = score > state.score
        return State(
            algorithm,
            jnp.where(better[:, None], best[:, 0], state.genes),
            jnp.where(better, score, state.score),
            jnp.where(better, state.generation + 1, state.best_at),
            state.generation + 1,
        )

    def _advance(
        self, state: State, train: Rows, validation: Rows, key: jax.Array, limit: jax.Array
    ) -> tuple[State, jax.Array]:
        """Up to GENERATIONS_AT_ONCE generations; also the best score after each, [g generations], NaN where idle."""
        history = jnp.full((state.score.shape[0], GENERATIONS_AT_ONCE), jnp.nan)

        def body(carry: tuple[jax.Array, State, jax.Array]) -> tuple[jax.Array, State, jax.Array]:
            step, old, history = carry
            active = self._active(old)
            new = self._generation(train, validation, key, old)
            kept = jax.tree.map(lambda a, b: jnp.where(active.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
            column = jnp.where(active, kept.score, jnp.nan)[:, None]
            return step + 1, kept, jax.lax.dynamic_update_slice(history, column, (0, step))

        def go_on(carry: tuple[jax.Array, State, jax.Array]) -> jax.Array:
            step, state, _ = carry
            return (step < limit) & jnp.any(self._active(state))

        _, state, history = jax.lax.while_loop(go_on, body, (jnp.int32(0), state, history))
        return state, history


@functools.lru_cache(maxsize=8)
def _engine(config: GAConfig, num_genes: int, has_bias: bool, mesh: Mesh | None) -> _Engine:
    """Kept, so that a second search of the same kind compiles nothing."""
    return _Engine(config, num_genes, has_bias, mesh)


def _pack(state: State, history: list[np.ndarray]) -> dict[str, np.ndarray]:
    leaves = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    return leaves | {"history": np.concatenate(history, axis=1)}


def search(
    heads: Heads,
    train: Embeddings,
    validation: Embeddings,
    *,
    key: jax.Array,
    config: GAConfig | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Found:
    """Search a better head for each category on its known training labels, keeping the best by validation.

    Args:
        heads: where to start, kernel [c d] and bias [c].
        train: embeddings [n d] or [n c d] (arrays or memory maps) with labels and known.
        validation: the same for the split that judges.
        key: randomness; the same key gives the same heads.
        config: operators, budget and metric; None for the defaults.
        store: where finished categories and the state of running ones are kept; a search given the store of an
            interrupted one goes on where that stood.
        progress: called with generations done, generations at most, and the mean validation score so far.
        mesh: devices with an axis `data`, over which categories are split; None for one device.

    Returns:
        Found: heads, scores, history, and the categories that could not be tuned, with the reason.

    Raises:
        ValueError: for an unknown algorithm or metric.
    """
    config = config or GAConfig()
    store = {} if store is None else store
    kernel, bias = np.array(heads.kernel, np.float32), np.array(heads.bias, np.float32)
    untuned = problems.untunable(train, validation)
    whole = config.dimensions is None  # the genes are kernel and bias themselves, as published
    space = Space() if config.dimensions is None else problems.principal_space(train, config.dimensions)
    seen_train, seen_validation = (problems.see(split, heads, space) for split in (train, validation))
    unit = np.ones(len(kernel), np.float32) if whole else problems.spread(seen_train)
    num_genes = seen_train.z.shape[-1]
    start_genes = (
        np.concatenate([kernel, bias[:, None]], 1) if whole else np.zeros((len(kernel), num_genes), np.float32)
    )
    counts = {c: int(seen_train.known[:, c].sum()) for c in range(len(kernel)) if c not in untuned}
    validation_counts = seen_validation.known.sum(0)

    devices = 1 if mesh is None else mesh.shape["data"]
    engine = _engine(config, num_genes, whole, mesh)
    longest = problems.padded_length(max(counts.values(), default=1))
    each = 4.0 * (longest * num_genes + 6 * config.population_size * longest + 4 * config.population_size * num_genes)
    at_once = config.categories_at_once or problems.categories_at_once(each, devices)
    before, after = (np.full(len(kernel), np.nan, np.float32) for _ in range(2))
    history = np.full((config.num_generations, len(kernel)), np.nan, np.float32)
    genes = start_genes.copy()
    done = 0

    for length, group in problems.groups(counts, at_once):
        name = "group-" + "-".join(map(str, group))
        results = store.get(name + "-done")
        if results is None:
            padding = -len(group) % devices
            members = [*group, *[group[-1]] * padding]
            longest_validation = problems.padded_length(int(validation_counts[members].max()))
            rows = [
                jax.device_put(problems.rows_of(seen, members, size, unit, add_base=not whole), engine.sharding)
                for seen, size in ((seen_train, length), (seen_validation, longest_validation))
            ]
            first = jax.device_put(jnp.asarray(start_genes[members]), engine.sharding)
            state = engine.start(*rows, first, key)
            started = np.asarray(state.score)
            parts: list[np.ndarray] = [np.zeros((len(members), 0), np.float32)]
            running = store.get(name)
            if running is not None:
                leaves, tree = jax.tree.flatten(state)
                restored = [jax.device_put(running[f"leaf_{i}"], leaf.sharding) for i, leaf in enumerate(leaves)]
                state, parts = jax.tree.unflatten(tree, restored), [running["history"]]
            limit, saved = jnp.int32(GENERATIONS_AT_ONCE), time.monotonic()
            while bool(jnp.any(engine._active(state))):
                state, recent = engine.advance(state, *rows, key, limit)
                parts.append(np.asarray(recent))
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    store[name] = _pack(state, parts)
                    saved = time.monotonic()
                if progress is not None:
                    so_far = after.copy()
                    so_far[group] = np.asarray(state.score)[: len(group)]
                    steps = int(np.asarray(state.generation)[: len(group)].sum())
                    progress(done + steps, config.num_generations * len(counts), float(np.nanmean(so_far)))
            results = {
                "genes": np.asarray(state.genes)[: len(group)],
                "before": started[: len(group)],
                "after": np.asarray(state.score)[: len(group)],
                "history": np.concatenate(parts, axis=1)[: len(group), : config.num_generations],
            }
            store[name + "-done"] = results
        genes[group], before[group], after[group] = results["genes"], results["before"], results["after"]
        history[: results["history"].shape[1], group] = results["history"].T
        done += config.num_generations * len(group)
        if progress is not None:
            progress(done, config.num_generations * len(counts), float(np.nanmean(after)))

    for c in counts:
        if whole:
            kernel[c], bias[c] = genes[c, :-1], genes[c, -1]
        else:
            step, shift = space.step(genes[c] * unit[c], c)
            kernel[c] += step
            bias[c] += shift
    if config.refit_bias:
        bias = problems.refit_bias(Heads(kernel, bias), train, sorted(counts))
    return Found(Heads(kernel, bias), before, after, history, untuned)
