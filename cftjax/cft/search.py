"""The search: per category a population of heads evolves to rank the known training labels, validation keeps the best.

Chong et al. 2023, algorithm 1. What happens to a group of categories is in `evolution`; here is what stands around it:
where populations begin, groups one after the other, what an interrupted search left, and genes as heads.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from cftjax.cft import evolution, packing, sampling, spaces
from cftjax.cft.work import Progress, Store, Work, prepare
from cftjax.config import GAConfig
from cftjax.types import Embeddings, Heads

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
    engine = evolution.engine_for(config, work.num_genes, config.dimensions is None, work.mesh)
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

    def news(
        self, group: packing.Group, scores: Float[np.ndarray, "g n"], state: Callable[[], evolution.State]
    ) -> None:
        """Save a group's state now and then, and tell how far it is."""
        if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            self.store[group.name] = evolution.pack(state(), scores)
            self.saved = time.monotonic()
        if self.progress is None:
            return
        mine, so_far = scores[: len(group.categories)], self.after.copy()
        so_far[list(group.categories)] = np.fmax.reduce(mine, axis=1)
        try:
            self.progress(self.done + int((~np.isnan(mine)).sum()), self.total, float(np.nanmean(so_far)))
        except KeyboardInterrupt:
            self.store[group.name] = evolution.pack(state(), scores)
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
    engine: evolution.Engine,
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
    begun = stored.running(group)
    state, scores, before, held_out = evolution.evolve(engine, rows, population[members], key, begun, news)
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
