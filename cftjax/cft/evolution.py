"""A group of categories evolves: candidates are bred, scored on the known training labels, and judged by validation.

All categories of a group advance together in one program (Chong et al. 2023, algorithm 1): a generation is scored on
the packed known rows by one product and one sort, and its best candidate on validation, where only a strictly better
score replaces the head kept. Every category sees the same random stream, so the result of a category depends neither on
its place in the list nor on the categories beside it, and the bits are drawn once for all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from cftjax.cft import algorithms, packing
from cftjax.cft.packing import Rows
from cftjax.config import GAConfig, Metric

GENERATIONS_AT_ONCE = 50
# Of a group no larger than this, a device, none leave: a generation of so few is soon done.
FEWEST = 8


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
        begun: [g] the generation of the last start.
        restarts: [g] starts after the first.
        rest_best: [g j] the best score on validation without each of its parts.
        rest_genes: [g j r] the head that has it.
        rest_held: [g 2] of halves, what the head that is the best without one scores on it.
        start: [g r] where it began.
    """

    algorithm: Any
    genes: jax.Array
    score: jax.Array
    best_at: jax.Array
    generation: jax.Array
    begun: jax.Array
    restarts: jax.Array
    rest_best: jax.Array
    rest_genes: jax.Array
    rest_held: jax.Array
    start: jax.Array


def _scores(rows: Rows, genes: Float[jax.Array, "g p r"]) -> Float[jax.Array, "g p k"]:
    """What p candidates of each category give its rows."""
    product = jnp.einsum(
        "gpr,gkr->gpk",
        genes.astype(rows.z.dtype),
        rows.z,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return product + rows.base[:, None, :]


def _fitness(rows: Rows, genes: Float[jax.Array, "g p r"], metric: Metric) -> Float[jax.Array, "g p"]:
    return packing.ranking_scores(metric, _scores(rows, genes), rows.labels, rows.where, rows.slots)


def _judge(rows: Rows, genes: Float[jax.Array, "g r"], metric: Metric) -> tuple[jax.Array, jax.Array]:
    """Validation score [g] of a head of each category, and its scores without each part of validation [g j]."""
    scores, ways = _scores(rows, genes[:, None]), rows.num_parts + 1
    # As so many categories: traced once, since compiling is what a short search waits for.
    left_out = jnp.tile(jnp.arange(ways) - 1, len(scores))[:, None]
    scores, labels, where, part = (
        jnp.repeat(jnp.asarray(x), ways, axis=0) for x in (scores, rows.labels, rows.where, rows.part)
    )
    where = where & (part != left_out)
    judged = packing.ranking_scores(metric, scores, labels, where, rows.slots).reshape(-1, ways)
    return judged[:, 0], judged[:, 1:]


def _held(better: Bool[jax.Array, "g j"], rest: Float[jax.Array, "g j"], held: jax.Array) -> jax.Array:
    """What the best without a half scores on it, where there is a new best."""
    return jnp.where(better, _on_the_parts(rest), held) if held.shape[1] else held


def _on_the_parts(rest: Float[jax.Array, "g j"]) -> Float[jax.Array, "g h"]:
    """Of halves, the scores on each from the scores without each; of more parts nothing."""
    return rest[:, ::-1] if rest.shape[1] == 2 else rest[:, :0]


def _kernel_genes(genes: jax.Array, has_bias: bool) -> jax.Array:
    """The genes that the ranking sees: a bias moves all scores of a category together."""
    return genes[..., :-1] if has_bias else genes


def _where(condition: Bool[jax.Array, " g"], new: Any, old: Any) -> Any:
    """One pytree or the other, category by category."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _some_rows(rows: Rows, key: jax.Array, share: float) -> Rows:
    """A share of the known rows, or all of them where a category would be left without a positive or a negative."""
    from cftjax.cft.genetic import random_bits  # imports evosax: see algorithms.py

    # A counter's hash: the first rows draw the same bits whatever the padding behind them.
    drawn = random_bits(key, rows.labels.shape[-1:]) < jnp.uint32(share * 2**32)
    where, labels = jnp.asarray(rows.where) & drawn[None, :], jnp.asarray(rows.labels)
    enough = jnp.any(where & labels, axis=1) & jnp.any(where & ~labels, axis=1)
    return dataclasses.replace(rows, where=jnp.where(enough[:, None], where, rows.where))


class Engine:
    """The compiled programs of one configuration; shapes are compiled as they come."""

    def __init__(self, config: GAConfig, num_genes: int, has_bias: bool, mesh: Mesh | None):
        """Programs for candidates of so many genes, of which one more is a bias where there is one."""
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

    def _start(self, train: Rows, validation: Rows, seeds: jax.Array, key: jax.Array) -> State:
        """Seeds [g s r] fill the population in turn; the first is the head to be improved on."""
        size, num = self.config.population_size, seeds.shape[1]
        kernels = _kernel_genes(seeds, self.has_bias)
        score, rest = _judge(validation, kernels[:, 0], self.config.metric)
        fitness = -_fitness(train, kernels, self.config.metric)
        turn = jnp.arange(size) % num
        begin = functools.partial(algorithms.start, self.algorithm, self.params)
        state = jax.vmap(begin, (None, 0, 0))(key, seeds[:, turn], fitness[:, turn])
        zeros = jnp.zeros(seeds.shape[:1], jnp.int32)
        first = seeds[:, 0]
        each = jnp.repeat(first[:, None], rest.shape[1], axis=1)
        return State(state, first, score, zeros, zeros, zeros, zeros, rest, each, _on_the_parts(rest), first)

    def _patient(self, state: State) -> jax.Array:
        return state.generation - jnp.maximum(state.best_at, state.begun) < self.config.patience

    def active(self, state: State) -> Bool[jax.Array, " g"]:
        """Which categories go on: patient or with a restart left, and within the budget of generations."""
        going_on = self._patient(state) | (state.restarts < self.config.restarts)
        return going_on & (state.generation < self.config.num_generations)

    def _restarted(self, train: Rows, key: jax.Array, state: State) -> State:
        """Where patience has run out, the algorithm begins anew with copies of the head that it began with.

        Not with the best: that was found by looking at validation, which could then no longer judge fairly.
        """
        stalled = ~self._patient(state)

        def restart() -> Any:
            start = state.start[:, None]
            fitness = -_fitness(train, _kernel_genes(start, self.has_bias), self.config.metric)
            begin = functools.partial(algorithms.start, self.algorithm, self.params)
            copies = jnp.zeros(self.config.population_size, jnp.int32)
            fresh = jax.vmap(begin, (None, 0, 0))(key, start[:, copies], fitness[:, copies])
            return _where(stalled, fresh, state.algorithm)

        return dataclasses.replace(
            state,
            algorithm=jax.lax.cond(jnp.any(stalled), restart, lambda: state.algorithm),
            begun=jnp.where(stalled, state.generation, state.begun),
            restarts=state.restarts + stalled,
        )

    def _generation(self, train: Rows, validation: Rows, key: jax.Array, state: State) -> State:
        # Categories of a group that still run are at the same generation, so that they share the stream.
        key_ask, key_tell, key_rows = jax.random.split(jax.random.fold_in(key, jnp.max(state.generation)), 3)
        if self.config.restarts:
            state = self._restarted(train, key_rows, state)
        if self.config.row_share < 1:
            train = _some_rows(train, key_rows, self.config.row_share)
        population, algorithm = jax.vmap(self.algorithm.ask, (None, 0, None))(key_ask, state.algorithm, self.params)
        fitness = _fitness(train, _kernel_genes(population, self.has_bias), self.config.metric)
        algorithm, _ = jax.vmap(self.algorithm.tell, (None, 0, 0, 0, None))(
            key_tell, population, -fitness, algorithm, self.params
        )
        best = jnp.take_along_axis(population, jnp.argmax(fitness, axis=1)[:, None, None], axis=1)[:, 0]
        score, rest = _judge(validation, _kernel_genes(best, self.has_bias), self.config.metric)
        better, rest_better = score > state.score, rest > state.rest_best
        return dataclasses.replace(
            state,
            algorithm=algorithm,
            genes=jnp.where(better[:, None], best, state.genes),
            score=jnp.where(better, score, state.score),
            best_at=jnp.where(better, state.generation + 1, state.best_at),
            generation=state.generation + 1,
            rest_best=jnp.where(rest_better, rest, state.rest_best),
            rest_genes=jnp.where(rest_better[:, :, None], best[:, None], state.rest_genes),
            rest_held=_held(rest_better, rest, state.rest_held),
        )

    def _advance(
        self, state: State, train: Rows, validation: Rows, key: jax.Array, limit: jax.Array
    ) -> tuple[State, jax.Array]:
        """Up to GENERATIONS_AT_ONCE generations; also the best score after each, [g generations], NaN where idle."""
        history = jnp.full((state.score.shape[0], GENERATIONS_AT_ONCE), jnp.nan)

        def body(carry: tuple[jax.Array, State, jax.Array]) -> tuple[jax.Array, State, jax.Array]:
            step, old, history = carry
            active = self.active(old)
            new = self._generation(train, validation, key, old)
            kept = _where(active, new, old)
            column = jnp.where(active, kept.score, jnp.nan)[:, None]
            return step + 1, kept, jax.lax.dynamic_update_slice(history, column, (0, step))

        def go_on(carry: tuple[jax.Array, State, jax.Array]) -> jax.Array:
            step, state, _ = carry
            return (step < limit) & jnp.any(self.active(state))

        _, state, history = jax.lax.while_loop(go_on, body, (jnp.int32(0), state, history))
        return state, history


@functools.lru_cache(maxsize=32)
def engine_for(config: GAConfig, num_genes: int, has_bias: bool, mesh: Mesh | None) -> Engine:
    """Kept, so that a second search of the same kind compiles nothing."""
    return Engine(config, num_genes, has_bias, mesh)


def pack(state: State, history: Float[np.ndarray, "g n"]) -> dict[str, np.ndarray]:
    """A state in mid-search as arrays to be kept, which `evolve` goes on from."""
    return {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))} | {"history": history}


def evolve(
    engine: Engine,
    rows: tuple[Rows, Rows],
    seeds: Float[np.ndarray, "g s r"],
    key: jax.Array,
    running: dict[str, np.ndarray] | None,
    report: Callable[[Float[np.ndarray, "g n"], Callable[[], State]], None],
) -> tuple[State, Float[np.ndarray, "g n"], Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Search the categories of one group until all have stopped.

    Args:
        engine: the programs.
        rows: of train and validation.
        seeds: where to start.
        key: randomness.
        running: what an interrupted call packed last.
        report: called after every chunk with the best scores after each generation, and what gives the state.

    Returns:
        The state, the best scores after each generation, the scores of the first seeds, and the held-out gains.
    """
    state = engine.start(*rows, jax.device_put(jnp.asarray(seeds), engine.sharding), key)
    before, on_the_parts = np.asarray(state.score), np.asarray(state.rest_held)
    history = np.zeros((len(seeds), 0), np.float32)
    if running is not None:
        leaves, tree = jax.tree.flatten(state)
        restored = [jax.device_put(running[f"leaf_{i}"], leaf.sharding) for i, leaf in enumerate(leaves)]
        state, history = jax.tree.unflatten(tree, restored), running["history"]
    devices = 1 if engine.sharding is None else engine.sharding.mesh.size
    limit = jnp.int32(GENERATIONS_AT_ONCE)
    # Categories that have stopped leave the devices once a quarter of those there goes on; `places` are the others'.
    # Each size is a program to compile: few sizes, the same ones in every group of one size.
    left_behind, places = None, np.arange(len(seeds))

    def everyone() -> State:
        if left_behind is None:
            return state
        return jax.tree.map(lambda old, new: jnp.asarray(_replaced(places, np.asarray(old), new)), left_behind, state)

    while (active := np.asarray(engine.active(state))).any():
        quarter = -(-len(places) // (4 * devices)) * devices
        if len(places) > FEWEST * devices and active.sum() <= quarter:
            left_behind = everyone()
            stay = np.flatnonzero(active)
            stay = np.append(stay, np.full(quarter - len(stay), stay[-1]))
            places = places[stay]
            state, rows = jax.tree.map(lambda x, stay=stay: jax.device_put(x[stay], engine.sharding), (state, rows))
        state, recent = engine.advance(state, *rows, key, limit)
        nothing = np.full((len(seeds), recent.shape[1]), np.nan, np.float32)
        history = np.concatenate([history, _replaced(places, nothing, recent)], axis=1)
        report(history, everyone)
    final = everyone()
    # Where a half lacks a positive or a negative, nothing speaks for the search.
    gains = np.asarray(final.rest_held) - on_the_parts
    held_out = np.nan_to_num(gains.mean(axis=1)) if gains.shape[1] else np.full(len(gains), np.nan)
    return final, history, before, held_out.astype(np.float32)


def _replaced(places: Int[np.ndarray, " m"], whole: np.ndarray, some: Any) -> np.ndarray:
    whole = whole.copy()
    whole[places] = np.asarray(some)
    return whole
