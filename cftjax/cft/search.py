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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from cftjax.cft import algorithms, packing, sampling, spaces
from cftjax.cft.packing import Rows
from cftjax.cft.work import Progress, Store, Work, prepare
from cftjax.config import GAConfig, Metric
from cftjax.types import Embeddings, Heads

GENERATIONS_AT_ONCE = 50
# Of a group no larger than this, a device, none leave: a generation of so few is soon done.
FEWEST = 8
SECONDS_BETWEEN_SAVES = 20.0


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search brought back.

    Attributes:
        heads: [c d]; untuned categories keep the head they came with.
        before: [c] validation score of the heads it started from.
        after: [c] validation score of the heads found.
        history: [g c] best validation score so far after each generation; NaN once a category has stopped.
        held_out: [c] what keeping the best by one half of validation gains on the other half, mean of both ways: a fair
            estimate of the gain, which `after - before` is not, since validation was looked at every generation.
        untuned: category -> why it could not be tuned.
        elites: of each fold asked for, the heads that are the best without it; `heads` is then their mean.
    """

    heads: Heads
    before: Float[np.ndarray, " c"]
    after: Float[np.ndarray, " c"]
    history: Float[np.ndarray, "g c"]
    held_out: Float[np.ndarray, " c"]
    untuned: dict[int, str]
    elites: Sequence[Heads] = ()

    @property
    def fair_scores(self) -> Float[np.ndarray, " c"]:
        """[c] validation score of the heads found, without the luck of having looked at it every generation."""
        return self.before + self.held_out


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

    def active(self, state: State) -> jax.Array:
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
def _engine(config: GAConfig, num_genes: int, has_bias: bool, mesh: Mesh | None) -> _Engine:
    """Kept, so that a second search of the same kind compiles nothing."""
    return _Engine(config, num_genes, has_bias, mesh)


def _pack(state: State, history: np.ndarray) -> dict[str, np.ndarray]:
    return {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))} | {"history": history}


def _run_group(
    engine: _Engine,
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
    held_out = gains.mean(axis=1) if gains.shape[1] else np.full(len(gains), np.nan)
    if gains.shape[1]:
        held_out = np.where(np.isnan(held_out), 0.0, held_out)
    return final, history, before, held_out.astype(np.float32)


def _replaced(places: Int[np.ndarray, " m"], whole: np.ndarray, some: Any) -> np.ndarray:
    whole = whole.copy()
    whole[places] = np.asarray(some)
    return whole


def _shrunken(heads: Heads, seeds: Sequence[str]) -> list[Heads]:
    kernel, bias = np.asarray(heads.kernel, np.float32), np.asarray(heads.bias, np.float32)
    return [Heads(kernel * share, bias) for share in (0.5, 0.0)] if "shrunken" in seeds else []


def _one_step(seen: spaces.Seen, heads: Heads, unit: np.ndarray, whole: bool) -> Float[np.ndarray, "c 1 r"]:
    """Genes after one step of gradient descent on each category's known labels."""
    steps = np.stack([spaces.gradient_step(seen, c) for c in range(len(unit))])
    if not whole:
        return (steps / unit[:, None])[:, None]
    kernel, bias = np.asarray(heads.kernel, np.float32), np.asarray(heads.bias, np.float32)
    return np.concatenate([kernel + steps, bias[:, None]], axis=1)[:, None]


def search(
    heads: Heads,
    train: Embeddings,
    validation: Embeddings,
    *,
    key: jax.Array,
    config: GAConfig | None = None,
    seeds: Sequence[Heads] = (),
    folds: Int[np.ndarray, " v"] | None = None,
    leading: spaces.Leading | None = None,
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
        seeds: other heads for the first population; in `dimensions`, as near as those directions come to them.
        folds: which fold each validation image is of: one run then keeps the best without each of them, and gives back
            their mean; None keeps the best by all of validation.
        leading: principal directions of the training embeddings, where they have been found already.
        store: where finished categories and the state of running ones are kept; a search given the store of an
            interrupted one goes on where that stood.
        progress: called with generations done, generations at most, and the mean validation score so far, categories
            not begun at their start; where it raises KeyboardInterrupt, what is under way is stored first.
        mesh: devices with an axis `data`, over which categories are split; None for one device. Where they are those of
            several hosts, all of them must call.

    Returns:
        Found: heads, scores, history, and the categories that could not be tuned, with the reason.

    Raises:
        ValueError: for an unknown algorithm or metric.
    """
    config = config or GAConfig()
    work = prepare(heads, train, validation, dimensions=config.dimensions, white=True, leading=leading, mesh=mesh)
    work = dataclasses.replace(work, train=sampling.sampled(work.train, config.most_rows, _words(key)))
    if folds is not None:
        work = dataclasses.replace(work, validation=dataclasses.replace(work.validation, part=folds))
    stored = _Stored({} if store is None else store, progress, work, config)
    unit = np.ones(len(work.heads.bias), np.float32) if config.dimensions is None else spaces.spread(work.train)
    population = _first_population(work, unit, seeds, config)
    results = _results(work, config, 0 if folds is None else int(folds.max()) + 1)
    engine = _engine(config, work.num_genes, config.dimensions is None, work.mesh)
    for group in packing.groups(work.train, work.validation, work.mine, _at_once(work, config)):
        here = list(group.categories)
        found = kept = stored.finished(group)
        if found is None:
            found = _search_group(engine, work, group, unit, population, key, stored)
        for name, values in results.items():
            if name == "history":
                values[here, : found[name].shape[1]] = found[name]
            else:
                values[here] = found[name]
        stored.count(group, results["after"], kept is not None)
    work.join(list(results.values()))
    return _as_found(work, results, unit, train, config)


def _words(key: jax.Array) -> list[int]:
    """The numbers that a key is made of."""
    return np.asarray(jax.random.key_data(key)).ravel().tolist()


def _at_once(work: Work, config: GAConfig) -> int:
    """Categories searched side by side."""
    rows = (work.longest + work.judging) * work.num_genes
    population = config.population_size * (6 * work.longest + 4 * work.num_genes)
    return config.categories_at_once or work.categories_at_once(rows + population)


def _first_population(
    work: Work, unit: Float[np.ndarray, " c"], seeds: Sequence[Heads], config: GAConfig
) -> Float[np.ndarray, "c s r"]:
    """The genes that copies are made of: the heads to be improved on, then all seeds."""
    given = spaces.as_genes([work.heads, *seeds, *_shrunken(work.heads, config.seeds)], work.space, unit)
    if "gradient" not in config.seeds:
        return given
    return np.concatenate([given, _one_step(work.train, work.heads, unit, config.dimensions is None)], axis=1)


def _results(work: Work, config: GAConfig, num_folds: int) -> dict[str, np.ndarray]:
    """Arrays to be filled group by group, for all categories."""
    c = len(work.heads.bias)
    results: dict[str, np.ndarray] = {name: np.full(c, np.nan, np.float32) for name in ("before", "after", "held_out")}
    results["history"] = np.full((c, config.num_generations), np.nan, np.float32)
    length = work.num_genes + (config.dimensions is None)
    results["genes"] = np.zeros((c, length), np.float32)
    if num_folds:
        results["elites"] = np.zeros((c, num_folds, length), np.float32)
    return results


class _Stored:
    """What has been searched so far: kept, so that an interrupted search goes on, and told to whoever watches."""

    def __init__(self, store: Store, progress: Progress | None, work: Work, config: GAConfig):
        self.store = store
        self.progress = progress
        self.generations = config.num_generations
        self.total = config.num_generations * len(work.mine)
        self.done = 0
        # The best so far; only who watches pays for the start.
        self.after = np.zeros(0) if progress is None else work.scores_at_start(config.metric)
        self.saved = time.monotonic()

    def finished(self, group: packing.Group) -> dict[str, np.ndarray] | None:
        """What a finished group gave."""
        return self.store.get(group.name + "-done")

    def running(self, group: packing.Group) -> dict[str, np.ndarray] | None:
        """The last state of a group that was interrupted."""
        self.saved = time.monotonic()
        return self.store.get(group.name)

    def news(self, group: packing.Group, scores: Float[np.ndarray, "g n"], state: Callable[[], State]) -> None:
        """Save a group's state now and then, and tell how far it is."""
        if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            self.store[group.name] = _pack(state(), scores)
            self.saved = time.monotonic()
        if self.progress is None:
            return
        mine, so_far = scores[: len(group.categories)], self.after.copy()
        so_far[list(group.categories)] = np.fmax.reduce(mine, axis=1)
        try:
            self.progress(self.done + int((~np.isnan(mine)).sum()), self.total, float(np.nanmean(so_far)))
        except KeyboardInterrupt:
            self.store[group.name] = _pack(state(), scores)
            raise

    def finish(self, group: packing.Group, results: dict[str, np.ndarray]) -> None:
        """Keep what a group gave."""
        self.store[group.name + "-done"] = results

    def count(self, group: packing.Group, after: Float[np.ndarray, " c"], kept: bool) -> None:
        """A group is done; what an interrupted call had kept is told with the next one, for it took no time."""
        self.done += self.generations * len(group.categories)
        if self.progress is None:
            return
        self.after[list(group.categories)] = after[list(group.categories)]
        if not kept or self.done == self.total:
            self.progress(self.done, self.total, float(np.nanmean(self.after)))


def _search_group(
    engine: _Engine,
    work: Work,
    group: packing.Group,
    unit: Float[np.ndarray, " c"],
    population: Float[np.ndarray, "c s r"],
    key: jax.Array,
    stored: _Stored,
) -> dict[str, np.ndarray]:
    """Search the categories of one group until all have stopped; arrays with a row for each of them."""
    config, size = engine.config, len(group.categories)
    rows = group.rows(
        work.train,
        work.validation,
        unit,
        engine.sharding,
        add_base=config.dimensions is not None,
        dtype=jnp.dtype(config.embeddings_dtype).type,
    )
    members = [*group.categories, *[group.categories[-1]] * (len(rows[0].base) - size)]
    news = functools.partial(stored.news, group)
    state, scores, before, held_out = _run_group(engine, rows, population[members], key, stored.running(group), news)
    results = {
        "held_out": held_out[:size],
        "genes": np.asarray(state.genes)[:size],
        "elites": np.asarray(state.rest_genes)[:size],
        "before": before[:size],
        "after": np.asarray(state.score)[:size],
        "history": scores[:size, : config.num_generations],
    }
    stored.finish(group, results)
    return results


def _as_found(
    work: Work, results: dict[str, np.ndarray], unit: Float[np.ndarray, " c"], train: Embeddings, config: GAConfig
) -> Found:
    """Genes as heads; of folds the mean of their elites."""

    def heads_of(genes: Float[np.ndarray, "c r"]) -> Heads:
        heads = _with_genes(work, genes, unit, whole=config.dimensions is None)
        return work.refit_bias(heads, train, work.tuned) if config.refit_bias else heads

    elites = results.get("elites")
    each = [] if elites is None else [heads_of(elites[:, k]) for k in range(elites.shape[1])]
    heads = heads_of(results["genes"] if elites is None else elites.mean(axis=1))
    before, after, held_out = (results[name] for name in ("before", "after", "held_out"))
    return Found(heads, before, after, results["history"].T, held_out, work.untuned, each)


def _with_genes(work: Work, genes: Float[np.ndarray, "c r"], unit: Float[np.ndarray, " c"], *, whole: bool) -> Heads:
    """The heads that genes stand for."""
    kernel, bias = work.heads.kernel.copy(), work.heads.bias.copy()
    for c in work.tuned:
        if whole:
            kernel[c], bias[c] = genes[c, :-1], genes[c, -1]
        else:
            step, shift = work.space.step(genes[c] * unit[c], c)
            kernel[c] += step
            bias[c] += shift
    return Heads(kernel, bias)
