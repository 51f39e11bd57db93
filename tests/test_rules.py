import numpy as np
import pytest

from cftjax import types
from cftjax.cft import rules
from cftjax.cft.choose import choose
from cftjax.config import ChooseConfig
from cftjax.data import sparse
from cftjax.types import Embeddings, Heads

N = 200


def logits(seed, quality):
    """[k n c] candidates of some quality, one row per candidate, and the labels they rank."""
    rng = np.random.default_rng(seed)
    labels = rng.random((N, len(quality[0]))) < 0.3
    found = np.asarray(quality)[:, None, :] * labels[None] + rng.normal(size=(len(quality), *labels.shape))
    return found.astype(np.float32), labels


def pick(rule, candidates, labels, groups=None):
    judged = rules.judge(rule, "AUROC", candidates, labels, np.ones_like(labels), groups)
    return rules.pick(rule, judged)


@pytest.mark.parametrize("rule", ["best", "one_se", "cross_validated", "shrunken"])
def test_every_rule_takes_what_is_clearly_better_and_leaves_what_is_clearly_worse(rule):
    candidates, labels = logits(0, [[1, 1, 1], [4, 4, 4], [0, 0, 0]])
    assert pick(rule, candidates, labels).tolist() == [1, 1, 1]
    assert pick(rule, candidates[[0, 2]], labels).tolist() == [0, 0, 0]
    groups = np.arange(N) // 4
    assert pick(rule, candidates, labels, groups).tolist() == [1, 1, 1]


def test_careful_rules_leave_the_first_where_noise_speaks_for_another():
    quality = [[1.0] * 40] * 2
    candidates, labels = logits(1, quality)
    changed = {rule: int(pick(rule, candidates, labels).sum()) for rule in ("best", "one_se", "cross_validated")}
    assert changed["best"] > 12
    assert changed["one_se"] < changed["best"]
    assert changed["cross_validated"] <= changed["best"]


def test_a_shrunken_gain_lies_between_itself_and_the_mean_and_certain_ones_hardly_move():
    gains, errors = np.array([0.1, 0.0, -0.1, 0.3]), np.array([0.05, 0.05, 0.05, 1e-4])
    shrunken = rules.shrink(gains, errors)
    assert abs(shrunken[3] - 0.3) < 1e-3
    assert (shrunken[:3] >= np.minimum(gains, shrunken.mean())[:3] - 1e-9).all()
    assert shrunken[2] > gains[2]
    np.testing.assert_array_equal(rules.shrink(np.array([0.1, np.nan]), np.array([0.1, 0.1])), [0.1, np.nan])


def test_blocks_of_categories_are_picked_like_all_at_once():
    candidates, labels = logits(2, [[1, 1, 1, 1], [1.2, 0.8, 1.5, 1]])
    known = np.ones_like(labels)
    whole = rules.judge("shrunken", "AUROC", candidates, labels, known)
    blocks = [
        rules.judge("shrunken", "AUROC", candidates[:, :, some], labels[:, some], known[:, some])
        for some in (slice(0, 1), slice(1, 4))
    ]
    np.testing.assert_array_equal(rules.pick("shrunken", whole), rules.pick("shrunken", rules.joined(blocks)))


def test_folds_spread_the_positives_or_keep_groups_whole():
    rng = np.random.default_rng(0)
    labels, known = rng.random((N, 3)) < 0.1, rng.random((N, 3)) < 0.8
    given = sparse.of(types.Labels(labels, known, np.zeros_like(known)))
    fold = rules.folds(given, None)
    for c in range(3):
        counts = np.bincount(fold[(given.categories == c) & (given.values == 1)], minlength=rules.FOLDS)
        assert counts.max() - counts.min() <= 1
    groups = rng.integers(0, 30, N)
    fold = rules.folds(given, groups)
    assert all(len(set(fold[groups[given.rows()] == g])) == 1 for g in set(groups))


def test_a_head_between_two_bad_ones_is_found_and_named():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 2)).astype(np.float32)
    labels = (z.sum(1, keepdims=True) + 0.5 * rng.normal(size=(400, 1))) > 0.5
    split = Embeddings(z, labels, np.ones_like(labels))
    # Ten times the scale: without bringing both to one scale the half-way head would be the second.
    old, new = (
        Heads(np.float32([[1, 0]]), np.zeros(1, np.float32)),
        Heads(np.float32([[0, 10]]), np.zeros(1, np.float32)),
    )
    candidates = {"backbone": old, "polish": new}
    plain = choose(candidates, split, split, config=ChooseConfig(rule="best"))
    mixed = choose(candidates, split, split, config=ChooseConfig(rule="best", mixes=(0.25, 0.5)))
    assert mixed.names == ["polish x0.5"]
    assert mixed.scores["polish x0.5"] > plain.scores[plain.names[0]]
    np.testing.assert_allclose(mixed.heads.kernel[0, 0], mixed.heads.kernel[0, 1], rtol=0.1)
    probability = 1 / (1 + np.exp(-np.asarray(mixed.heads(z))))
    assert probability.mean() == pytest.approx(labels.mean(), abs=0.01)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"choose\.mixes 1\.0"):
        ChooseConfig(mixes=(1.0,))


def test_a_score_made_by_looking_is_believed_only_as_far_as_it_is_fair():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 2)).astype(np.float32)
    labels = (z[:, :1] + 0.5 * rng.normal(size=(400, 1))) > 0.5
    split = Embeddings(z, labels, np.ones_like(labels))
    zero = np.zeros(1, np.float32)
    candidates = {"backbone": Heads(np.float32([[1, 1]]), zero), "ga": Heads(np.float32([[1, 0]]), zero)}
    for rule, fair, name in (
        ("shrunken", None, "ga"),
        ("shrunken", {"ga": np.zeros(1, np.float32)}, "backbone"),
        ("shrunken", {"ga": np.full(1, np.nan, np.float32)}, "ga"),
        ("best", {"ga": np.zeros(1, np.float32)}, "ga"),
    ):
        assert choose(candidates, split, split, config=ChooseConfig(rule=rule), fair_scores=fair).names == [name]


def test_a_head_that_a_later_stage_left_as_it_was_bears_the_name_of_the_stage_that_made_it():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 2)).astype(np.float32)
    labels = (z[:, :1] + 0.5 * rng.normal(size=(400, 1))) > 0.5
    split = Embeddings(z, labels, np.ones_like(labels))
    old, new = (Heads(np.float32([[1, x]]), np.zeros(1, np.float32)) for x in (1, 0))
    candidates = {"backbone": old, "polish": new, "ga": Heads(new.kernel.copy(), np.ones(1, np.float32))}
    # The search is believed to be worth more, but found nothing.
    chosen = choose(candidates, split, split, fair_scores={"ga": np.ones(1, np.float32)})
    assert chosen.names == ["polish"]
    assert chosen.heads.bias == new.bias
