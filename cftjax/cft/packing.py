"""What search and polish see of the embeddings: per category its known rows, packed, in the coordinates of a space."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float, Int, Num
from scipy import special

from cftjax.cft import ranking
from cftjax.cft.extents import Counts, Shape, merged
from cftjax.cft.spaces import ROWS_AT_ONCE, Seen, blocks
from cftjax.config import Metric
from cftjax.data import sparse
from cftjax.runtime import devices
from cftjax.runtime.memory import available_memory
from cftjax.types import Array, Embeddings, Heads

# Embeddings of more rows are read once for many categories, with scores of at most so many bytes.
MANY_ROWS, SCORES_BYTES = 65_536, 2**28


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["z", "base", "labels", "where", "part"],
    meta_fields=["slots", "num_parts"],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """The known rows of a group of categories, positives first, padded to one length.

    A head's score of a row is `base + z @ genes`.

    Attributes:
        z: [g k r].
        base: [g k], the score that the genes are added to.
        labels: [g k] bool.
        where: [g k] bool, false for padding.
        part: [g k] int32, which part of the images a row is of: a fold, or a half of the positives and negatives.
        slots: all positives stand among the first so many rows; 0 where they are too many to count by.
        num_parts: there are.
    """

    z: Num[Array, "*g k r"]
    base: Float[Array, "*g k"]
    labels: Bool[Array, "*g k"]
    where: Bool[Array, "*g k"]
    part: Int[Array, "*g k"]
    slots: int
    num_parts: int = 2


def ranking_scores(
    metric: Metric,
    scores: Float[jax.Array, "g p k"],
    labels: Bool[Array, "g k"],
    where: Bool[Array, "g k"],
    slots: int,
) -> Float[jax.Array, "g p"]:
    """AP or AUROC of p rankings of the rows of each category; `slots` as in `Rows`."""
    way = functools.partial(ranking.by_counting, slots=slots) if slots else ranking.by_sorting
    of_one = functools.partial(way, metric, platform="cpu")

    def one_by_one(*each: jax.Array) -> jax.Array:
        """So that each category's loops end with its own rows."""
        if len(scores) == 1:
            return of_one(*(x[0] for x in each))[None]
        return jax.lax.map(lambda one: of_one(*one), each)

    def together(platform: str) -> Callable[..., jax.Array]:
        return jax.vmap(functools.partial(way, metric, platform=platform))

    def in_rows(scores: jax.Array, *each: jax.Array) -> jax.Array:
        """All rankings of all categories in one sort."""
        labels, where = (jnp.repeat(x, scores.shape[1], axis=0) for x in each)
        rows = scores.reshape(-1, scores.shape[2])
        return ranking.by_sorting_rows(metric, rows, labels, where).reshape(scores.shape[:2])

    arguments = scores, jnp.asarray(labels), jnp.asarray(where)
    on_gpu = together("gpu") if slots else in_rows
    return jax.lax.platform_dependent(*arguments, cpu=one_by_one, tpu=together("tpu"), default=on_gpu)


def untunable(train: Embeddings, validation: Embeddings) -> dict[int, str]:
    """Categories that no search can judge: either split lacks a known positive or a known negative."""
    reasons = {}
    for name, split in (("train", train), ("validation", validation)):
        counts = sparse.of(split.given).counts()
        for kind, count in (("positive", counts.positive), ("negative", counts.negative)):
            for c in np.flatnonzero(count == 0):
                reasons.setdefault(int(c), f"no known {kind} in {name}")
    return dict(sorted(reasons.items()))


def rows_of(
    seen: Seen,
    categories: Sequence[int],
    shape: Shape,
    unit: Float[np.ndarray, " c"],
    *,
    add_base: bool = True,
    dtype: type = np.float32,
) -> Rows:
    """Known rows of some categories, positives first, then negatives, padded.

    Args:
        seen: the split.
        categories: which, length g.
        shape: k and slots, enough for all of them.
        unit: [c], what one gene of each category is multiplied by.
        add_base: whether genes are a step away from the starting heads, or the kernels themselves.
        dtype: of z.
    """
    z = np.zeros((len(categories), shape.length, seen.z.shape[-1]), dtype)
    base = np.zeros((len(categories), shape.length), np.float32)
    labels, where = (np.zeros((len(categories), shape.length), bool) for _ in range(2))
    part = np.tile(np.arange(shape.length, dtype=np.int32) % 2, (len(categories), 1))
    member = None if seen.groups is None else np.unique(seen.groups, return_inverse=True)[1]
    for g, c in enumerate(categories):
        rows, values = seen.given.of_category(c)
        rows = np.concatenate([rows[values == 1], rows[values == 0]])
        labels[g, : np.count_nonzero(values == 1)] = True
        where[g, : len(rows)] = True
        if seen.part is not None:
            part[g, : len(rows)] = seen.part[rows]
        elif member is not None:
            part[g, : len(rows)] = member[rows] % 2
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            block = seen.z[some] if seen.z.ndim == 2 else seen.z[some, c]
            z[g, start : start + len(some)] = block * unit[c]
        if add_base:
            base[g, : len(rows)] = seen.base[rows, c]
    return Rows(z, base, labels, where, part, shape.slots, 2 if seen.part is None else int(seen.part.max()) + 1)


@dataclasses.dataclass(frozen=True)
class Group:
    """Categories that advance together.

    Attributes:
        categories: which.
        train: extents of their packed training rows.
        validation: extents of their packed validation rows.
    """

    categories: tuple[int, ...]
    train: Shape
    validation: Shape

    @property
    def name(self) -> str:
        """For a file."""
        first, *others = self.categories
        return f"group-{first}-{zlib.crc32(str(self.categories).encode()):08x}" if others else f"group-{first}"

    def rows(
        self,
        train: Seen,
        validation: Seen,
        unit: Float[np.ndarray, " c"],
        sharding: NamedSharding | None,
        *,
        add_base: bool = True,
        dtype: type = np.float32,
    ) -> tuple[Rows, Rows]:
        """Both splits' rows, on the devices; the last category is repeated until the group divides over them."""
        devices = 1 if sharding is None else sharding.mesh.size
        members = [*self.categories, *[self.categories[-1]] * (-len(self.categories) % devices)]
        packed = (
            rows_of(seen, members, shape, unit, add_base=add_base, dtype=dtype)
            for seen, shape in ((train, self.train), (validation, self.validation))
        )
        first, second = (jax.device_put(rows, sharding) for rows in packed)
        return first, second


def groups(
    train: Seen, validation: Seen, categories: Sequence[int], at_once: int, *, ranked: bool = True
) -> list[Group]:
    """Categories of like extents together, in groups of nearly equal size, the longest first.

    There are as few kinds of extents as `extents.MOST_PADDING` allows: each is programs to compile, for many seconds.

    Args:
        train: the split that is learned from.
        validation: the split that judges.
        categories: those to be tuned.
        at_once: the largest group.
        ranked: whether the training rows are ranked as well.
    """
    # A generation scores one candidate on validation: a CPU's loops end with the rows that there are, so that padding
    # costs little and programs are saved. Other devices read all of it, as long as the training rows take.
    coarse = 1 if jax.default_backend() == "cpu" else 4
    counts = Counts.of(train), Counts.of(validation)

    def shapes(members: Sequence[int]) -> tuple[Shape, Shape]:
        return counts[0].shape(members, 4, ranked), counts[1].shape(members, coarse, True)

    # What is counted and what is sorted stays apart; of a TPU's counting, the slots are the cost.
    exact = jax.default_backend() == "tpu"
    apart: dict[tuple[int, ...], dict[tuple[Shape, Shape], list[int]]] = {}
    for c in categories:
        own = shapes([c])
        way = tuple(shape.slots if exact else shape.slots > 0 for shape in own)
        apart.setdefault(way, {}).setdefault(own, []).append(c)
    kinds = [members for alike in apart.values() for members in merged(alike)]
    found = []
    for members in sorted(kinds, key=shapes, reverse=True):
        size = -(-len(members) // -(-len(members) // at_once))
        found += [
            Group(tuple(members[start : start + size]), *shapes(members)) for start in range(0, len(members), size)
        ]
    return found


def categories_at_once(bytes_each: float, devices: int) -> int:
    """As many as fit in half of the devices' memory and of the host's, where they are packed; on a CPU one a device.

    A CPU gains nothing from a batch, and alone each category stops when it is done.
    """
    if jax.default_backend() == "cpu":
        return devices
    stats = jax.local_devices()[0].memory_stats() or {}
    on_device = int(0.5 * stats.get("bytes_limit", 8 * 2**30) / bytes_each)
    on_host = int(0.5 * available_memory() / bytes_each / devices)
    return max(1, min(on_device, on_host)) * devices


def join_hosts(mine: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
    """Fill arrays [c ...], of which every host knows its own categories, with what the others know."""
    rows = np.asarray(mine, np.int64)
    parts = {f"part_{i}": array[rows] for i, array in enumerate(arrays)}
    for theirs in devices.exchange({"categories": rows, **parts}):
        for i, array in enumerate(arrays):
            array[theirs["categories"]] = theirs[f"part_{i}"]


def _known_scores(
    kernel: Float[np.ndarray, "c d"], train: Embeddings, categories: Sequence[int]
) -> Iterator[tuple[int, Int[np.ndarray, " k"], Float[np.ndarray, " k"]]]:
    """Of each category its known rows, and what a kernel gives them."""
    given = sparse.of(train.given)
    known = {c: given.known_of(c)[0] for c in categories}
    at_once = max(1, SCORES_BYTES // (4 * len(train)))
    readings = -(-len(known) // at_once)
    if train.z.ndim == 2 and len(train) > MANY_ROWS and sum(map(len, known.values())) > readings * len(train):
        # To gather each category's rows would read most of the embeddings once a category.
        for some in (list(known)[start : start + at_once] for start in range(0, len(known), at_once)):
            scores = np.concatenate([block @ kernel[some].T for _, block in blocks(train.z)])
            for i, c in enumerate(some):
                yield c, known[c], scores[known[c], i].astype(np.float64)
        return
    for c, rows in known.items():
        z = train.z if train.z.ndim == 2 else train.z[:, c]
        each = (np.asarray(z[rows[s : s + ROWS_AT_ONCE]], np.float32) for s in range(0, len(rows), ROWS_AT_ONCE))
        yield c, rows, np.concatenate([block @ kernel[c] for block in each]).astype(np.float64)


def refit_bias(heads: Heads, train: Embeddings, categories: Sequence[int]) -> Float[np.ndarray, " c"]:
    """Biases of maximum likelihood on the known training labels of some categories, the others as they were.

    At that bias the mean probability is the share of known positives. The share counts half a positive and half a
    negative more than were seen, so that it stays finite. Found by bisection, as the mean probability only grows with
    the bias.
    """
    kernel, bias = np.asarray(heads.kernel, np.float32), np.array(heads.bias, np.float32)
    given = sparse.of(train.given)
    for c, rows, scores in _known_scores(kernel, train, categories):
        share = (given.known_of(c)[1].sum() + 0.5) / (len(rows) + 1.0)
        low, high = -np.abs(scores).max() - 30.0, np.abs(scores).max() + 30.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            too_high = special.expit(scores + middle).mean() > share
            low, high = (low, middle) if too_high else (middle, high)
        bias[c] = (low + high) / 2
    return bias
