"""What becomes of a gradient: it is clipped, goes through Adam or SGD, and is scaled by schedule and depth."""

from __future__ import annotations

import functools

import jax
import optax
from jaxtyping import PyTree

from cftjax.backbones import DepthGroups
from cftjax.config import TrainingConfig

MOMENTUM = 0.9


def schedule(config: TrainingConfig, num_steps: int) -> optax.Schedule:
    """The backbone's learning rate by step."""
    if config.schedule == "onecycle":
        return optax.cosine_onecycle_schedule(num_steps, config.learning_rate, config.warmup)
    warmup = int(config.warmup * num_steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.learning_rate, config.learning_rate, warmup, num_steps
    )


def optimizer(config: TrainingConfig, num_steps: int, depth_groups: DepthGroups = ()) -> optax.GradientTransformation:
    """Clipping, Adam or SGD, decoupled weight decay, the schedule, and the rates of head and depth.

    Args:
        config: its optimizer, rates, schedule, clip_norm and decays are read.
        num_steps: length of the schedule.
        depth_groups: of the backbone, for its layer_decay.
    """
    kind = optax.scale_by_adam() if config.optimizer == "adam" else optax.trace(MOMENTUM, nesterov=True)
    by_depth = [optax.stateless(functools.partial(_scale_by_depth, config.layer_decay, depth_groups))]
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        kind,
        # Biases and the scales of normalisations are spared: pulling them to zero regularises nothing.
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
        optax.masked(optax.scale(config.head_learning_rate_scale), _is_head),
        *(by_depth if config.layer_decay < 1 else ()),
    )


def depth_factors(decay: float, depth_groups: DepthGroups, params: PyTree) -> PyTree:
    """Of every parameter, the factor on its learning rate: `decay` to the number of blocks between it and the head.

    Source: Clark et al., "ELECTRA", ICLR 2020, appendix A; a depth group of the backbone is their layer. What follows
    the last block has the head's own rate, as in Bao et al., "BEiT", ICLR 2022.

    Args:
        decay: from each block to the one before it.
        depth_groups: of the backbone, as `Backbone.depth_groups` has them.
        params: of a classifier, or of a head alone.

    Raises:
        ValueError: where a parameter of the backbone is in no group, or in several.
    """

    def factor(path: jax.tree_util.KeyPath, _: jax.Array | jax.ShapeDtypeStruct) -> float:
        first, *names = [str(getattr(key, "key", key)) for key in path]
        if first != "backbone":
            return 1.0
        name = ".".join(names)
        depths = [i for i, group in enumerate(depth_groups) if any(f"{name}.".startswith(f"{x}.") for x in group)]
        if len(depths) != 1:
            raise ValueError(f"the parameter {name} is in {len(depths)} depth groups of its backbone, not in one")
        return decay ** (len(depth_groups) - 1 - depths[0])

    return jax.tree_util.tree_map_with_path(factor, params)


def _scale_by_depth(decay: float, depth_groups: DepthGroups, updates: PyTree, params: PyTree) -> PyTree:
    return jax.tree.map(lambda update, factor: update * factor, updates, depth_factors(decay, depth_groups, updates))


def _is_head(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0] == jax.tree_util.DictKey("head"), params)
