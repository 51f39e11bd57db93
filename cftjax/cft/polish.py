"""The polish: gradient descent on each category's known labels, from every head that a pull leads to.

Logistic regression with an L2 pull towards the head it starts from, or towards zero, is convex: every pull and strength
has one answer, all are found side by side, and validation picks one per category. With Adam and no pull it is the
gradient variant of Chong et al. 2023, sec. 3.2: after each step validation looks, and only a strictly better score
replaces the head kept.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from cftjax import losses
from cftjax.cft import logistic, packing, rules, spaces
from cftjax.cft.packing import Rows
from cftjax.cft.spaces import Leading
from cftjax.cft.work import Progress, Store, Work, prepare
from cftjax.config import PolishConfig
from cftjax.types import Embeddings, Heads


@dataclasses.dataclass(frozen=True)
class Polished:
    """What the polish brought back.

    Attributes:
        heads: [c d]; untuned categories keep the head they came with.
        before: [c] validation score of the heads it started from.
        after: [c] validation score of the heads kept.
        steps: [c] the step that was kept, 0 where the head stays.
        pulls: [c] the pull and strength that was kept, such as `zero 0.001`; empty where the head stays.
        untuned: category -> why it could not be tuned.
        candidates: names of the s pulls and strengths, in the order of `pulls(config)`.
        scores: [s c] validation score of each; NaN where not tuned.
    """

    heads: Heads
    before: Float[np.ndarray, " c"]
    after: Float[np.ndarray, " c"]
    steps: Int[np.ndarray, " c"]
    pulls: list[str]
    untuned: dict[int, str]
    candidates: list[str]
    scores: Float[np.ndarray, "s c"]


@dataclasses.dataclass(frozen=True)
class Pull:
    """What L2 pulls towards, and how strongly.

    Attributes:
        towards: 1 for the head it started from, 0 for zero.
        l2: half its product with the squared length of the step joins the loss.
    """

    towards: float
    l2: float

    @property
    def name(self) -> str:
        """For a table."""
        return f"{'start' if self.towards else 'zero'} {self.l2:g}"


def pulls(config: PolishConfig) -> list[Pull]:
    """Every pull with every strength."""
    return [Pull(float(t == "start"), l2) for t, l2 in itertools.product(config.pull_towards, config.l2)]


Result = dict[str, jax.Array]


def _regressions(train: Rows, towards: Float[jax.Array, " s"], l2: Float[jax.Array, " s"], num_steps: int) -> Result:
    """Logistic regressions of one category under s pulls: genes [s r] and bias [s]."""
    weights = jnp.tile(jnp.asarray(train.where, jnp.float32), (len(l2), 1))
    penalties = jnp.tile(l2[:, None], (1, train.z.shape[-1]))
    offsets = towards[:, None] * train.base[None, :]
    genes, bias = logistic.fit(train.z, train.labels, weights, offsets, penalties, num_steps)
    return {"genes": genes, "bias": bias, "step": jnp.full(len(l2), num_steps, jnp.int32)}


def _objective(parameters: Any, rows: Rows, towards: jax.Array, l2: jax.Array, loss: str) -> jax.Array:
    """Mean loss over the known rows of one category, plus half the squared length of the step times its strength."""
    genes, bias = parameters
    product = jnp.einsum("kr,r->k", rows.z, genes, precision=jax.lax.Precision.HIGHEST)
    logits = (product + towards * rows.base + bias)[:, None]
    targets = rows.labels.astype(jnp.float32)[:, None]
    if loss == "bce":
        found = losses.sigmoid_bce(logits, targets, where=rows.where[:, None])
    else:  # the focusing factor is a constant in the gradient, as in the authors' code
        found = losses.asymmetric(logits, targets, where=rows.where[:, None], stop_focusing_gradient=True)
    return losses.mean_known(found, rows.where[:, None]) + 0.5 * l2 * jnp.sum(genes**2)


def _adam(
    train: Rows,
    score: Callable[[jax.Array], jax.Array],
    towards: Float[jax.Array, " s"],
    l2: Float[jax.Array, " s"],
    config: PolishConfig,
) -> Result:
    """The best step by validation of each pull, until none has improved for `patience` steps."""
    optimizer = optax.adam(config.learning_rate)
    gradient = jax.vmap(jax.grad(_objective), (0, None, 0, 0, None))

    def go_on(carry: Any) -> jax.Array:
        step, best, _, _ = carry
        return (step < config.num_steps) & (step - jnp.max(best["step"]) < config.patience)

    def body(carry: Any) -> Any:
        step, best, parameters, state = carry
        updates, state = optimizer.update(gradient(parameters, train, towards, l2, config.loss), state, parameters)
        moved: Any = optax.apply_updates(parameters, updates)
        genes, bias = moved
        candidate = {
            "genes": genes,
            "bias": bias,
            "step": jnp.full(len(l2), step + 1, jnp.int32),
            "score": score(genes),
        }
        better = candidate["score"] > best["score"]
        best = {
            name: jnp.where(better.reshape(-1, *[1] * (x.ndim - 1)), candidate[name], x) for name, x in best.items()
        }
        return step + 1, best, moved, state

    genes, bias = parameters = jnp.zeros((len(l2), train.z.shape[-1])), jnp.zeros(len(l2))
    first = {"genes": genes, "bias": bias, "step": jnp.zeros(len(l2), jnp.int32), "score": score(genes)}
    return jax.lax.while_loop(go_on, body, (jnp.int32(0), first, parameters, optimizer.init(parameters)))[1]


def _descend(train: Rows, validation: Rows, towards: jax.Array, l2: jax.Array, config: PolishConfig) -> Result:
    """All pulls of one category: genes [s r], bias [s], validation score [s], step [s], and the start's score."""

    def score(genes: jax.Array, towards: jax.Array) -> jax.Array:
        """[s r] to [s]; the bias does not change a ranking."""
        product = jnp.einsum("sr,kr->sk", genes, validation.z, precision=jax.lax.Precision.HIGHEST)
        logits = product + towards[:, None] * validation.base[None, :]
        labels, where = (jnp.asarray(x)[None] for x in (validation.labels, validation.where))
        return packing.ranking_scores(config.metric, logits[None], labels, where, validation.slots)[0]

    nowhere = jnp.zeros((1, train.z.shape[-1]))
    before = score(nowhere, jnp.ones(1))[0]
    if config.optimizer == "adam":
        found = _adam(train, lambda genes: score(genes, towards), towards, l2, config)
    else:
        found = _regressions(train, towards, l2, config.num_steps)
        found["score"] = score(found["genes"], towards)
    return found | {"before": before}


@functools.lru_cache(maxsize=8)
def _program(config: PolishConfig, mesh: Mesh | None) -> Any:
    """Rows of train and of validation to the best of each category; kept, so that a second polish compiles nothing."""
    towards, l2 = (jnp.asarray([getattr(p, name) for p in pulls(config)], jnp.float32) for name in ("towards", "l2"))

    def of_group(train: Rows, validation: Rows) -> dict[str, jax.Array]:
        return jax.vmap(lambda t, v: _descend(t, v, towards, l2, config))(train, validation)

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
    leading: Leading | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Polished:
    """Descend from each category's head on its known training labels, and pick a pull and strength by validation.

    Args:
        heads: where to start, kernel [c d] and bias [c].
        train: embeddings [n d] or [n c d] (arrays or memory maps) with labels and known.
        validation: the same for the split that judges.
        config: loss, optimizer and pulls; None for the defaults.
        leading: principal directions of the training embeddings, where they have been found already.
        store: where finished categories are kept, so that an interrupted polish goes on.
        progress: called with categories done, categories, and the mean validation score so far, categories
            not begun at their start.
        mesh: devices with an axis `data`, over which categories are split; None for one device. Where they are those of
            several hosts, all of them must call.

    Returns:
        Polished: heads, scores, and the categories that could not be tuned, with the reason.

    Raises:
        ValueError: for a loss that the optimizer does not minimise.
    """
    config = config or PolishConfig()
    if config.optimizer == "lbfgs" and config.loss != "bce":
        raise ValueError("polish.optimizer lbfgs minimises bce alone: use --polish.optimizer adam for asymmetric")
    work = prepare(heads, train, validation, dimensions=config.dimensions, white=False, leading=leading, mesh=mesh)
    results = _descend_all(work, config, {} if store is None else store, progress)
    kept = _picked(results, work.tuned, pulls(config), work.validation, config, validation.groups)
    return _as_polished(work, results, kept, train, config)


def _descend_all(work: Work, config: PolishConfig, store: Store, progress: Progress | None) -> dict[str, np.ndarray]:
    """All pulls of all categories, in groups: genes [c s r], bias, step, score [c s], before [c]."""
    run, num = _program(config, work.mesh), len(pulls(config))
    extent = len(work.heads.bias), num
    results = {
        "genes": np.zeros((*extent, work.num_genes), np.float32),
        "bias": np.zeros(extent, np.float32),
        "step": np.zeros(extent, np.int32),
        "score": np.full(extent, np.nan, np.float32),
        "before": np.full(len(work.heads.bias), np.nan, np.float32),
    }
    at_once = work.categories_at_once(work.longest * (2 * work.num_genes + 8 * num) + work.judging * work.num_genes)
    unit, done = np.ones(len(work.heads.bias), np.float32), 0
    # The best so far; only who watches pays for the start.
    best = None if progress is None else work.scores_at_start(config.metric)
    for group in packing.groups(work.train, work.validation, work.mine, at_once, ranked=False):
        given = kept = store.get(group.name)
        if given is None:
            rows = group.rows(work.train, work.validation, unit, work.sharding)
            given = {name: np.asarray(value) for name, value in run(*rows).items()}
            store[group.name] = given
        here = list(group.categories)
        for name, value in given.items():
            results[name][here] = value[: len(here)]
        done += len(here)
        if progress is not None and best is not None:
            best[here] = np.nanmax([best[here], *results["score"][here].T], axis=0)
            # What an interrupted call had kept is told with the next one, for it took no time.
            if kept is None or done == len(work.mine):
                progress(done, len(work.mine), float(np.nanmean(best)))
    work.join(list(results.values()))
    return results


def _as_polished(
    work: Work, results: dict[str, np.ndarray], kept: dict[int, int | None], train: Embeddings, config: PolishConfig
) -> Polished:
    """The heads of the pulls kept, category by category."""
    kernel, bias, candidates = work.heads.kernel.copy(), work.heads.bias.copy(), pulls(config)
    after, steps, names = results["before"].copy(), np.zeros(len(kernel), np.int32), [""] * len(kernel)
    for c, i in kept.items():
        if i is not None:
            pull = candidates[i]
            step, shift = work.space.step(results["genes"][c, i], c)
            kernel[c] = pull.towards * kernel[c] + step
            bias[c] = pull.towards * bias[c] + shift + results["bias"][c, i]
            after[c], steps[c], names[c] = results["score"][c, i], results["step"][c, i], pull.name
    heads = Heads(kernel, bias)
    if config.refit_bias:
        heads = work.refit_bias(heads, train, [c for c in work.tuned if names[c]])
    every = [pull.name for pull in candidates]
    return Polished(heads, results["before"], after, steps, names, work.untuned, every, results["score"].T)


def _picked(
    found: dict[str, np.ndarray],
    tuned: list[int],
    candidates: list[Pull],
    validation: spaces.Seen,
    config: PolishConfig,
    groups: np.ndarray | None,
) -> dict[int, int | None]:
    """Category -> place among the candidates; None where the head stays."""
    if not tuned:
        return {}
    judged = [
        _judged({name: value[c] for name, value in found.items()}, c, candidates, validation, config, groups)
        for c in tuned
    ]
    picked = rules.pick(config.rule, rules.joined(judged))
    return {c: None if i == 0 else int(i) - 1 for c, i in zip(tuned, picked, strict=True)}


def _judged(
    found: dict[str, Any],
    category: int,
    candidates: list[Pull],
    validation: spaces.Seen,
    config: PolishConfig,
    groups: np.ndarray | None,
) -> rules.Judged:
    """What validation says of one category: the head it started from, then the candidates."""
    if config.rule == "best":
        return rules.Judged(np.append(found["before"], found["score"])[:, None])
    z = np.asarray(validation.z if validation.z.ndim == 2 else validation.z[:, category], np.float32)
    base, towards = validation.base[:, category], np.array([pull.towards for pull in candidates], np.float32)
    steps = found["genes"] @ z.T + towards[:, None] * base
    logits = np.concatenate([base[None], steps]).astype(np.float32)[:, :, None]
    labels, known = (np.asarray(x[:, [category]], bool) for x in (validation.labels, validation.known))
    return rules.judge(config.rule, config.metric, logits, labels, known, groups)
