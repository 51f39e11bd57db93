"""Choosing: per category the candidate head that validation speaks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from cftjax.cft import packing, rules
from cftjax.config import ChooseConfig
from cftjax.types import Embeddings, Heads

# Logits of all candidates of one block of categories, in bytes.
LOGITS_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The heads kept.

    Attributes:
        heads: [c d].
        names: [c] which candidate each category keeps.
        scores: candidate -> [c] validation score, NaN where undefined.
        untuned: category -> why it keeps the first candidate.
        out_of_fold: [v c] logits of the judging images by heads that have not learned from them, where heads learn from
            some; else None, and those of `heads` are as good.
        share: of the heads that came, where all categories have the same; else None.
        unjudged: categories that follow the others, for no judging label is known of them.
    """

    heads: Heads
    names: list[str]
    scores: dict[str, Float[np.ndarray, " c"]]
    untuned: dict[int, str]
    out_of_fold: Float[np.ndarray, "v c"] | None = None
    share: float | None = None
    unjudged: Sequence[int] = ()


def mixtures(
    candidates: Mapping[str, Heads], train: Embeddings, validation: Embeddings, shares: Sequence[float]
) -> dict[str, Heads]:
    """Heads between the first candidate and each of the others.

    Heads differ in the scale of their logits, so that the first is brought to the other's before they are mixed; the
    bias is fitted to the known training labels.

    Args:
        candidates: the old head first.
        train: fits the bias.
        validation: measures the scales.
        shares: of the new head, in (0, 1).
    """
    (_, old), *others = candidates.items()
    found = {}
    for name, new in others:
        before, after = (np.asarray(heads(validation.z)).std(axis=0) for heads in (old, new))
        scale = (after / np.where(before > 0, before, 1.0))[:, None]
        for share in shares:
            kernel = (1 - share) * scale * np.asarray(old.kernel) + share * np.asarray(new.kernel)
            mixed = Heads(kernel.astype(np.float32), np.asarray(new.bias))
            bias = packing.refit_bias(mixed, train, range(len(kernel)))
            found[f"{name} x{share:g}"] = Heads(mixed.kernel, bias)
    return found


def choose(
    candidates: Mapping[str, Heads],
    train: Embeddings,
    validation: Embeddings,
    *,
    config: ChooseConfig | None = None,
    fair_scores: Mapping[str, Float[np.ndarray, " c"]] | None = None,
) -> Chosen:
    """Keep per category the candidate that validation speaks for (by rule `best`, "greedy" in the authors' code).

    Args:
        candidates: name -> heads, the original first: it stays where no other is expected to be better, and where a
            category cannot be judged.
        train: the training embeddings; a category without a known positive and negative there was never tuned.
        validation: the embeddings that judge.
        config: metric, rule and mixtures; None for `cross_validated`.
        fair_scores: candidate -> [c] what its validation score is worth, where it was made by looking at validation
            (`Found.fair_scores`); NaN where unknown. Mixtures with it are worth as much. The rule `best` takes every
            score at its word.

    Returns:
        Chosen: heads, names (a mixture's is `polish x0.5`), scores and the categories left alone, with the reason.
    """
    config = config or ChooseConfig(rule="cross_validated")
    if config.rule == "shared":
        raise ValueError("rule shared learns heads of its own: call cftjax.fine_tune, or choose by another rule")
    candidates = {**candidates, **mixtures(candidates, train, validation, config.mixes)}
    order, c = list(candidates), len(next(iter(candidates.values())).bias)
    at_once = max(1, LOGITS_BYTES // (4 * len(order) * max(len(validation), 1)))
    judged = []
    for some in (slice(start, start + at_once) for start in range(0, c, at_once)):
        z = validation.z if validation.z.ndim == 2 else validation.z[:, some]
        some_heads = (Heads(np.asarray(h.kernel)[some], np.asarray(h.bias)[some]) for h in candidates.values())
        logits = np.stack([np.asarray(heads(z)) for heads in some_heads])
        labels, known = (np.asarray(x[:, some], bool) for x in (validation.labels, validation.known))
        judged.append(rules.judge(config.rule, config.metric, logits, labels, known, validation.groups))
    untuned = packing.untunable(train, validation)
    whole = rules.joined(judged)
    worth, scores = whole.scores.copy(), dict(zip(order, whole.scores, strict=True))
    for i, name in enumerate(order):
        fair = (fair_scores or {}).get(name.split(" x")[0])
        if fair is not None and config.rule != "best":
            worth[i] = np.where(np.isnan(fair), worth[i], fair)
    picked = rules.pick(config.rule, dataclasses.replace(whole, scores=worth))
    picked[list(untuned)] = 0
    # A head that a later stage left as it was bears the name of the stage that made it.
    kernels = [np.asarray(heads.kernel) for heads in candidates.values()]
    picked = np.array(
        [next(j for j, k in enumerate(kernels) if (k[c] == kernels[i][c]).all()) for c, i in enumerate(picked)]
    )
    kernel, bias = (
        np.stack([np.asarray(getattr(candidates[order[i]], field))[c] for c, i in enumerate(picked)])
        for field in ("kernel", "bias")
    )
    return Chosen(Heads(kernel, bias), [order[i] for i in picked], scores, untuned)
