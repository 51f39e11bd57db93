"""What becomes of unknown labels while a backbone trains: Negative mode and its rivals, one row of `MODES` each.

A new mode is a function and a row of this file. The function takes a `SeenBatch` and, by keyword, the options
that it reads, which are fields of `config.LabelsConfig`; it gives targets, where they count, and weights. A
label that does not count adds exactly nothing to loss and gradient. Logits and losses are looked at, not
differentiated: callers stop their gradients.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from cftjax.types import Array

# What an unknown label is where nothing has to be looked at.
Simple = Literal["assume_negative", "ignore"]
# What a mode remembers from step to step.
Memory = Mapping[str, Array]
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


@dataclasses.dataclass(frozen=True)
class SeenBatch:
    """What a mode may look at, of one batch.

    Attributes:
        logits: of the model of the moment.
        labels: in [0, 1], meaningful where known.
        known: labels that were given.
        unknown: labels that nobody gave; labels in neither mask do not count.
        rows: of the training split; -1 where no label counts.
        epoch: counted from 0.
        memory: as the mode's `new_memory` or the step before gave it.
        loss: of every label, for targets.
    """

    logits: Float[Array, "n c"]
    labels: Shaped[Array, "n c"]
    known: Bool[Array, "n c"]
    unknown: Bool[Array, "n c"]
    rows: Int[Array, " n"]
    epoch: Int[Array, ""]
    memory: Memory
    loss: Callable[[Targets], Float[Array, "n c"]]

    @property
    def negative(self) -> Targets:
        """Every unknown label a negative."""
        return Targets(jnp.where(self.known, self.labels, 0.0), self.known | self.unknown, jnp.ones(()))


Resolved = tuple[Targets, Memory]


def assume_negative(seen: SeenBatch) -> Resolved:
    """Unknown labels are negatives (AN)."""
    return seen.negative, seen.memory


def ignore(seen: SeenBatch) -> Resolved:
    """Unknown labels do not count."""
    return Targets(jnp.where(seen.known, seen.labels, 0.0), seen.known, jnp.ones(())), seen.memory


def weak_negative(seen: SeenBatch, *, unknown_weight: float | None) -> Resolved:
    """Unknown labels are negatives of little weight (WAN).

    Source: Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021, there the weak assume negative
    loss. Their weight, for images with a single known label, is 1 / (c - 1), which is that of None: then the assumed
    negatives of an image weigh what its positive does.
    """
    c = seen.labels.shape[1]
    weight = 1 / max(c - 1, 1) if unknown_weight is None else unknown_weight
    return seen.negative._replace(weights=jnp.where(seen.unknown, weight, 1.0)), seen.memory


def smooth_negative(seen: SeenBatch, *, unknown_smoothing: float) -> Resolved:
    """Unknown labels are negatives, and every target is smoothed: 0 becomes smoothing / 2 and 1 as much less (AN-LS).

    Source: Cole et al. 2021, there assume negative with label smoothing.
    """
    targets = (1 - unknown_smoothing) * seen.negative.targets + unknown_smoothing / 2
    return seen.negative._replace(targets=targets), seen.memory


def selective(seen: SeenBatch, *, likelihood_top: int, prior_threshold: float, unknown_warmup: int) -> Resolved:
    """Unknown labels are negatives, but do not count where the category may well be there (CSL's selection).

    They do not count among the `likelihood_top` unknown labels of an image that the model finds likeliest (label
    likelihood), and in categories whose estimated share of images is above `prior_threshold` (label prior).
    Source: Ben-Baruch et al., "Multi-label Classification with Partial Annotations using Class-aware Selective Loss",
    CVPR 2022, there the selection by label likelihood and label prior. Their code takes the likeliest of a whole batch;
    here an image does not depend on its batch. Their decoupled focusing is the caller's loss.
    """
    # The published prior: mean probabilities of a model trained in Ignore mode; here, in warm-up's last epoch.
    counts = (seen.rows >= 0) & (seen.epoch == unknown_warmup - 1)
    memory = {
        "probability": seen.memory["probability"] + jnp.sum(jax.nn.sigmoid(seen.logits) * counts[:, None], axis=0),
        "images": seen.memory["images"] + jnp.sum(counts),
    }
    prior = memory["probability"] / jnp.maximum(memory["images"], 1)
    n, c = seen.logits.shape
    _, likeliest = jax.lax.top_k(jnp.where(seen.unknown, seen.logits, -jnp.inf), min(likelihood_top, c))
    likely = jnp.zeros((n, c), bool).at[jnp.arange(n)[:, None], likeliest].set(True)
    left_out = likely | (prior > prior_threshold)[None, :]
    where = seen.known | (seen.unknown & ~left_out)
    return seen.negative._replace(where=jnp.where(seen.epoch >= unknown_warmup, where, seen.known)), memory


def curriculum(seen: SeenBatch, *, curriculum_score: float, unknown_warmup: int) -> Resolved:
    """Unknown labels are what the model is sure of, positive or negative, and do not count where it is not.

    Source: Durand et al., "Learning a Deep ConvNet for Multi-label Classification with Partial Labels", CVPR 2019,
    there the curriculum by score threshold. They label all images now and then, between trainings; here each step
    labels its own.
    """
    # No score is beyond an infinite threshold: during warm-up nothing unknown counts.
    threshold = jnp.where(seen.epoch >= unknown_warmup, curriculum_score, jnp.inf)
    positive, negative = seen.unknown & (seen.logits > threshold), seen.unknown & (seen.logits < -threshold)
    targets = jnp.where(seen.known, seen.labels, jnp.where(positive, 1.0, 0.0))
    return Targets(targets, seen.known | positive | negative, jnp.ones(())), seen.memory


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


def _growing(seen: SeenBatch, share: float, warmup: int) -> Bool[Array, "n c"]:
    """The largest losses of a batch, by as much more of them as epochs have passed since warm-up."""
    return large_losses(seen.loss(seen.negative), seen.unknown, jnp.maximum(seen.epoch - warmup + 1, 0) * share)


def reject_large_loss(seen: SeenBatch, *, large_loss_share: float, unknown_warmup: int) -> Resolved:
    """Unknown labels are negatives, but for the largest losses, which do not count (LL-R)."""
    large = _growing(seen, large_loss_share, unknown_warmup)
    return seen.negative._replace(weights=jnp.where(large, 0.0, 1.0)), seen.memory


def correct_large_loss(seen: SeenBatch, *, large_loss_share: float, unknown_warmup: int) -> Resolved:
    """Unknown labels are negatives, but for the largest losses, which are positives (LL-Ct)."""
    large = _growing(seen, large_loss_share, unknown_warmup)
    return seen.negative._replace(targets=jnp.where(large, 1.0, seen.negative.targets)), seen.memory


def correct_large_loss_permanently(seen: SeenBatch, *, large_loss_share: float, unknown_warmup: int) -> Resolved:
    """Unknown labels are negatives, but for the largest losses, which are positives from then on (LL-Cp)."""
    marks = jnp.asarray(seen.memory["corrected"])
    before = marks[jnp.maximum(seen.rows, 0)] & seen.unknown
    remembering = seen.negative._replace(targets=jnp.where(before, 1.0, seen.negative.targets))
    share = jnp.where(seen.epoch >= unknown_warmup, large_loss_share, 0.0)
    large = large_losses(seen.loss(remembering), seen.unknown & ~before, share)
    # Rows that do not count are sent beyond the end, where `drop` leaves them out.
    places = jnp.where(seen.rows < 0, len(marks), seen.rows)
    memory = {"corrected": marks.at[places].max(before | large, mode="drop")}
    return remembering._replace(targets=jnp.where(large, 1.0, remembering.targets)), memory


def _nothing(num_images: int, num_categories: int) -> Memory:
    return {}


def _probabilities(num_images: int, num_categories: int) -> Memory:
    return {"probability": np.zeros(num_categories, np.float32), "images": np.zeros((), np.float32)}


def _marks(num_images: int, num_categories: int) -> Memory:
    if num_images * num_categories > MAX_MARKED:
        raise ValueError(
            f"--labels.unknown correct_large_loss_permanently keeps a mark for each of {num_images:,} x "
            f"{num_categories:,} labels, which is too many: use correct_large_loss"
        )
    return {"corrected": np.zeros((num_images, num_categories), bool)}


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode of unknown labels, by its name the value of `--labels.unknown`.

    Attributes:
        title: what tables call it.
        fate: what unknown labels did, in a sentence about a run that is done.
        resolve: a batch as it is seen, and options by keyword -> targets, and the memory after this step.
        begins: what unknown labels are in the first epoch.
        new_memory: number of training images and of categories -> what it remembers before the first step; raises
            ValueError where that would be too large.
        folder: of its runs in a sweep, before the known proportion; its own name where None.
        single_images: it decides about labels of single images, so that images cannot be mixed.
    """

    title: str
    fate: str
    resolve: Callable[..., Resolved]
    begins: Simple = "assume_negative"
    new_memory: Callable[[int, int], Memory] = _nothing
    folder: str | None = None
    single_images: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Fields of `config.LabelsConfig` that it reads."""
        parameters = inspect.signature(self.resolve).parameters.values()
        return tuple(x.name for x in parameters if x.kind is inspect.Parameter.KEYWORD_ONLY)


MODES = {
    "assume_negative": Mode("Negative", "counted as negative", assume_negative, folder="negative"),
    "ignore": Mode("Ignore", "did not count", ignore, begins="ignore"),
    "weak_negative": Mode("WAN", "counted as negatives of little weight", weak_negative),
    "smooth_negative": Mode("AN-LS", "counted as negative, with all targets smoothed", smooth_negative),
    "selective": Mode(
        "CSL", "counted as negative where the category was unlikely", selective, "ignore", _probabilities
    ),
    "reject_large_loss": Mode(
        "LL-R",
        "counted as negative, but for those of the largest losses, which did not count",
        reject_large_loss,
    ),
    "correct_large_loss": Mode(
        "LL-Ct",
        "counted as negative, but for those of the largest losses, which counted as positive",
        correct_large_loss,
    ),
    "correct_large_loss_permanently": Mode(
        "LL-Cp",
        "counted as negative, but for those of the largest losses, which became positive",
        correct_large_loss_permanently,
        new_memory=_marks,
        single_images=True,
    ),
    "curriculum": Mode(
        "Curriculum", "counted as what the model was sure of, and else not at all", curriculum, "ignore"
    ),
}
