import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cftjax import backbones
from cftjax.config import BackboneConfig, TrainingConfig
from cftjax.training import classifier, optimizer
from cftjax.training.classifier import Architecture

TRAINING = TrainingConfig(batch_size=8, learning_rate=0.02, warmup=0.0, weight_decay=0.01)
# One of each family, and of the vision transformers the one with the most kinds of variables.
FAMILIES = (
    "resnet50",
    "densenet121",
    "efficientnet_lite0",
    "convnext_tiny",
    "vit_small",
    "dinov2_small_registers",
    "dinov3_small",
    "siglip2_base_patch16_224",
)


def test_the_head_has_a_learning_rate_of_its_own():
    params = {"backbone": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    settings = dataclasses.replace(TRAINING, optimizer="sgd", head_learning_rate_scale=10.0, weight_decay=0.0)
    update = optimizer.optimizer(settings, 10)
    gradient = jax.tree.map(lambda x: 0.01 * x, params)
    updates, _ = update.update(gradient, update.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], 10 * updates["backbone"]["kernel"], rtol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    params = {"backbone": {"kernel": jnp.zeros((2, 2))}, "head": {"kernel": jnp.zeros((3, 4))}}
    settings = dataclasses.replace(TRAINING, optimizer="sgd", clip_norm=0.5)
    update = optimizer.optimizer(settings, 10)
    updates, _ = update.update(jax.tree.map(lambda x: x + 100, params), update.init(params), params)
    # Nesterov's first step is 1 + momentum times the gradient.
    assert float(optax.tree.norm(updates)) == pytest.approx(1.9 * 0.5 * TRAINING.learning_rate, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "onecycle"])
def test_the_schedule_peaks_after_the_warm_up_and_ends_near_zero(kind):
    rate = optimizer.schedule(TrainingConfig(schedule=kind, learning_rate=0.3, warmup=0.2), 100)
    rates = [float(rate(step)) for step in range(101)]
    assert int(np.argmax(rates)) == 20
    assert max(rates) == pytest.approx(0.3, rel=1e-4)
    assert rates[0] <= 0.3 / 25 + 1e-6
    assert rates[100] < 1e-4
    assert all(np.diff(rates[:20]) > 0)
    assert all(np.diff(rates[20:]) < 1e-9)


def test_one_cycle_is_torchs_but_for_one_step_over_each_of_its_halves():
    def torch(step, peak=0.3, total=100, share=0.2):
        """As torch.optim.lr_scheduler.OneCycleLR documents it: div_factor 25, final_div_factor 1e4, cosine."""
        start, end, top = peak / 25, peak / 25 / 1e4, share * total - 1
        low, high, part = (start, peak, step / top) if step <= top else (peak, end, (step - top) / (total - 1 - top))
        return high + (low - high) / 2 * (1 + np.cos(np.pi * part))

    settings = dataclasses.replace(TRAINING, schedule="onecycle", learning_rate=0.3, warmup=0.2)
    schedule = optimizer.schedule(settings, 100)
    for ours, theirs in ((0, 0), (20, 19), (100, 99)):
        assert float(schedule(ours)) == pytest.approx(torch(theirs), rel=1e-4)
    expected = np.array([torch(step) for step in range(100)])
    difference = np.abs([float(schedule(step)) for step in range(100)] - expected)
    assert difference.max() < np.abs(np.diff(expected)).max()


def test_layer_decay_slows_each_block_more_than_the_one_after_it():
    layer = {"kernel": jnp.ones((2, 2))}
    backbone = {"stem": layer, "stem_norm": layer, "blocks": {0: layer, 1: layer, 10: layer}, "head": layer}
    params = {"backbone": backbone, "head": layer}
    groups = (("stem", "stem_norm"), *((f"blocks.{i}",) for i in range(11)), ("head",))
    settings = dataclasses.replace(TRAINING, optimizer="sgd", clip_norm=1e9, weight_decay=0.0)
    moved = {}
    for decay in (1.0, 0.5):
        update = optimizer.optimizer(dataclasses.replace(settings, layer_decay=decay), 10, groups)
        updates, _ = update.update(params, update.init(params), params)
        moved[decay] = {jax.tree_util.keystr(k): v[0, 0] for k, v in jax.tree_util.tree_leaves_with_path(updates)}
    ratio = {name: moved[0.5][name] / value for name, value in moved[1.0].items()}
    blocks = {f"['backbone']['blocks'][{i}]['kernel']": 0.5 ** (11 - i) for i in (0, 1, 10)}
    stem = {f"['backbone']['{name}']['kernel']": 0.5**12 for name in ("stem", "stem_norm")}
    assert ratio == pytest.approx({**blocks, **stem, "['backbone']['head']['kernel']": 1, "['head']['kernel']": 1})


@pytest.mark.parametrize("pooling", ["published", "attention"])
@pytest.mark.parametrize("name", FAMILIES)
def test_under_layer_decay_the_rate_grows_from_the_first_parameter_to_the_last_and_none_is_left_out(name, pooling):
    config = BackboneConfig(name, pooling=pooling)
    model = classifier.abstract(Architecture(config, 2, jnp.float32))
    # Refuses what is in no group, or in two.
    factors = optimizer.depth_factors(0.8, model.depth_groups, model.params)
    assert jax.tree.structure(factors) == jax.tree.structure(model.params)
    by_name = {
        ".".join(str(key.key) for key in path): factor for path, factor in jax.tree_util.tree_leaves_with_path(factors)
    }
    assert by_name.pop("head.kernel") == by_name.pop("head.bias") == 1

    # The tables of pretrained weights name the parameters from the image on, and know nothing of groups.
    family, shape = backbones.BACKBONES[name]
    rows = [f"backbone.{row.path}" for row in family.weight_tables(shape)[0].rows]
    in_order = [by_name[row] for row in rows if row in by_name]
    assert len(in_order) == len(by_name) - (pooling == "attention")
    assert in_order == sorted(in_order)
    blocks = len(model.depth_groups) - 2
    assert set(in_order) <= {0.8**power for power in range(blocks + 2)}
    assert {0.8**power for power in range(1, blocks + 2)} <= set(in_order)


def test_a_parameter_in_no_depth_group_is_refused_by_its_name():
    params = {"backbone": {"stem": jnp.ones(2), "blocks": {0: jnp.ones(2), 10: jnp.ones(2)}}, "head": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"the parameter blocks\.10 is in 0 depth groups"):
        optimizer.depth_factors(0.5, (("stem",), ("blocks.1", "blocks.0"), ()), params)
    with pytest.raises(ValueError, match=r"the parameter stem is in 2 depth groups"):
        optimizer.depth_factors(0.5, (("stem",), ("blocks", "stem")), params)
