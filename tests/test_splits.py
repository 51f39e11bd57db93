import dataclasses
import pickle

import numpy as np
import pytest

from cftjax import types
from cftjax.config import LabelsConfig, SplitConfig
from cftjax.data import hiding, judging, sparse, splits

CATEGORIES = ("rare", "common", "absent", "usual")
FREQUENCIES = np.array([0.02, 0.5, 0.0, 0.15])


class Images:
    """A picture that shows its row and its split."""

    def __init__(self, split):
        self.split = split

    def __call__(self, row):
        return np.full((1, 2, 3), (row % 256, row // 256, self.split), np.uint8)


def records(n, split=0, groups=None, seed=0):
    present = np.random.default_rng(seed).random((n, len(CATEGORIES))) < FREQUENCIES
    return types.Records(
        image=Images(split),
        labels=types.Labels(present, np.ones_like(present), np.zeros_like(present)),
        names=[f"{split}/{i:05d}" for i in range(n)],
        groups=groups,
    )


def dataset(n=1000, **extra):
    return types.Dataset(CATEGORIES, {"train": records(n), "test": records(30, split=2), **extra}, "abc")


HIDING = LabelsConfig(hide="uniform", known_proportion=0.3)
NOTHING_HIDDEN = LabelsConfig(hide="none")


def shown(split):
    return [tuple(split.image(i)[0, 0]) for i in range(len(split))]


def test_every_record_goes_to_one_side_with_its_own_image_name_and_labels():
    given = dataset()
    prepared = splits.prepare(given, NOTHING_HIDDEN, SplitConfig())
    train, validation = prepared.dataset.splits["train"], prepared.dataset.splits["validation"]
    rows = prepared.validation_rows
    assert list(prepared.dataset.splits) == ["train", "validation", "test"]
    assert sorted([*train.names, *validation.names]) == list(given.splits["train"].names)
    assert list(validation.names) == [f"0/{row:05d}" for row in rows]
    for side in (train, validation):
        original = [int(name[2:]) for name in side.names]
        assert original == sorted(original)
        assert shown(side) == [(row % 256, row // 256, 0) for row in original]
        np.testing.assert_array_equal(side.labels.labels, given.splits["train"].labels.labels[original])


def test_masks_are_drawn_over_the_whole_train_split_and_validation_keeps_its_labels():
    given = dataset()
    prepared = splits.prepare(given, HIDING, SplitConfig())
    rows = prepared.validation_rows
    hidden = hiding.hide(given.splits["train"].labels, HIDING)
    rest = np.delete(np.arange(1000), rows)
    np.testing.assert_array_equal(prepared.dataset.splits["train"].labels.known, hidden.known[rest])
    assert prepared.dataset.splits["validation"].labels.known.all()
    assert prepared.dataset.splits["test"].labels.known.all()


def test_hiding_does_not_change_which_rows_are_carved():
    chosen = [splits.prepare(dataset(), hiding, SplitConfig()).validation_rows for hiding in (HIDING, NOTHING_HIDDEN)]
    np.testing.assert_array_equal(*chosen)


def test_a_validation_split_of_the_data_set_is_kept_and_nothing_is_carved():
    given = dataset(validation=records(20, split=1))
    prepared = splits.prepare(given, HIDING, SplitConfig())
    assert prepared.validation_rows is None
    assert prepared.dataset.splits["validation"] is given.splits["validation"]
    assert len(prepared.dataset.splits["train"]) == 1000
    assert prepared.dataset.splits["train"].labels.known.mean() == pytest.approx(0.3, abs=0.05)


def test_a_share_of_zero_leaves_no_validation():
    prepared = splits.prepare(dataset(), NOTHING_HIDDEN, SplitConfig(validation_share=0.0))
    assert list(prepared.dataset.splits) == ["train", "test"]
    assert prepared.validation_rows is None


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_carving_takes_the_share_of_every_category_and_of_all_images(share, seed):
    positive = records(5000, seed=seed).labels.labels
    rows = splits.stratify(positive, share, seed)
    assert len(rows) == pytest.approx(share * 5000, abs=1)
    np.testing.assert_allclose(positive[rows].sum(axis=0), share * positive.sum(axis=0), rtol=0.01, atol=1)


def test_a_category_of_six_gives_validation_its_rounded_share():
    positive = np.zeros((600, 1), bool)
    positive[100:106] = True
    for seed in range(5):
        assert positive[splits.stratify(positive, 0.1, seed)].sum() == 1
        assert positive[splits.stratify(positive, 0.5, seed)].sum() == 3


def test_the_seed_decides_and_images_of_one_kind_are_drawn_evenly():
    positive = np.ones((2000, 1), bool)
    drawn = splits.stratify(positive, 0.1, 0)
    np.testing.assert_array_equal(drawn, splits.stratify(positive, 0.1, 0))
    assert len(np.intersect1d(drawn, splits.stratify(positive, 0.1, 1))) < 60
    # Five standard deviations around the middle: neither early nor late rows are favoured.
    assert abs(drawn.mean() / 2000 - 0.5) < 5 * np.sqrt(1 / 12 / 200)


@pytest.mark.parametrize("kind", [int, str])
def test_groups_stay_together_and_the_shares_still_hold(kind):
    groups = np.random.default_rng(1).integers(0, 900, 3000).astype(kind)
    given = dataclasses.replace(dataset(), splits={"train": records(3000, groups=groups)})
    prepared = splits.prepare(given, HIDING, SplitConfig(validation_share=0.2, seed=4))
    train, validation = prepared.dataset.splits["train"], prepared.dataset.splits["validation"]
    assert train.groups is not None
    assert validation.groups is not None
    assert not set(train.groups) & set(validation.groups)
    np.testing.assert_array_equal(validation.groups, groups[prepared.validation_rows])
    present = given.splits["train"].labels.labels.sum(axis=0)
    assert len(validation) == pytest.approx(600, abs=6)
    np.testing.assert_allclose(validation.labels.labels.sum(axis=0), 0.2 * present, rtol=0.05, atol=2)


def test_carving_ignores_positives_that_are_not_known():
    given = dataset()
    unknown = types.Labels(*(np.ones((1000, 4), bool), np.zeros((1000, 4), bool), np.zeros((1000, 4), bool)))
    blank = types.Labels(*(np.zeros((1000, 4), bool) for _ in range(3)))
    rows = [
        splits.prepare(
            dataclasses.replace(given, splits={"train": dataclasses.replace(given.splits["train"], labels=found)}),
            NOTHING_HIDDEN,
            SplitConfig(),
        ).validation_rows
        for found in (unknown, blank)
    ]
    np.testing.assert_array_equal(*rows)
    assert len(rows[0]) == 100


def test_selections_nest_and_can_be_sent_to_another_process():
    some = splits.select(splits.select(records(50, groups=np.arange(50) // 2), np.arange(10, 50)), np.array([5, 0]))
    assert list(some.names) == ["0/00015", "0/00010"]
    assert len(some) == 2
    sent = pickle.loads(pickle.dumps(some))
    assert shown(sent) == [(15, 0, 0), (10, 0, 0)]
    np.testing.assert_array_equal(sent.groups, [7, 5])


def test_fingerprint_tells_data_hiding_and_carving_apart_and_ignores_what_has_no_effect():
    def fingerprint(given=None, hiding=HIDING, **split):
        given = dataset(50) if given is None else given
        return splits.prepare(given, hiding, SplitConfig(**split)).dataset.fingerprint

    different = [
        fingerprint(),
        fingerprint(dataclasses.replace(dataset(50), fingerprint="abd")),
        fingerprint(hiding=NOTHING_HIDDEN),
        fingerprint(hiding=dataclasses.replace(HIDING, known_proportion=0.5)),
        fingerprint(hiding=dataclasses.replace(HIDING, hide_seed=1)),
        fingerprint(seed=1),
        fingerprint(validation_share=0.2),
        fingerprint(validation_share=0.0),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint() == fingerprint(hiding=dataclasses.replace(HIDING, known_per_category=7, unknown="ignore"))
    with_validation = dataset(50, validation=records(9))
    assert fingerprint(with_validation) == fingerprint(with_validation, seed=1)


@pytest.mark.parametrize(
    ("given", "split", "message"),
    [
        (dataset(0), SplitConfig(), "the train split is empty"),
        (dataset(9, validation=records(0)), SplitConfig(), "the validation split is empty"),
        (dataset(3), SplitConfig(), "leaves the validation split empty: train has 3 images in 3 groups"),
        (dataset(9), SplitConfig(validation_share=1.0), r"validation_share is 1\.0"),
        (types.Dataset(CATEGORIES, {"test": records(3)}, ""), SplitConfig(), "no train split, only test"),
    ],
)
def test_empty_splits_are_refused(given, split, message):
    with pytest.raises(ValueError, match=message):
        splits.prepare(given, NOTHING_HIDDEN, split)


def test_one_group_cannot_be_carved():
    alone = dataclasses.replace(dataset(), splits={"train": records(20, groups=np.zeros(20, int))})
    with pytest.raises(ValueError, match="20 images in 1 groups"):
        splits.prepare(alone, NOTHING_HIDDEN, SplitConfig(validation_share=0.5))


def test_where_a_category_is_balanced_the_side_short_of_images_gets_the_next_group():
    # One positive per group: the first two groups go to either side, and the third must even out the images.
    groups = np.repeat(np.arange(3), [1, 10, 10])
    positive = np.zeros((21, 1), bool)
    positive[[0, 1, 11]] = True
    assert {len(splits.stratify(positive, 0.5, seed, groups)) for seed in range(12)} == {10, 11}


def too_large_to_be_dense(n=300_000, c=1000):
    """A label or two of most images, uncertain ones among them."""
    assert n * c > sparse.DENSE_LIMIT
    rng = np.random.default_rng(0)
    m = n + n // 2
    categories = (c * rng.random(m) ** 3).astype(int)
    stored = sparse.from_entries(
        rng.integers(0, n, m), categories, rng.choice([1, 0, -1], m, p=[0.4, 0.5, 0.1]), (n, c)
    )
    train = types.Records(Images(0), stored, [str(row) for row in range(n)])
    return types.Dataset(tuple(map(str, range(c))), {"train": train}, "large")


@pytest.mark.parametrize(
    "hide", ["none", "uniform", "single_positive", "fixed_per_category", "uneven", "positives_first"]
)
def test_a_set_too_large_to_be_dense_is_hidden_and_carved_sparse(hide):
    given = too_large_to_be_dense()
    prepared = splits.prepare(given, LabelsConfig(hide=hide), SplitConfig())
    train, validation = (prepared.dataset.splits[name] for name in ("train", "validation"))
    for split in (train, validation):
        assert isinstance(split.labels, sparse.SparseLabels)
        assert split.labels.shape == (len(split), 1000)
    complete = given.splits["train"].labels.counts()
    assert len(validation) == pytest.approx(30_000, abs=100)
    np.testing.assert_allclose(validation.labels.counts().positive, 0.1 * complete.positive, atol=2)
    kept = train.labels.counts().positive + validation.labels.counts().positive
    assert (kept == complete.positive).all() == (hide == "none")


def without_test(n=400, groups=None):
    return types.Dataset(CATEGORIES, {"train": records(n, groups=groups)}, "abc")


def test_a_test_split_is_drawn_first_by_group_and_stratified():
    patients = np.repeat(np.arange(100), 4)
    given = without_test(groups=patients)
    prepared = splits.prepare(given, NOTHING_HIDDEN, SplitConfig(test_share=0.2))
    parts = prepared.dataset.splits
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(name for part in parts.values() for name in part.names) == list(given.splits["train"].names)
    groups = [set(part.groups.tolist()) for part in parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 100
    positive = parts["test"].labels.labels.sum(0) / np.maximum(given.splits["train"].labels.labels.sum(0), 1)
    np.testing.assert_allclose(positive[[1, 3]], 0.2, atol=0.03)
    assert list(parts["test"].names) == [given.splits["train"].names[row] for row in prepared.test_rows]


def test_every_image_is_tested_in_one_of_the_folds():
    given = without_test()
    tested = []
    for fold in range(5):
        parts = splits.prepare(given, HIDING, SplitConfig(folds=5, fold=fold)).dataset.splits
        assert not set(parts["test"].names) & (set(parts["train"].names) | set(parts["validation"].names))
        # What tests is complete, whatever is hidden from training.
        assert parts["test"].labels.known.all()
        assert len(parts["test"]) == 80
        tested += parts["test"].names
    assert sorted(tested) == list(given.splits["train"].names)


def test_each_fold_is_a_data_set_of_its_own_and_other_splits_keep_theirs():
    prints = [
        splits.prepare(without_test(), NOTHING_HIDDEN, config).dataset.fingerprint
        for config in (SplitConfig(), SplitConfig(test_share=0.2), *(SplitConfig(folds=3, fold=i) for i in range(3)))
    ]
    assert len(set(prints)) == 5


def test_a_test_split_of_the_data_set_is_not_drawn_over():
    with pytest.raises(ValueError, match="has a test split of its own: leave out"):
        splits.prepare(dataset(), NOTHING_HIDDEN, SplitConfig(test_share=0.2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_share": 1.0}, "not a share"),
        ({"folds": 1}, "use 2 or more"),
        ({"folds": 5, "test_share": 0.1}, "give one of them"),
        ({"fold": 2}, r"fold 2 is not one of split\.folds None"),
        ({"folds": 2, "fold": 2}, r"fold 2 is not one of split\.folds 2"),
    ],
)
def test_settings_that_draw_no_test_split_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)


def test_categories_that_no_split_can_judge_are_named_with_the_way_out():
    prepared = splits.prepare(without_test(), NOTHING_HIDDEN, SplitConfig(test_share=0.2))
    notes = list(judging.notes(prepared.dataset))
    assert any(note.startswith("validation has no known positive of ") and "absent" in note for note in notes)
    assert any(note.startswith("test has no known positive of ") and "--split.folds" in note for note in notes)
    assert not any("negative" in note for note in notes)
