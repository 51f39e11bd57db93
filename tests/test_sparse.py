import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cftjax import types
from cftjax.data import sparse


def dense_of(values):
    values = np.asarray(values, float)
    return types.Labels(values == 1, ~np.isnan(values) & (values >= 0), values == -1)


def assert_same(one, other):
    assert type(one) is types.Labels
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.known, other.known)
    np.testing.assert_array_equal(one.uncertain, other.uncertain)


def sparse_of(values):
    values = np.asarray(values, float)
    rows, categories = np.nonzero(~np.isnan(values))
    order = np.random.default_rng(0).permutation(len(rows))
    rows, categories = rows[order], categories[order]
    return sparse.from_entries(rows, categories, values[rows, categories].astype(int), values.shape)


VALUES = np.random.default_rng(1).choice([1.0, 0.0, -1.0, np.nan], (23, 7), p=[0.1, 0.2, 0.1, 0.6])
VALUES[[0, 5, 22]] = np.nan
VALUES[:, 3] = np.nan


@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(3, 19, 2), slice(None, None, -1), [4, 4, 0, -1], np.array([], int), VALUES[:, 0] == 1],
    ids=["all", "slice", "reversed", "repeated", "none", "mask"],
)
def test_rows_are_those_of_the_dense_labels(rows):
    labels = sparse_of(VALUES)
    assert labels.shape == VALUES.shape
    assert_same(labels[rows], dense_of(VALUES)[rows])


@pytest.mark.parametrize("rows", [[], [5], [22, 0, 7, 7]])
def test_taken_rows_stay_sparse_and_are_those_of_the_dense_labels(rows):
    taken = sparse_of(VALUES).take(np.array(rows, int))
    assert isinstance(taken, sparse.SparseLabels)
    assert_same(taken[:], dense_of(VALUES)[rows])
    assert_same(taken.columns([6, 1]), dense_of(VALUES[rows][:, [6, 1]]))


@pytest.mark.parametrize("columns", [[2], [6, 0, 2], [3], [], [1, 1]])
def test_columns_are_those_of_the_dense_labels(columns):
    assert_same(sparse_of(VALUES).columns(columns), dense_of(VALUES[:, columns]))


def test_counts_are_those_of_the_dense_labels():
    counts = sparse_of(VALUES).counts()
    for count, value in zip(counts, (1, 0, -1), strict=True):
        np.testing.assert_array_equal(count, (value == VALUES).sum(0))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([1, 0, -1])), max_size=30))
@settings(max_examples=60, deadline=None)
def test_repeated_labels_that_agree_are_one_and_that_differ_are_uncertain(entries):
    told = {}
    for row, category, value in entries:
        told.setdefault((row, category), set()).add(value)
    values = np.full((4, 3), np.nan)
    for pair, said in told.items():
        values[pair] = said.pop() if len(said) == 1 else -1
    rows, categories, labels = np.array(entries, int).reshape(-1, 3).T
    built = sparse.from_entries(rows, categories, labels, (4, 3))
    assert len(built.values) == len(told)
    assert_same(built[:], dense_of(values))
    assert_same(built.columns([2, 0]), dense_of(values[:, [2, 0]]))


@pytest.mark.parametrize(("row", "category", "value"), [(4, 0, 1), (-1, 0, 1), (0, 3, 1), (0, 0, 2), (0, 0, -2)])
def test_entries_outside_of_the_shape_are_refused(row, category, value):
    with pytest.raises(ValueError, match="is not in 0"):
        sparse.from_entries(np.array([row]), np.array([category]), np.array([value]), (4, 3))


@pytest.mark.parametrize("rows", [[23], [-24], np.ones(5, bool)])
def test_rows_that_do_not_exist_are_refused(rows):
    with pytest.raises(IndexError):
        sparse_of(VALUES)[rows]


def test_categories_that_do_not_exist_are_refused():
    with pytest.raises(IndexError, match="category 7"):
        sparse_of(VALUES).columns([0, 7])


def test_small_sets_have_the_dense_arrays_and_large_ones_say_what_to_take_instead():
    assert_same(sparse_of(VALUES).dense(), dense_of(VALUES))
    large = sparse.from_entries(np.array([3]), np.array([4999]), np.array([1]), (1_700_000, 5000))
    with pytest.raises(ValueError, match="columns"):
        np.asarray(large.known)
    assert large[3:4].labels.sum() == 1
    assert large.columns([4999]).labels.sum() == 1


def test_sparse_labels_survive_pickling_and_stand_where_labels_do():
    labels = pickle.loads(pickle.dumps(sparse_of(VALUES)))
    assert_same(labels[:], dense_of(VALUES))
    records = types.Records(lambda row: np.zeros((1, 1, 3), np.uint8), labels, [str(row) for row in range(23)])
    assert records.labels is labels
    assert "23 images, 7 categories" in repr(labels)


def test_dense_labels_and_their_sparse_form_are_the_same_and_so_are_the_entries_kept():
    given = dense_of(VALUES)
    # What is not known has no label, whatever the array says there.
    noisy = types.Labels(given.labels | ~given.known, given.known, given.uncertain)
    stored = sparse.of(noisy)
    assert_same(stored[:], given)
    assert sparse.of(stored) is stored
    positive = stored.keep(stored.values == 1)
    assert_same(positive[:], types.Labels(given.labels, given.labels, np.zeros_like(given.labels)))
    np.testing.assert_array_equal(stored.rows(), np.nonzero(given.known | given.uncertain)[0])


def test_dense_labels_give_rows_and_columns_by_the_same_names():
    given = dense_of(VALUES)
    assert_same(given.take(np.array([5, 0])), dense_of(VALUES[[5, 0]]))
    assert_same(given.columns([6, 1]), dense_of(VALUES[:, [6, 1]]))


MATRICES = ("labels", "known", "uncertain", "unknown")
PLACES = [
    slice(4, 9),
    3,
    np.array([5, 1, 1]),
    VALUES[:, 0] == 1,
    (slice(None), slice(2, 5)),
    (slice(None, None, 2), [4, 0]),
    (slice(None), 3),
    (np.array([7, 2]), 1),
    (VALUES[:, 0] == 1, 0),
    (6, 5),
]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("place", PLACES, ids=[f"place{i}" for i in range(len(PLACES))])
def test_each_matrix_of_sparse_labels_is_indexed_as_an_array_is(name, place):
    stored, expected = getattr(sparse_of(VALUES), name), getattr(dense_of(VALUES), name)
    np.testing.assert_array_equal(stored[place], expected[place], strict=True)
    assert (stored.shape, stored.dtype, len(stored)) == (expected.shape, bool, 23)


def test_arithmetic_on_small_sparse_labels_is_that_of_arrays():
    stored, expected = sparse_of(VALUES), dense_of(VALUES)
    np.testing.assert_array_equal(stored.labels & ~stored.known, expected.labels & ~expected.known)
    np.testing.assert_array_equal(np.sum(stored.known, axis=0), expected.known.sum(0))
    with pytest.raises(IndexError, match=r"use marks\[:, some\]\[rows\]"):
        stored.known[np.array([1, 2]), np.array([0, 3])]


def test_rows_of_several_splits_follow_one_another_and_a_category_tells_its_labels():
    stored = sparse.joined([sparse_of(VALUES[:9]), sparse_of(VALUES[9:9]), sparse_of(VALUES[9:])])
    assert_same(stored[:], dense_of(VALUES))
    for category in range(VALUES.shape[1]):
        rows, values = stored.of_category(category)
        given = np.flatnonzero(~np.isnan(VALUES[:, category]))
        np.testing.assert_array_equal(rows, given)
        np.testing.assert_array_equal(values, VALUES[given, category])


@pytest.mark.parametrize(
    "damage",
    [
        {"starts": np.array([0, 2, 1])},
        {"starts": np.array([1, 2, 2])},
        {"categories": np.array([0, 9], np.int32)},
        {"values": np.array([1, 2], np.int8)},
        {"values": np.array([1, 0])},
        {"starts": np.zeros(0, np.int64)},
    ],
    ids=["falling", "begins late", "no category", "no label", "kind", "empty"],
)
def test_arrays_that_are_no_sparse_labels_are_refused(damage):
    sound = {
        "starts": np.array([0, 1, 2]),
        "categories": np.array([1, 0], np.int32),
        "values": np.array([1, 0], np.int8),
    }
    assert sparse.from_arrays(**sound, num_categories=2).shape == (2, 2)
    with pytest.raises(ValueError, match="no labels"):
        sparse.from_arrays(**sound | damage, num_categories=2)
