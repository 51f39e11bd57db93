import hashlib

import numpy as np
import pytest

from cftjax import types
from cftjax.config import LabelsConfig
from cftjax.data import hiding, labels, sparse

NAN = np.nan
# Positive, negative, uncertain and unknown in every mixture; row 2 has no positive, row 3 nothing at all.
VALUES = np.array([[1, 0, -1, 1], [NAN, 1, 0, -1], [0, 0, -1, NAN], [NAN, NAN, NAN, NAN]], np.float32)
SEED = 526


def partial(n=200, c=7):
    """Labels by arithmetic: every tenth row without positives, about a fifth unknown."""
    i, j = np.indices((n, c))
    remainder = (i * i + 3 * j * i + j) % 5
    positive = (remainder == 0) & (i % 10 != 0)
    known = remainder != 4
    return types.Labels(positive & known, known, np.zeros_like(known))


def complete(n, c, seed=0):
    positive = np.random.default_rng(seed).random((n, c)) < 0.3
    return types.Labels(positive, np.ones_like(positive), np.zeros_like(positive))


def digest(found):
    masks = [found.labels & found.known, ~found.labels & found.known]
    return hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()[:16]


HIDERS = {
    "uniform": lambda given: hiding.hide_uniform(given, 0.5),
    "single positive": hiding.hide_all_but_single_positive,
    "fixed per category": lambda given: hiding.hide_fixed_per_category(given, 20),
    "uneven": lambda given: hiding.hide_uneven(given, 0.5),
    "positives first": lambda given: hiding.hide_positives_first(given, 0.6, 0.3),
}
every_hider = pytest.mark.parametrize("hider", HIDERS.values(), ids=HIDERS.keys())


def test_values_become_labels_and_back():
    found = labels.from_values(VALUES)
    np.testing.assert_array_equal(found.known, [[1, 1, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found.labels, [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found.uncertain, [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(labels.to_values(found), VALUES)


def test_another_number_may_mean_uncertain():
    np.testing.assert_array_equal(labels.from_values(np.array([[2, 0, 1]]), uncertain_value=2).uncertain, [[1, 0, 0]])


def test_other_values_are_refused_by_row_column_and_value():
    values = VALUES.copy()
    values[1, 2], values[3, 0] = 0.5, np.inf
    with pytest.raises(ValueError, match=r"row 1, column 2 is 0\.5; row 3, column 0 is inf\. "):
        labels.from_values(values)
    with pytest.raises(ValueError, match="row 0, column 4 is 7; and 2 more"):
        labels.from_values(np.full((1, 7), 7))


def test_uncertain_is_refused_where_no_value_means_it():
    with pytest.raises(ValueError, match="other than 1, 0 and NaN: row 0, column 2 is -1"):
        labels.from_values(VALUES, uncertain_value=None)


def test_hidden_positives_do_not_shine_through_values():
    assert np.isnan(labels.to_values(types.Labels(*np.array([[[True]], [[False]], [[False]]])))).all()


@pytest.mark.parametrize(
    ("unknown", "uncertain", "targets", "where"),
    [
        ("ignore", "ignore", [[1, 0, 0, 1], [0, 1, 0, 0]], [[1, 1, 0, 1], [0, 1, 1, 0]]),
        ("assume_negative", "ignore", [[1, 0, 0, 1], [0, 1, 0, 0]], [[1, 1, 0, 1], [1, 1, 1, 0]]),
        ("ignore", "negative", [[1, 0, 0, 1], [0, 1, 0, 0]], [[1, 1, 1, 1], [0, 1, 1, 1]]),
        ("assume_negative", "positive", [[1, 0, 1, 1], [0, 1, 0, 1]], [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_unknown_and_uncertain_become_what_the_settings_say(unknown, uncertain, targets, where):
    found = labels.resolve(labels.from_values(VALUES)[:2], unknown=unknown, uncertain=uncertain, seed=0)
    np.testing.assert_array_equal(found[0], targets)
    np.testing.assert_array_equal(found[1], where)


@pytest.mark.parametrize(("uncertain", "low", "high"), [("smooth_negative", 0, 0.3), ("smooth_positive", 0.55, 0.85)])
def test_smoothing_is_uniform_over_the_published_range(uncertain, low, high):
    every = np.ones((2000, 5), bool)
    given = types.Labels(~every, ~every, every)
    targets, where = labels.resolve(given, unknown="ignore", uncertain=uncertain, seed=1)
    assert where.all()
    # Kolmogorov-Smirnov distance; 1.95 / sqrt(10000) is passed once in a thousand seeds.
    ranked = (np.sort(targets.ravel()) - low) / (high - low)
    assert np.abs(ranked - np.linspace(0, 1, ranked.size)).max() < 0.0195
    # Neither rows nor columns nor neighbouring seeds share their draws.
    other = labels.resolve(given, unknown="ignore", uncertain=uncertain, seed=2)[0]
    for a, b in [(targets[1:], targets[:-1]), (targets[:, 1:], targets[:, :-1]), (targets, other)]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


def test_smoothing_depends_on_the_row_of_the_split_and_not_on_the_batch():
    given = labels.from_values(np.where(np.random.default_rng(0).random((50, 4)) < 0.5, -1.0, 1.0))
    settings = {"unknown": "ignore", "uncertain": "smooth_positive", "seed": 3}
    together = labels.resolve(given, **settings)[0]
    rows = np.array([40, 3, 17])
    np.testing.assert_array_equal(labels.resolve(given[rows], rows=rows, **settings)[0], together[rows])
    assert (labels.resolve(given[rows], **settings)[0] != together[rows]).any()


@pytest.mark.parametrize("unknown", ["assume_negative", "ignore"])
@pytest.mark.parametrize("uncertain", ["negative", "positive", "ignore", "smooth_negative", "smooth_positive"])
def test_sums_of_targets_are_those_of_all_targets_added_up(unknown, uncertain):
    given = labels.from_values(np.tile(VALUES, (30, 1)))
    opened = np.arange(120) % 7 != 0
    config = LabelsConfig(unknown=unknown, uncertain=uncertain)
    targets, where = labels.resolve(given, unknown=unknown, uncertain=uncertain, seed=4)
    for rows in (None, opened):
        counted = where if rows is None else where & rows[:, None]
        for stored in (given, sparse.of(given)):
            total, count = labels.target_sums(stored, config, 4, rows)
            np.testing.assert_allclose(total, np.where(counted, targets, 0).sum(0, dtype=np.float64), rtol=1e-12)
            np.testing.assert_array_equal(count, counted.sum(0))


def test_uniform_hiding_draws_positives_then_negatives_of_each_record():
    given = labels.from_values(VALUES)
    rng = np.random.Generator(np.random.PCG64(SEED))
    # Row 0: categories 0 and 3, then 1. Row 1: category 1, then 2. Row 2: categories 0 and 1.
    order = [(0, 0), (0, 3), (0, 1), (1, 1), (1, 2), (2, 0), (2, 1)]
    kept = [cell for cell in order if rng.random() < 0.5]
    assert 0 < len(kept) < len(order)
    assert list(zip(*np.nonzero(hiding.hide_uniform(given, 0.5).known), strict=True)) == sorted(kept)


# Masks that mlcpl 0.1.7 made of the records of `partial()`: drop_labels_uniform and MLCPLDataset's other two.
@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        (lambda given: hiding.hide_uniform(given, 0.1), "e6892b5fc765635b"),
        (lambda given: hiding.hide_uniform(given, 0.5), "5016cdc2685cf0f0"),
        (lambda given: hiding.hide_uniform(given, 0.9), "6a20c4e4c8174031"),
        (hiding.hide_all_but_single_positive, "8aede64fab462ded"),
        (lambda given: hiding.hide_fixed_per_category(given, 20), "991efb1bbbe13cc9"),
        (lambda given: hiding.hide_fixed_per_category(given, 1000), "710373f96387065f"),
    ],
)
def test_masks_equal_the_published_ones(hidden, expected):
    assert digest(hidden(partial())) == expected


@every_hider
def test_hiding_changes_no_label_that_stays_and_leaves_no_trace_of_the_others(hider):
    given = labels.from_values(np.random.default_rng(0).choice([1.0, 0, -1, NAN], size=(300, 6)))
    found = hider(given)
    assert 0 < found.known.sum() < given.known.sum()
    assert not (found.known & ~given.known).any()
    assert not (found.uncertain & ~given.uncertain).any()
    assert found.uncertain.sum() < given.uncertain.sum()
    np.testing.assert_array_equal(found.labels, given.labels & found.known)
    np.testing.assert_array_equal(labels.to_values(hider(given)), labels.to_values(found))


def test_uncertain_labels_do_not_disturb_the_published_order():
    certain = partial()
    hedged = types.Labels(certain.labels, certain.known, ~certain.known)
    found = hiding.hide_uniform(hedged, 0.5)
    np.testing.assert_array_equal(found.known, hiding.hide_uniform(certain, 0.5).known)
    assert abs(found.uncertain.sum() / hedged.uncertain.sum() - 0.5) < 0.1


def test_single_positive_keeps_one_of_each_image_that_has_any():
    given = partial()
    found = hiding.hide_all_but_single_positive(given)
    np.testing.assert_array_equal(found.known.sum(axis=1), np.minimum(given.labels.sum(axis=1), 1))
    np.testing.assert_array_equal(found.labels, found.known)


def test_fixed_per_category_keeps_as_many_positives_as_negatives():
    given = complete(60, 3)
    given.labels[:, 0] = np.arange(60) < 4
    found = hiding.hide_fixed_per_category(given, 21)
    np.testing.assert_array_equal(found.labels.sum(axis=0), [4, 10, 10])
    np.testing.assert_array_equal((found.known & ~found.labels).sum(axis=0), [4, 10, 10])


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_uneven_hiding_keeps_the_share_asked_for_on_average(p):
    found = hiding.hide_uneven(complete(4000, 25), p)
    # Five standard deviations of a binomial share; uneven probabilities only lower the variance.
    assert abs(found.known.mean() - p) < 5 * np.sqrt(p * (1 - p) / found.known.size)


def test_uneven_hiding_differs_between_categories_and_between_images():
    known = hiding.hide_uneven(complete(4000, 25), 0.3).known
    even = hiding.hide_uneven(complete(4000, 25), 0.3, category_spread=0.0, image_spread=0.0).known
    for axis in (0, 1):
        assert known.mean(axis=axis).std() > 1.5 * even.mean(axis=axis).std()
    positive = complete(4000, 25).labels
    assert abs(known[positive].mean() - known[~positive].mean()) < 0.02


def test_positives_first_keeps_both_shares_on_average_and_differs_between_categories_and_images():
    given = complete(4000, 25)
    known = hiding.hide_positives_first(given, 0.5, 0.03).known
    positive = given.labels
    for kind, share in ((positive, 0.5), (~positive, 0.03)):
        # Five standard deviations of a binomial share; uneven probabilities only lower the variance.
        assert abs(known[kind].mean() - share) < 5 * np.sqrt(share * (1 - share) / kind.sum())
    even = hiding.hide_positives_first(given, 0.5, 0.03, category_spread=0.0, image_spread=0.0).known
    for axis in (0, 1):
        assert known.mean(axis=axis).std() > 1.3 * even.mean(axis=axis).std()
    noted = [np.ma.masked_array(known, ~kind).mean(axis=0) for kind in (positive, ~positive)]
    assert abs(np.corrcoef(*noted)[0, 1]) < 0.6  # a category has an effect of its own on each kind


@pytest.mark.parametrize(
    "hider", [hiding.hide_uniform, hiding.hide_uneven, lambda g, p: hiding.hide_positives_first(g, p, p)]
)
def test_proportions_of_all_and_nothing_are_exact(hider):
    given = labels.from_values(VALUES)
    np.testing.assert_array_equal(labels.to_values(hider(given, 1.0)), VALUES)
    assert np.isnan(labels.to_values(hider(given, 0.0))).all()


@every_hider
def test_labels_of_which_none_is_known_stay_so(hider):
    nothing = np.zeros((3, 2), bool)
    assert not hider(types.Labels(nothing, nothing, nothing)).known.any()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LabelsConfig(hide="none"), lambda given: given),
        (LabelsConfig(hide="uniform", known_proportion=0.3), lambda given: hiding.hide_uniform(given, 0.3)),
        (LabelsConfig(hide="single_positive", hide_seed=1), lambda g: hiding.hide_all_but_single_positive(g, 1)),
        (
            LabelsConfig(hide="fixed_per_category", known_per_category=8, hide_seed=2),
            lambda given: hiding.hide_fixed_per_category(given, 8, 2),
        ),
        (LabelsConfig(hide="uneven", known_proportion=0.2), lambda given: hiding.hide_uneven(given, 0.2)),
        (
            LabelsConfig(hide="positives_first", known_proportion=0.6, known_negatives=0.1),
            lambda given: hiding.hide_positives_first(given, 0.6, 0.1),
        ),
    ],
)
def test_settings_name_the_way_of_hiding(config, expected):
    given = complete(100, 4)
    np.testing.assert_array_equal(labels.to_values(hiding.hide(given, config)), labels.to_values(expected(given)))


def test_only_settings_that_have_an_effect_describe_the_hiding():
    assert hiding.hiding(LabelsConfig(known_proportion=0.7)) == {"hide": "none"}
    described = hiding.hiding(LabelsConfig(hide="uniform", known_proportion=0.7, known_per_category=3))
    assert described == {"hide": "uniform", "known_proportion": 0.7, "hide_seed": 526}
    described = hiding.hiding(LabelsConfig(hide="positives_first", known_proportion=0.7))
    assert described == {"hide": "positives_first", "known_proportion": 0.7, "known_negatives": 0.03, "hide_seed": 526}


def test_impossible_settings_are_refused_by_name():
    given = complete(4, 2)
    for hider in (hiding.hide_uniform, hiding.hide_uneven):
        with pytest.raises(ValueError, match=r"known_proportion is 1\.5"):
            hider(given, 1.5)
    with pytest.raises(ValueError, match=r"known-negatives 3\.0 is not a share"):
        LabelsConfig(known_negatives=3.0)
    with pytest.raises(ValueError, match="known_per_category is 1"):
        hiding.hide_fixed_per_category(given, 1)


@pytest.mark.parametrize("way", ["uniform", "single_positive", "fixed_per_category", "uneven", "positives_first"])
def test_sparse_labels_are_hidden_as_the_dense_ones_and_stay_sparse(way):
    rng = np.random.default_rng(5)
    known = rng.random((300, 9)) < 0.6
    uncertain = ~known & (rng.random((300, 9)) < 0.3)
    given = types.Labels(known & (rng.random((300, 9)) < 0.3), known, uncertain)
    config = LabelsConfig(hide=way, known_proportion=0.4, known_per_category=30)
    dense, stored = hiding.hide(given, config), hiding.hide(sparse.of(given), config)
    assert type(dense) is types.Labels
    assert isinstance(stored, sparse.SparseLabels)
    for part in ("labels", "known", "uncertain"):
        np.testing.assert_array_equal(getattr(stored, part), getattr(dense, part))
