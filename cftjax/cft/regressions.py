"""The polish in every lane of a pool: regressions under many recipes, learned side by side, category by category."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from cftjax.cft import extents, logistic, packing
from cftjax.cft.members import Member
from cftjax.cft.pool import LEARNING, Pool
from cftjax.cft.spaces import ROWS_AT_ONCE
from cftjax.cft.work import Progress, Store
from cftjax.runtime import devices

# Unknown rows that stand in for all of a category's, with the weight of those left out: so many leave the mean of the
# negatives as sharp as that of the positives is at best.
UNKNOWN_ROWS = 16_384
# Of more rows the padding is at most a sixteenth.
MANY_ROWS = 65_536


class Recipe(NamedTuple):
    """How a head is learned.

    Attributes:
        towards: 1 to be pulled to the head it starts from, 0 to zero.
        spread: half its product with the variance of the logits of all images, labelled or not, joins the loss.
        l2: half its product with the squared length joins the loss.
        unknown_weight: of an unknown label, as a negative.
        judging_weight: of a judging image against a learning one.
    """

    towards: float
    spread: float
    l2: float
    unknown_weight: float = 0.0
    judging_weight: float = 1.0

    @property
    def name(self) -> str:
        """For a table."""
        words = f"{'start' if self.towards else 'zero'} {self.l2:g}"
        words += f" spread {self.spread:g}" if self.spread else ""
        words += f" unknown {self.unknown_weight:g}" if self.unknown_weight else ""
        return words + (f" judging x{self.judging_weight:g}" if self.judging_weight != 1 else "")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes:
        pool: the images.
        recipes: s of them.
        start: [l c r] what is added to the head that came before the regressions start from it.
        num_steps: of the solver.
        seed: of the unknown rows that stand in for all.
    """

    pool: Pool
    recipes: Sequence[Recipe]
    start: Float[np.ndarray, "l c r"]
    num_steps: int
    seed: int

    def rows(self, category: int) -> tuple[Int[np.ndarray, " k"], float]:
        """The rows that count for a category, and what an unknown one of them stands for."""
        labelled, values = self.pool.given.of_category(category)
        known = labelled[values >= 0]
        if not any(recipe.unknown_weight for recipe in self.recipes):
            return known, 1.0
        unknown = np.delete(np.arange(len(self.pool.fold)), labelled)
        if len(unknown) <= UNKNOWN_ROWS:
            return np.sort(np.concatenate([known, unknown])), 1.0
        drawn = np.random.default_rng([self.seed, category]).choice(unknown, UNKNOWN_ROWS, replace=False)
        return np.sort(np.concatenate([known, drawn])), len(unknown) / UNKNOWN_ROWS

    def arguments(self, category: int, length: int) -> tuple[np.ndarray, ...]:
        """Those of `logistic.fit`, regressions ordered by recipe and then by lane, rows padded to a length."""
        pool, (rows, stands_for) = self.pool, self.rows(category)
        k, lanes = len(rows), pool.num_lanes
        # Filled in place: of many rows, another copy of any of these would be most of the memory.
        padded = np.zeros((length, pool.z.shape[-1]), np.float32)
        labels = np.zeros(length, bool)
        weights, offsets = (np.zeros((len(self.recipes) * lanes, length), np.float32) for _ in range(2))
        of_category = pool.of_category(category)
        for start in range(0, k, ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            padded[start : start + len(some)] = of_category[some]
        labels[:k], known = (matrix[rows, category] for matrix in (pool.given.labels, pool.given.known))
        judging = pool.fold[rows] != LEARNING
        learns = [pool.learns(lane, rows) for lane in range(lanes)]
        starts = pool.base[rows, category] + self.start[:, category] @ padded[:k].T
        penalties = []
        for i, recipe in enumerate(self.recipes):
            weight = np.where(known, 1.0, recipe.unknown_weight * stands_for)
            weight = weight * np.where(judging, recipe.judging_weight, 1.0)
            for lane, learned in enumerate(learns):
                weights[i * lanes + lane, :k] = weight * learned
            if recipe.towards:
                offsets[i * lanes : (i + 1) * lanes, :k] = recipe.towards * starts
            penalties += [recipe.spread * pool.variance_of(category) + recipe.l2] * lanes
        return padded, labels, weights, offsets, np.stack(penalties).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _program(num_steps: int, mesh: Mesh | None) -> Any:
    """Arguments with the categories first to genes and biases; kept, so that a second call compiles nothing."""
    of_group = jax.vmap(functools.partial(logistic.fit, num_steps=num_steps))
    if mesh is None:
        return jax.jit(of_group)
    split = PartitionSpec("data")
    return jax.jit(jax.shard_map(of_group, mesh=mesh, in_specs=(split,) * 5, out_specs=split, check_vma=False))


def learn(
    task: Task,
    tuned: Sequence[int],
    *,
    store: Store | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> list[Member]:
    """A member for each recipe; categories that are not tuned have genes of 0.

    Args:
        task: what is to be learned.
        tuned: the categories.
        store: where finished categories are kept, so that an interrupted call goes on.
        progress: called with categories done, categories, and 0.
        mesh: devices with an axis `data`, over which categories are split; None for one device.
    """
    pool, store = task.pool, {} if store is None else store
    extent = (pool.num_categories, len(task.recipes), pool.num_lanes, pool.z.shape[-1])
    genes = np.zeros(extent, np.float32)
    several = mesh is not None and jax.process_count() > 1
    own = devices.local(mesh) if mesh is not None else None
    mine = sorted(devices.share(list(tuned))) if several else list(tuned)
    done = 0
    for group, length in _groups(task, mine, 1 if own is None else own.size):
        name = f"regressions-{group[0]}-{zlib.crc32(str((group, task.recipes)).encode()):08x}"
        results = kept = store.get(name)
        if results is None:
            padded = [*group, *[group[-1]] * (-len(group) % (1 if own is None else own.size))]
            each = zip(*(task.arguments(c, length) for c in padded), strict=True)
            arguments = [x[0][None] if len(x) == 1 else np.stack(x) for x in each]
            results = {"genes": np.asarray(_program(task.num_steps, own)(*arguments)[0])[: len(group)]}
            store[name] = results
        genes[group] = results["genes"].reshape(len(group), *extent[1:])
        done += len(group)
        # What an interrupted call had kept is told with the next one, for it took no time.
        if progress is not None and (kept is None or done == len(mine)):
            progress(done, len(mine), 0.0)
    if several:
        packing.join_hosts(mine, [genes])
    return [_member(task, recipe, genes[:, s]) for s, recipe in enumerate(task.recipes)]


def _groups(task: Task, categories: Sequence[int], size: int) -> list[tuple[list[int], int]]:
    """Categories whose rows are padded to the same length, as many as there are devices, and that length."""
    alike: dict[int, list[int]] = {}
    for c in categories:
        num = len(task.rows(c)[0])
        alike.setdefault(extents.padded_length(num, 4 if num <= MANY_ROWS else 16), []).append(c)
    return [
        (members[start : start + size], length)
        for length, members in sorted(alike.items(), reverse=True)
        for start in range(0, len(members), size)
    ]


def _member(task: Task, recipe: Recipe, genes: Float[np.ndarray, "c l r"]) -> Member:
    """Genes as steps from the head that came, or from nothing."""
    lanes = np.swapaxes(genes, 0, 1)
    start = np.full(lanes.shape[:2], recipe.towards, np.float32)
    return Member(recipe.name, start, lanes + recipe.towards * task.start)
