"""Sigmoid losses for labels of which some are unknown: elementwise, masked, and right for soft labels.

Every loss is the mixture `target * positive(logit) + (1 - target) * negative(logit)`. Logits are widened to at least
float32 first, so that bfloat16 networks may hand theirs over as they are, and logarithms are taken of the logit, never
of a rounded probability. A label that is masked out adds exactly 0 to the loss and to every gradient, whatever its
logit or target holds, NaN included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped

Array = np.ndarray | jax.Array


def sigmoid_bce(
    logits: Float[Array, "*n c"],
    targets: Shaped[Array, "*n c"],
    where: Bool[Array, "*n c"] | None = None,
    weights: Float[Array, " c"] | None = None,
    *,
    positive_weights: Float[Array, " c"] | None = None,
) -> Float[jax.Array, "*n c"]:
    """Binary cross-entropy of each label.

    Args:
        logits: raw scores, before the sigmoid.
        targets: probability of presence in [0, 1]; 0 and 1 where labels are definite.
        where: labels that count; all of them if None.
        weights: factor of each category; 1 if None.
        positive_weights: factor of each category's positive branch; 1 if None.

    Returns:
        Loss in nats per label, 0 where masked.
    """
    x, t = _unmask(logits, targets, where)
    return _mix(-jax.nn.log_sigmoid(x), -jax.nn.log_sigmoid(-x), t, where, weights, positive_weights)


def focal(
    logits: Float[Array, "*n c"],
    targets: Shaped[Array, "*n c"],
    where: Bool[Array, "*n c"] | None = None,
    weights: Float[Array, " c"] | None = None,
    *,
    gamma: float = 2.0,
    stop_focusing_gradient: bool = False,
    positive_weights: Float[Array, " c"] | None = None,
) -> Float[jax.Array, "*n c"]:
    """Focal loss of each label: cross-entropy times the probability of the opposite label to the power gamma.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4; `weights` takes alpha's place.

    Args:
        logits: raw scores, before the sigmoid.
        targets: probability of presence in [0, 1].
        where: labels that count; all of them if None.
        weights: factor of each category; 1 if None.
        gamma: focusing exponent, at least 0; 0 is binary cross-entropy.
        stop_focusing_gradient: treat the focusing factor as a constant in the gradient.
        positive_weights: factor of each category's positive branch; 1 if None.

    Returns:
        Loss in nats per label, 0 where masked.

    Raises:
        ValueError: if gamma is negative.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma}: a focusing exponent must be at least 0")
    return asymmetric(
        logits,
        targets,
        where,
        weights,
        gamma_negative=gamma,
        gamma_positive=gamma,
        clip=0.0,
        stop_focusing_gradient=stop_focusing_gradient,
        positive_weights=positive_weights,
    )


def asymmetric(
    logits: Float[Array, "*n c"],
    targets: Shaped[Array, "*n c"],
    where: Bool[Array, "*n c"] | None = None,
    weights: Float[Array, " c"] | None = None,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 0.0,
    clip: float = 0.05,
    stop_focusing_gradient: bool = False,
    positive_weights: Float[Array, " c"] | None = None,
) -> Float[jax.Array, "*n c"]:
    """Asymmetric loss (ASL) of each label: focal exponents per sign, and easy negatives left out.

    With p the probability and q = min(1 - p + clip, 1) the shifted probability of absence, a positive costs
    -(1 - p)^gamma_positive log(p) and a negative -(1 - q)^gamma_negative log(q). Negatives with p <= clip cost nothing.
    Source: Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021, "asymmetric focusing" and
    "asymmetric probability shifting"; their margin m is `clip`. Soft targets mix the two branches, each focused by its
    own probability.

    Args:
        logits: raw scores, before the sigmoid.
        targets: probability of presence in [0, 1].
        where: labels that count; all of them if None.
        weights: factor of each category; 1 if None.
        gamma_negative: focusing exponent of the negative branch, at least 0.
        gamma_positive: focusing exponent of the positive branch, at least 0.
        clip: probability below which a negative costs nothing, in [0, 1).
        stop_focusing_gradient: treat the focusing factors as constants in the gradient, as mlcpl does by default.
        positive_weights: factor of each category's positive branch; 1 if None.

    Returns:
        Loss in nats per label, 0 where masked.

    Raises:
        ValueError: if an exponent is negative or clip is outside [0, 1).
    """
    if not (gamma_negative >= 0 and gamma_positive >= 0):
        raise ValueError(
            f"gamma_negative is {gamma_negative} and gamma_positive {gamma_positive}: both must be at least 0"
        )
    if not 0 <= clip < 1:
        raise ValueError(f"clip is {clip}: a probability to shift by must lie in [0, 1)")
    x, t = _unmask(logits, targets, where)
    log_present, log_absent = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
    focus_positive = jnp.exp(gamma_positive * log_absent)
    if clip == 0:
        focus_negative = jnp.exp(gamma_negative * log_present)
    else:
        log_absent = jnp.minimum(jnp.logaddexp(log_absent, jnp.log(clip)), 0.0)
        focus_negative = _power(jax.nn.sigmoid(x) - clip, gamma_negative)
    if stop_focusing_gradient:
        focus_positive, focus_negative = jax.lax.stop_gradient((focus_positive, focus_negative))
    return _mix(-focus_positive * log_present, -focus_negative * log_absent, t, where, weights, positive_weights)


def mean_known(
    loss: Float[Array, "*n c"], where: Bool[Array, "*n c"] | None = None, axis: int | None = None
) -> Float[jax.Array, "*m"]:
    """Mean over the labels that count: their sum over their number, the number taken as one where there is none.

    Args:
        loss: nats per label.
        where: labels that count; all of them if None.
        axis: the axis to reduce; None reduces all.

    Returns:
        Nats per known label.
    """
    loss = jnp.asarray(loss)
    where = jnp.ones(loss.shape, bool) if where is None else jnp.asarray(where)
    count = jnp.sum(where, axis=axis)
    return jnp.sum(jnp.where(where, loss, 0), axis=axis) / jnp.maximum(count, 1).astype(loss.dtype)


def _unmask(logits: Array, targets: Array, where: Array | None) -> tuple[jax.Array, jax.Array]:
    """Logits and targets in at least float32, with zeros where masked."""
    logits = jnp.asarray(logits)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    x, t = logits.astype(dtype), jnp.asarray(targets).astype(dtype)
    if where is None:
        return x, t
    # Masking the result alone would leave 0 * NaN in the gradient: the inputs must be harmless too.
    return jnp.where(where, x, 0), jnp.where(where, t, 0)


def _mix(
    positive: jax.Array,
    negative: jax.Array,
    targets: jax.Array,
    where: Array | None,
    weights: Array | None,
    positive_weights: Array | None,
) -> jax.Array:
    """The target-weighted mixture of both branches, weighted by category, 0 where masked."""
    if positive_weights is not None:
        positive = positive * _per_category(positive_weights, positive)
    loss = targets * positive + (1 - targets) * negative
    if weights is not None:
        loss = loss * _per_category(weights, loss)
    return loss if where is None else jnp.where(where, loss, 0)


def _per_category(weights: Array, like: jax.Array) -> jax.Array:
    return jnp.asarray(weights).astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """max(base, 0) ** exponent with finite gradients at base <= 0, where exponents below 1 have none."""
    if exponent == 0:
        return jnp.ones_like(base)
    positive = base > 0
    return jnp.where(positive, jnp.where(positive, base, 1) ** exponent, 0)
