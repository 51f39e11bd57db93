import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cftjax import config, losses, unknowns
from cftjax.config import LabelsConfig, TrainingConfig
from cftjax.unknowns import SeenBatch

N, C = 6, 5
rng = np.random.default_rng(0)
LOGITS = rng.normal(scale=3, size=(N, C)).astype(np.float32)
STATE = rng.choice([0, 1, 2], size=(N, C), p=[0.3, 0.5, 0.2])  # known, unknown, uncertain that does not count
KNOWN, UNKNOWN = STATE == 0, STATE == 1
# What labels hold where they are not known must not matter.
LABELS = np.where(KNOWN, rng.random((N, C)) < 0.5, 7.0).astype(np.float32)
ROWS = np.array([4, 0, 9, 2, 7, 5], np.int32)


def cost(logits, targets):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -targets * np.log(p) - (1 - targets) * np.log(1 - p)


def by_hand(decide):
    """Targets, where and weights of every label, from what is decided about one unknown label."""
    targets, where, weights = np.zeros((N, C)), np.zeros((N, C), bool), np.ones((N, C))
    for i in range(N):
        for j in range(C):
            if KNOWN[i, j]:
                targets[i, j], where[i, j] = LABELS[i, j], True
            elif UNKNOWN[i, j]:
                decision = decide(i, j)
                if decision is not None:
                    targets[i, j], weights[i, j], where[i, j] = *decision, True
    return targets, where, weights


def compare(found, expected):
    targets, where, weights = expected
    np.testing.assert_array_equal(found.where, where)
    np.testing.assert_allclose(np.where(where, found.targets, 0), targets, rtol=1e-6)
    np.testing.assert_allclose(np.where(where, np.broadcast_to(found.weights, (N, C)), 1), weights, rtol=1e-6)


def seen(epoch=0, memory=None, rows=ROWS, logits=LOGITS, loss=None):
    def cost_of(targets):
        return losses.sigmoid_bce(logits, targets.targets, where=targets.where)

    return SeenBatch(logits, LABELS, KNOWN, UNKNOWN, rows, jnp.int32(epoch), memory or {}, loss or cost_of)


def test_weak_negatives_weigh_what_is_asked_or_one_positive_together():
    compare(unknowns.weak_negative(seen(), unknown_weight=None)[0], by_hand(lambda i, j: (0, 1 / (C - 1))))
    compare(unknowns.weak_negative(seen(), unknown_weight=0.3)[0], by_hand(lambda i, j: (0, 0.3)))


def test_smoothing_moves_every_target_towards_one_half():
    targets, where, weights = by_hand(lambda i, j: (0, 1))
    smoothed = np.where(where, np.where(targets == 1, 1 - 0.1, 0.1), 0)
    compare(unknowns.smooth_negative(seen(), unknown_smoothing=0.2)[0], (smoothed, where, weights))


def test_selection_leaves_out_the_likeliest_of_an_image_and_common_categories():
    prior = np.array([0.01, 0.3, 0.05, 0.0, 0.9], np.float32)

    def decide(i, j):
        likeliest = sorted(np.flatnonzero(UNKNOWN[i]), key=lambda k: -LOGITS[i, k])[:2]
        return None if j in likeliest or prior[j] > 0.06 else (0, 1)

    memory = {"probability": 7 * prior, "images": np.float32(7)}
    options = {"likelihood_top": 2, "prior_threshold": 0.06, "unknown_warmup": 1}
    compare(unknowns.selective(seen(epoch=1, memory=memory), **options)[0], by_hand(decide))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_large_losses_are_the_first_of_the_unknown_ones(share):
    loss = cost(LOGITS, 0).astype(np.float32)
    order = sorted(zip(*np.nonzero(UNKNOWN), strict=True), key=lambda place: -loss[place])
    expected = np.zeros((N, C), bool)
    for place in order[: math.ceil(share * (N * C))]:
        expected[place] = True
    np.testing.assert_array_equal(unknowns.large_losses(loss, UNKNOWN, share), expected)


def test_a_curriculum_takes_what_the_model_is_sure_of():
    def decide(i, j):
        return (LOGITS[i, j] > 1.5, 1) if abs(LOGITS[i, j]) > 1.5 else None

    compare(unknowns.curriculum(seen(epoch=1), curriculum_score=1.5, unknown_warmup=1)[0], by_hand(decide))


def resolve(settings, epoch, memory=None, rows=ROWS):
    if memory is None:
        memory = settings.mode.new_memory(10, C)
    return settings.mode.resolve(seen(epoch, memory, rows), **settings.mode_options)


def test_large_losses_grow_with_the_epochs_after_warm_up():
    for unknown, share in [("reject_large_loss", 0.05), ("correct_large_loss", 0.05)]:
        settings = LabelsConfig(unknown=unknown, large_loss_share=share, unknown_warmup=2)
        negative = by_hand(lambda i, j: (0, 1))
        for epoch in range(2):
            compare(resolve(settings, epoch)[0], negative)
        for epoch, number in ((2, 2), (3, 3), (4, 5)):
            large = unknowns.large_losses(cost(LOGITS, 0).astype(np.float32), UNKNOWN, number / N / C)
            assert np.count_nonzero(large) == number
            targets, where, weights = (part.copy() for part in negative)
            (weights if unknown == "reject_large_loss" else targets)[large] = unknown != "reject_large_loss"
            compare(resolve(settings, epoch)[0], (targets, where, weights))


def test_permanent_corrections_are_remembered_by_image():
    settings = LabelsConfig(unknown="correct_large_loss_permanently", large_loss_share=2 / N / C)
    rows = np.where(np.arange(N) == 3, -1, ROWS)
    _, memory = resolve(settings, 0, rows=rows)
    assert not np.any(memory["corrected"])
    first = np.asarray(unknowns.large_losses(cost(LOGITS, 0).astype(np.float32), UNKNOWN, 2 / N / C))
    found, memory = resolve(settings, 1, memory, rows)
    np.testing.assert_array_equal(np.asarray(found.targets == 1) & UNKNOWN, first)
    marks = np.zeros((10, C), bool)
    marks[rows[rows >= 0]] = first[rows >= 0]
    np.testing.assert_array_equal(memory["corrected"], marks)
    # Corrected ones stay positive, and others are corrected besides.
    found, memory = resolve(settings, 2, memory, rows)
    corrected = np.asarray(found.targets == 1) & UNKNOWN
    kept = marks[np.maximum(rows, 0)]
    assert np.all(corrected[kept & UNKNOWN])
    assert np.count_nonzero(corrected) == np.count_nonzero(kept & UNKNOWN) + 2
    with pytest.raises(ValueError, match=r"1,000,000 x 5,000 labels, which is too many: use correct_large_loss"):
        settings.mode.new_memory(1_000_000, 5_000)


def test_the_prior_is_the_mean_probability_in_the_last_epoch_of_warm_up():
    settings = LabelsConfig(unknown="selective", unknown_warmup=2, likelihood_top=0, prior_threshold=0.5)
    rows = np.where(np.arange(N) == 3, -1, ROWS)
    memory = settings.mode.new_memory(10, C)
    for epoch in (0, 1, 1, 2):
        found, memory = resolve(settings, epoch, memory, rows)
        if epoch < 2:
            np.testing.assert_array_equal(found.where, KNOWN)
    prior = (1 / (1 + np.exp(-LOGITS[rows >= 0]))).mean(0)
    np.testing.assert_allclose(memory["probability"] / memory["images"], prior, rtol=1e-5)
    assert memory["images"] == 2 * np.count_nonzero(rows >= 0)
    assert 0 < np.count_nonzero(prior > 0.5) < C
    np.testing.assert_array_equal(found.where, KNOWN | (UNKNOWN & ~(prior > 0.5)))


@pytest.mark.parametrize("unknown", unknowns.MODES)
def test_labels_that_do_not_count_have_exactly_no_gradient_and_others_some(unknown):
    settings = LabelsConfig(unknown=unknown, likelihood_top=1, prior_threshold=1.0)
    memory = settings.mode.new_memory(10, C)
    bad = np.where(KNOWN | UNKNOWN, LOGITS, np.nan).astype(np.float32)

    def loss(logits):
        looked_at = jax.lax.stop_gradient(logits)
        given, _ = settings.mode.resolve(seen(3, memory, logits=looked_at), **settings.mode_options)
        each = losses.sigmoid_bce(logits, given.targets, where=given.where) * given.weights
        return losses.mean_known(each, given.where), given

    gradient, given = jax.jit(jax.grad(loss, has_aux=True))(bad)
    counts = np.asarray(given.where) & (np.broadcast_to(given.weights, (N, C)) > 0)
    np.testing.assert_array_equal(np.asarray(gradient) != 0, counts)
    assert np.all(counts[KNOWN])
    assert not np.any(counts[~(KNOWN | UNKNOWN)])


@pytest.mark.parametrize("unknown", unknowns.MODES)
def test_every_mode_has_a_row_that_is_whole(unknown):
    mode = LabelsConfig(unknown=unknown).mode
    fields = {field.name for field in dataclasses.fields(LabelsConfig)}
    assert set(mode.options) <= fields
    assert mode.title
    assert mode.fate
    titles = [other.title for other in unknowns.MODES.values()]
    assert titles.count(mode.title) == 1
    # In the first epoch unknown labels are what the row says, for the head's bias and weights are made from it.
    settings = LabelsConfig(unknown=unknown)
    first, memory = resolve(settings, 0)
    np.testing.assert_array_equal(first.where, KNOWN if mode.begins == "ignore" else KNOWN | UNKNOWN)
    # What it remembers keeps names, shapes and kinds: it is saved with the state.
    before = mode.new_memory(10, C)
    assert {k: (np.shape(x), x.dtype) for k, x in memory.items()} == {
        k: (np.shape(x), x.dtype) for k, x in before.items()
    }
    # Every option it reads enters the key of a training, and no other mode's.
    recorded = set(config.deciding(settings, TrainingConfig())[0])
    every = {name for other in unknowns.MODES.values() for name in other.options}
    assert recorded & every == set(mode.options)


def test_a_stage_records_only_the_options_that_its_modes_read():
    base, training = LabelsConfig(), TrainingConfig()
    recorded = config.deciding(base, training)
    other = LabelsConfig(unknown_weight=0.2, curriculum_score=1.0, unknown_warmup=3)
    assert config.deciding(other, TrainingConfig(checkpoint_seconds=5.0, frozen_learning_rate=2.0)) == recorded
    assert not {"mixup", "accumulate", "freeze_backbone"} & set(recorded[1])
    for changed in ({"mixup": 0.2}, {"accumulate": 2}, {"layer_decay": 0.7}, {"epochs": 3}):
        assert config.deciding(base, TrainingConfig(**changed)) != recorded
    assert config.deciding(LabelsConfig(known_negatives=0.2), training) == recorded
    first = [config.deciding(LabelsConfig(hide="positives_first", known_negatives=p), training) for p in (0.1, 0.2)]
    assert first[0] != first[1]
    warm = [config.deciding(LabelsConfig(unknown="curriculum", unknown_warmup=n), training) for n in (1, 2)]
    assert warm[0] != warm[1]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LabelsConfig, {"unknown": "selective", "unknown_warmup": 0}, "unknown-warmup 0 is too short"),
        (LabelsConfig, {"unknown_weight": 1.5}, "unknown-weight 1.5"),
        (LabelsConfig, {"unknown_smoothing": 1.0}, "unknown-smoothing 1.0"),
        (LabelsConfig, {"likelihood_top": -1}, "likelihood-top -1"),
        (LabelsConfig, {"prior_threshold": 2.0}, "prior-threshold 2.0"),
        (LabelsConfig, {"large_loss_share": -0.1}, "large-loss-share -0.1"),
        (LabelsConfig, {"curriculum_score": -1.0}, "curriculum-score -1.0"),
        (TrainingConfig, {"frozen_learning_rate": 0.0}, "frozen-learning-rate 0.0"),
        (TrainingConfig, {"layer_decay": 0.0}, "layer-decay 0.0"),
        (TrainingConfig, {"positive_weight_power": 2.0}, "positive-weight-power 2.0"),
        (TrainingConfig, {"mixup": -1.0}, "mixup -1.0"),
        (TrainingConfig, {"accumulate": 0}, "accumulate 0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_options_that_exclude_each_other_are_refused():
    permanent = LabelsConfig(unknown="correct_large_loss_permanently")
    with pytest.raises(ValueError, match=r"use training\.mixup 0"):
        config.check_together(permanent, TrainingConfig(mixup=0.2))
    with pytest.raises(ValueError, match="unknown-warmup 4 leaves none of 4 epochs to curriculum"):
        config.check_together(LabelsConfig(unknown="curriculum", unknown_warmup=4), TrainingConfig(epochs=4))
