"""What a loss makes of unknown labels, batch by batch: Negative mode's rivals, as pure functions of arrays.

Each takes labels and two masks that exclude each other, `known` and `unknown` (labels in neither do not count), and
gives targets, where they count, and weights. A label that does not count adds exactly nothing to loss and gradient.
Logits and losses are looked at, not differentiated: callers stop their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from cftjax.config import LabelsConfig
from cftjax.types import Array

# The most labels of a training split that `correct_large_loss_permanently` keeps a mark for, in memory and in every
# saved state.
MAX_MARKED = 2**30


class Targets(NamedTuple):
    """What a loss takes.

    Attributes:
        targets: [n c] in [0, 1].
        where: [n c], labels that count.
        weights: [n c] or a single factor of their losses; their number stays the divisor of a mean.
    """

    targets: Float[Array, "n c"]
    where: Bool[Array, "n c"]
    weights: Float[Array, ...]


def assume_negative(labels: Shaped[Array, "n c"], known: Bool[Array, "n c"], unknown: Bool[Array, "n c"]) -> Targets:
    """Unknown labels are negatives (AN)."""
    return Targets(jnp.where(known, labels, 0.0), known | unknown, jnp.ones(()))


def ignore(labels: Shaped[Array, "n c"], known: Bool[Array, "n c"]) -> Targets:
    """Unknown labels do not count."""
    return Targets(jnp.where(known, labels, 0.0), known, jnp.ones(()))


def weak_negative(
    labels: Shaped[Array, "n c"], known: Bool[Array, "n c"], unknown: Bool[Array, "n c"], weight: float | None = None
) -> Targets:
    """Unknown labels are negatives of little weight (WAN).

    Source: Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021, there the weak assume negative
    loss. Their weight, for images with a single known label, is 1 / (c - 1): then the assumed negatives of an image
    weigh what its positive does.

    Args:
        labels: in [0, 1], meaningful where known.
        known: labels that were given.
        unknown: labels that nobody gave.
        weight: of an assumed negative; None for 1 / (c - 1).
    """
    c = labels.shape[1]
    each = 1 / max(c - 1, 1) if weight is None else weight
    return assume_negative(labels, known, unknown)._replace(weights=jnp.where(unknown, each, 1.0))


def smooth_negative(
    labels: Shaped[Array, "n c"], known: Bool[Array, "n c"], unknown: Bool[Array, "n c"], smoothing: float = 0.1
) -> Targets:
    """Unknown labels are negatives, and every target is smoothed: 0 becomes smoothing / 2 and 1 as much less (AN-LS).

    Source: Cole et al. 2021, there assume negative with label smoothing.

    Args:
        labels: in [0, 1], meaningful where known.
        known: labels that were given.
        unknown: labels that nobody gave.
        smoothing: the share of a target that is replaced by 1/2.
    """
    hard = assume_negative(labels, known, unknown)
    return hard._replace(targets=(1 - smoothing) * hard.targets + smoothing / 2)


def selective(
    logits: Float[Array, "n c"],
    labels: Shaped[Array, "n c"],
    known: Bool[Array, "n c"],
    unknown: Bool[Array, "n c"],
    prior: Float[Array, " c"],
    *,
    top: int = 5,
    threshold: float = 0.05,
) -> Targets:
    """Unknown labels are negatives, but do not count where the category may well be there (CSL's selection).

    They do not count among the `top` unknown labels of an image that the model finds likeliest (label likelihood), and
    in categories that are common (label prior).
    Source: Ben-Baruch et al., "Multi-label Classification with Partial Annotations using Class-aware Selective Loss",
    CVPR 2022, there the selection by label likelihood and label prior. Their code takes the likeliest of a whole batch;
    here an image does not depend on its batch. Their decoupled focusing is the caller's loss.

    Args:
        logits: of the model of the moment.
        labels: in [0, 1], meaningful where known.
        known: labels that were given.
        unknown: labels that nobody gave.
        prior: estimated share of images that show each category.
        top: number of labels per image.
        threshold: prior above which a category is common.
    """
    n, c = logits.shape
    _, likeliest = jax.lax.top_k(jnp.where(unknown, logits, -jnp.inf), min(top, c))
    likely = jnp.zeros((n, c), bool).at[jnp.arange(n)[:, None], likeliest].set(True)
    left_out = likely | (prior > threshold)[None, :]
    negative = assume_negative(labels, known, unknown)
    return negative._replace(where=known | (unknown & ~left_out))


def large_losses(
    loss: Float[Array, "n c"], unknown: Bool[Array, "n c"], share: Float[Array, ""] | float
) -> Bool[Array, "n c"]:
    """The unknown labels of a batch that cost most as negatives: many of those are positives in truth.

    Source: Kim et al., "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR 2022. They reject
    them (LL-R), take them as positives in this step (LL-Ct) or for good (LL-Cp).

    Args:
        loss: of every label, the unknown ones taken as negative.
        unknown: labels that nobody gave.
        share: how many, as a share of all n * c labels, rounded up; ties with the last one are taken as well.
    """
    cost = jnp.where(unknown, loss, -jnp.inf)
    # Not one more for the rounding of the product.
    count = jnp.minimum(jnp.ceil(share * cost.size - 1e-3).astype(int), cost.size)
    # Largest first; -inf where all unknown labels are wanted.
    least = -jnp.sort(-cost, axis=None)[jnp.maximum(count - 1, 0)]
    return unknown & (cost >= least) & (count > 0)


def curriculum(
    logits: Float[Array, "n c"],
    labels: Shaped[Array, "n c"],
    known: Bool[Array, "n c"],
    unknown: Bool[Array, "n c"],
    threshold: Float[Array, ""] | float = 2.0,
) -> Targets:
    """Unknown labels are what the model is sure of, positive or negative, and do not count where it is not.

    Source: Durand et al., "Learning a Deep ConvNet for Multi-label Classification with Partial Labels", CVPR 2019,
    there the curriculum by score threshold. They label all images now and then, between trainings; here each step
    labels its own.

    Args:
        logits: of the model of the moment.
        labels: in [0, 1], meaningful where known.
        known: labels that were given.
        unknown: labels that nobody gave.
        threshold: logit above which a label is positive, and below minus which it is negative.
    """
    positive, negative = unknown & (logits > threshold), unknown & (logits < -threshold)
    return Targets(jnp.where(known, labels, jnp.where(positive, 1.0, 0.0)), known | positive | negative, jnp.ones(()))


def new_memory(config: LabelsConfig, num_images: int, num_categories: int) -> dict[str, np.ndarray]:
    """What a mode remembers from step to step, before the first.

    Args:
        config: names the mode.
        num_images: of the training split.
        num_categories: of its labels.

    Raises:
        ValueError: where it would be too large.
    """
    if config.unknown == "selective":
        return {"probability": np.zeros(num_categories, np.float32), "images": np.zeros((), np.float32)}
    if config.unknown == "correct_large_loss_permanently":
        if num_images * num_categories > MAX_MARKED:
            raise ValueError(
                f"--labels.unknown {config.unknown} keeps a mark for each of {num_images:,} x {num_categories:,} "
                "labels, which is too many: use correct_large_loss"
            )
        return {"corrected": np.zeros((num_images, num_categories), bool)}
    return {}


def resolve(
    config: LabelsConfig,
    logits: Float[Array, "n c"],
    labels: Shaped[Array, "n c"],
    known: Bool[Array, "n c"],
    unknown: Bool[Array, "n c"],
    rows: Int[Array, " n"],
    memory: dict[str, Any],
    epoch: Int[Array, ""],
    loss: Callable[[Targets], Float[Array, "n c"]],
) -> tuple[Targets, dict[str, Any]]:
    """What the chosen mode makes of the labels of a batch.

    Args:
        config: names the mode, and holds its options.
        logits: of the model of the moment, their gradient stopped.
        labels: in [0, 1], meaningful where known.
        known: labels that were given.
        unknown: labels that nobody gave.
        rows: of the training split; -1 where no label counts.
        memory: of the mode, as `new_memory` or the step before gave it.
        epoch: counted from 0.
        loss: of every label, for targets.

    Returns:
        Targets, and the memory after this step.
    """
    begun = epoch >= config.unknown_warmup
    negative = assume_negative(labels, known, unknown)
    match config.unknown:
        case "assume_negative":
            return negative, memory
        case "ignore":
            return ignore(labels, known), memory
        case "weak_negative":
            return weak_negative(labels, known, unknown, config.unknown_weight), memory
        case "smooth_negative":
            return smooth_negative(labels, known, unknown, config.unknown_smoothing), memory
        case "curriculum":
            # No score is beyond an infinite threshold: during warm-up nothing unknown counts.
            threshold = jnp.where(begun, config.curriculum_score, jnp.inf)
            sure = curriculum(logits, labels, known, unknown, threshold)
            return sure, memory
        case "selective":
            # The published prior: mean probabilities of a model trained in Ignore mode; here, in warm-up's last epoch.
            counts = (rows >= 0) & (epoch == config.unknown_warmup - 1)
            memory = {
                "probability": memory["probability"] + jnp.sum(jax.nn.sigmoid(logits) * counts[:, None], axis=0),
                "images": memory["images"] + jnp.sum(counts),
            }
            prior = memory["probability"] / jnp.maximum(memory["images"], 1)
            chosen = selective(
                logits, labels, known, unknown, prior, top=config.likelihood_top, threshold=config.prior_threshold
            )
            return chosen._replace(where=jnp.where(begun, chosen.where, known)), memory
        case "reject_large_loss" | "correct_large_loss":
            share = jnp.maximum(epoch - config.unknown_warmup + 1, 0) * config.large_loss_share
            large = large_losses(loss(negative), unknown, share)
            if config.unknown == "reject_large_loss":
                return negative._replace(weights=jnp.where(large, 0.0, 1.0)), memory
            return negative._replace(targets=jnp.where(large, 1.0, negative.targets)), memory
        case "correct_large_loss_permanently":
            marks = jnp.asarray(memory["corrected"])
            before = marks[jnp.maximum(rows, 0)] & unknown
            remembering = negative._replace(targets=jnp.where(before, 1.0, negative.targets))
            share = jnp.where(begun, config.large_loss_share, 0.0)
            large = large_losses(loss(remembering), unknown & ~before, share)
            # Rows that do not count are sent beyond the end, where `drop` leaves them out.
            places = jnp.where(rows < 0, len(marks), rows)
            memory = {"corrected": marks.at[places].max(before | large, mode="drop")}
            return remembering._replace(targets=jnp.where(large, 1.0, remembering.targets)), memory
