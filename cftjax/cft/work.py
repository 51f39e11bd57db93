"""What search and polish share: which categories can be tuned, what is seen of both splits, on which devices, in parts.

Both go through the categories in groups, keep what a group gave in a store, and fill arrays with a row per category.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, MutableMapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from cftjax.cft import extents, packing, spaces
from cftjax.cft.spaces import Leading, Seen, Space
from cftjax.metrics import Metric
from cftjax.runtime import devices
from cftjax.scores import bootstrap
from cftjax.types import Embeddings, Heads

Store = MutableMapping[str, dict[str, np.ndarray]]
Progress = Callable[[int, int, float], None]


@dataclasses.dataclass(frozen=True)
class Work:
    """A last layer to be improved on, and all that it takes.

    Attributes:
        heads: where it starts, float32.
        train: the split that is learned from, in the coordinates of `space`.
        validation: the split that judges, in the same.
        space: the coordinates of a step away from the heads.
        untuned: category -> why it cannot be tuned.
        tuned: the other categories.
        mine: those of them that this host works on.
        mesh: this host's devices; None for one.
        several: whether there are other hosts.
    """

    heads: Heads
    train: Seen
    validation: Seen
    space: Space
    untuned: dict[int, str]
    tuned: list[int]
    mine: list[int]
    mesh: Mesh | None
    several: bool

    @property
    def sharding(self) -> NamedSharding | None:
        """How groups of categories lie on the devices."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def num_genes(self) -> int:
        """r, coordinates of a step."""
        return self.train.z.shape[-1]

    @property
    def longest(self) -> int:
        """The most training rows, with padding, that a category has."""
        known = extents.Counts.of(self.train).known
        return extents.padded_length(max((int(known[c]) for c in self.tuned), default=1))

    @property
    def judging(self) -> int:
        """The most validation rows, with padding, that a category has."""
        return extents.padded_length(int(extents.Counts.of(self.validation).known.max(initial=1)))

    def scores_at_start(self, metric: Metric) -> Float[np.ndarray, " c"]:
        """[c] validation scores of the heads it starts from, of the categories that this host works on; NaN elsewhere.

        They stand in for those not begun in the mean that is shown meanwhile, which would fall with every category
        that is harder than the first ones.
        """
        scores, seen = np.full(len(self.heads.bias), np.nan, np.float32), self.validation
        for c in self.mine:
            rows = np.flatnonzero(np.asarray(seen.known[:, c]))
            known = np.ones(len(rows), bool)
            ranking = bootstrap.rank(seen.base[rows, c], np.asarray(seen.labels[rows, c]), known)
            scores[c] = bootstrap.weighted_scores(ranking, np.ones((len(rows), 1), np.float32))[metric][0]
        return scores

    def categories_at_once(self, floats_each: int) -> int:
        """How many categories of so many numbers fit in memory."""
        return packing.categories_at_once(4.0 * floats_each, 1 if self.mesh is None else self.mesh.size)

    def join(self, arrays: Sequence[np.ndarray]) -> None:
        """Fill arrays [c ...] with what other hosts found of their categories."""
        if self.several:
            packing.join_hosts(self.mine, arrays)

    def refit_bias(self, heads: Heads, train: Embeddings, categories: Sequence[int]) -> Heads:
        """The same kernels with the biases of some categories fitted to their known training labels."""
        return Heads(heads.kernel, packing.refit_bias(heads, train, categories))


def prepare(
    heads: Heads,
    train: Embeddings,
    validation: Embeddings,
    *,
    dimensions: int | None,
    white: bool,
    leading: Leading | None,
    mesh: Mesh | None,
) -> Work:
    """Look at both splits in the coordinates asked for, and share the categories out over the hosts.

    Args:
        heads: where to start.
        train: embeddings with labels and known.
        validation: the same for the split that judges.
        dimensions: principal directions of the steps; None for steps of the kernels themselves.
        white: whether every coordinate varies by one: see `spaces.principal_space`.
        leading: principal directions of the training embeddings, where they have been found already.
        mesh: devices with an axis `data`; None for one device.
    """
    heads = Heads(np.array(heads.kernel, np.float32), np.array(heads.bias, np.float32))
    untuned = packing.untunable(train, validation)
    tuned = [c for c in range(len(heads.kernel)) if c not in untuned]
    space = Space() if dimensions is None else spaces.principal_space(train, dimensions, white=white, leading=leading)
    seen = [spaces.see(split, heads, space) for split in (train, validation)]
    several = mesh is not None and jax.process_count() > 1
    # Categories need no communication: every host takes its own, and learns of the others' at the end.
    known = extents.Counts.of(seen[0]).known
    mine = sorted(devices.share(sorted(tuned, key=lambda c: known[c]))) if several else tuned
    own = devices.local(mesh) if mesh is not None else None
    return Work(heads, seen[0], seen[1], space, untuned, tuned, mine, own, several)
