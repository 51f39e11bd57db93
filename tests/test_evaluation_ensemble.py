import numpy as np
import pytest
from scipy import optimize
from sklearn.metrics import average_precision_score, roc_auc_score

from cftjax.evaluation import ensemble, files
from cftjax.scores.predictions import Truth

N, CATEGORIES = 80, ("fox", "dog", "owl")
C = len(CATEGORIES)


def data(seed=0, m=3):
    """Labels, and members whose probabilities are ever worse."""
    rng = np.random.default_rng(seed)
    labels = rng.random((N, C)) < 0.4
    logits = [2 * labels - 1 + (1 + i) * rng.normal(size=(N, C)) for i in range(m)]
    return Truth(CATEGORIES, labels, rng.random((N, C)) < 0.9, "validation"), [1 / (1 + np.exp(-x)) for x in logits]


def members(probs, given=None):
    given = np.ones((len(probs), C), bool) if given is None else given
    return [
        files.of_array(str(i), np.where(g, p, np.nan), g) for i, (p, g) in enumerate(zip(probs, given, strict=True))
    ]


def test_the_mean_of_a_category_is_over_the_members_that_give_it():
    _, probs = data()
    given = np.array([[True, True, False], [True, False, False], [True, True, False]])
    weights = ensemble.equal(given)
    np.testing.assert_allclose(weights.sum(axis=0), [1, 1, 0])
    whole = ensemble.combined(members(probs, given), weights, of_ranks=False)
    found = whole.block(slice(0, C)).probs
    np.testing.assert_allclose(found[:, 0], np.mean([p[:, 0] for p in probs], axis=0))
    np.testing.assert_allclose(found[:, 1], (probs[0][:, 1] + probs[2][:, 1]) / 2)
    assert np.isnan(found[:, 2]).all()
    assert whole.given.tolist() == [True, True, False]


def test_ranks_do_not_depend_on_the_scale_of_a_member_and_share_ties():
    _, probs = data()
    weights = ensemble.equal(np.ones((3, C), bool))
    plain = ensemble.combined(members(probs), weights, of_ranks=True)
    squeezed = ensemble.combined(members([probs[0] ** 9, probs[1], 0.5 + probs[2] / 9]), weights, of_ranks=True)
    np.testing.assert_allclose(plain.block(slice(1, 3)).probs, squeezed.block(slice(1, 3)).probs)
    assert not plain.calibrated
    np.testing.assert_allclose(
        ensemble.ranks(np.array([[0.2], [0.9], [0.2], [0.4]])), [[0.25], [0.875], [0.25], [0.625]]
    )


def test_weights_are_those_of_the_highest_likelihood_on_the_simplex():
    truth, probs = data()
    for c in range(C):
        told = truth.known[:, c]
        y = truth.labels[told, c]
        each = np.stack([p[told, c] for p in probs])
        found = ensemble.most_likely(each, y)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1)

        def loss(w, each=each, y=y):
            return -np.mean(np.log(np.where(y, w @ each, 1 - w @ each)))

        best = optimize.minimize(
            loss, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}
        )
        assert loss(found) <= best.fun + ensemble.TOLERANCE
        assert loss(found) < loss(np.full(3, 1 / 3))


def test_a_member_that_is_certain_and_wrong_gets_no_weight_and_no_infinity():
    y = np.array([True, False, True, False])
    found = ensemble.most_likely(np.stack([1.0 - y, np.where(y, 0.8, 0.3)]), y)
    np.testing.assert_allclose(found, [0, 1], atol=1e-3)


@pytest.mark.parametrize(("metric", "oracle"), [("AP", average_precision_score), ("AUROC", roc_auc_score)])
def test_greedy_picks_as_caruana_does_step_by_step(metric, oracle):
    truth, probs = data(seed=1)
    found = ensemble.fit(members(probs), truth, "greedy", metric)
    for c in range(C):
        told, best, bag, path = truth.known[:, c], -1.0, [], []
        y = truth.labels[told, c]
        for _ in range(ensemble.MOST_PICKS):
            each = [oracle(y, np.mean([probs[i][told, c] for i in [*bag, m]], axis=0)) for m in range(3)]
            bag.append(int(np.argmax(np.round(each, 6))))
            path.append(max(each))
        length = int(np.argmax(np.round(path, 6))) + 1
        expected = np.bincount(bag[:length], minlength=3)
        assert found.picks[:, c].tolist() == expected.tolist()
        np.testing.assert_allclose(found.values[:, c], expected / length)
        best = max(oracle(y, p[told, c]) for p in probs)
        assert oracle(y, np.einsum("m,mk->k", expected, np.stack([p[told, c] for p in probs]))) >= best


@pytest.mark.parametrize("how", ["weighted", "greedy"])
def test_categories_that_cannot_be_fitted_have_equal_weights_and_are_named(how):
    truth, probs = data()
    truth.labels[:, 0] = False
    truth.labels[:, 1] = True
    found = ensemble.fit(members(probs), truth, how, "AP")
    np.testing.assert_allclose(found.values[:, :2], 1 / 3)
    assert found.values[0, 2] > 1 / 3
    assert found.unfitted == {"fox": "no known positive in validation", "dog": "no known negative in validation"}


@pytest.mark.parametrize("how", ["weighted", "greedy"])
def test_members_without_a_category_have_no_weight_in_it(how):
    truth, probs = data()
    given = np.array([[False, True, True], [True, True, True], [True, False, False]])
    found = ensemble.fit(members(probs, given), truth, how, "AP")
    assert (found.values[~given] == 0).all()
    np.testing.assert_allclose(found.values.sum(axis=0), 1)
    assert found.values[1, 0] > found.values[2, 0]  # the better of the two
