import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from cftjax.data import digits
from cftjax.data.reading import scenes

SMALL = digits.DigitsData(num_train=600, num_validation=20, num_test=20)


@pytest.fixture(scope="module")
def dataset():
    return SMALL.load()


def pixels(records):
    return np.stack([records.image(row) for row in range(len(records))])


def test_the_same_settings_give_the_same_scenes_and_another_seed_gives_others(dataset):
    again, other = SMALL.load(), dataclasses.replace(SMALL, seed=1).load()
    for split, records in dataset.splits.items():
        np.testing.assert_array_equal(pixels(records), pixels(again.splits[split]))
        np.testing.assert_array_equal(records.labels.labels, again.splits[split].labels.labels)
        assert not np.array_equal(pixels(records), pixels(other.splits[split]))
    assert again.fingerprint == dataset.fingerprint != other.fingerprint


def test_a_longer_split_begins_with_the_scenes_of_a_shorter_one(dataset):
    longer = dataclasses.replace(SMALL, num_validation=300).load()
    np.testing.assert_array_equal(pixels(dataset.splits["validation"]), pixels(longer.splits["validation"])[:20])
    assert longer.fingerprint != dataset.fingerprint


def test_records_are_rgb_bytes_with_names(dataset):
    records = dataset.splits["train"]
    assert records.image(12).shape == (32, 32, 3)
    assert records.image(12).dtype == np.uint8
    assert records.names[12] == "digits/train/00012"
    assert dataset.categories == tuple("0123456789")


def test_splits_draw_from_disjoint_source_digits_of_every_category():
    sources = digits.source_digits()
    ids = np.concatenate([part.ids for part in sources])
    assert len(np.unique(ids)) == len(ids) == 1797
    for part in sources:
        assert np.bincount(part.category, minlength=10).min() > 20


def test_source_digits_are_the_handwriting_they_claim_to_be():
    train, _, _ = digits.source_digits()
    # Averaged back to 8x8 the enlarged digit is nearly the original.
    coarse = train.ink.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    original = load_digits()["images"][train.ids] / 16
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(coarse, original, strict=True)]
    assert min(correlation) > 0.95


@pytest.mark.parametrize("category", [0, 7])
def test_a_category_is_labelled_exactly_where_its_digit_is_drawn(category):
    train, _, _ = digits.source_digits()
    blank = train._replace(ink=np.zeros_like(train.ink))
    only = train._replace(ink=np.where((train.category == category)[:, None, None], train.ink, np.float32(0)))
    without, labels, _ = scenes.draw_split(blank, 100, 40, (0, 0))
    with_digit, _, _ = scenes.draw_split(only, 100, 40, (0, 0))
    np.testing.assert_array_equal((without != with_digit).any(axis=(1, 2, 3)), labels[:, category])


def test_only_training_labels_are_hidden_and_hidden_labels_are_not_in_the_records(dataset):
    for split in ("validation", "test"):
        assert dataset.splits[split].labels.known.all()
    labels = dataset.splits["train"].labels
    assert not (labels.labels & ~labels.known).any()
    assert not labels.uncertain.any()
    complete = dataclasses.replace(SMALL, known_positives=1.0, known_negatives=1.0).load().splits["train"].labels
    assert complete.known.all()
    np.testing.assert_array_equal(labels.labels, complete.labels & labels.known)


def test_each_category_is_known_at_very_different_rates_from_site_to_site():
    sites = np.repeat(np.arange(4), 5000)
    known = digits.draw_known(sites, 0.28, [0])
    rates = np.stack([known[sites == site].mean(axis=0) for site in range(4)])
    assert rates.min(axis=0).max() < 0.04
    assert rates.max(axis=0).min() > 0.65
    # No site is the best or the worst for every category.
    assert len(set(rates.argmax(axis=0))) > 1
    assert len(set(rates.argmin(axis=0))) > 1


@pytest.mark.parametrize("proportion", [0.05, 0.28, 0.6, 1.0])
def test_the_known_proportion_is_the_one_asked_for(proportion):
    known = digits.draw_known(np.repeat(np.arange(4), 5000), proportion, [3])
    np.testing.assert_allclose(known.mean(), proportion, atol=0.01)


def test_positives_are_noted_first_and_unevenly_over_sites_and_categories():
    complete = dataclasses.replace(SMALL, known_positives=1.0, known_negatives=1.0).load().splits["train"].labels.labels
    known = SMALL.load().splits["train"].labels.known
    assert 0.4 < known[complete].mean() < 0.6
    assert known[~complete].mean() < 0.05
    rates = [known[complete[:, c], c].mean() for c in range(10)]
    assert max(rates) - min(rates) > 0.05


def test_a_site_can_be_told_from_the_colours_of_its_scenes():
    train, _, _ = digits.source_digits()
    images, _, sites = scenes.draw_split(train, 400, 40, (0, 0))
    look = np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)
    classifier = LinearDiscriminantAnalysis().fit(look[:300], sites[:300])
    assert classifier.score(look[300:], sites[300:]) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene_size": 8}, "use 24 or more"),
        ({"num_test": 0}, "at least 1 scene"),
        ({"known_positives": 0.0}, "in \\(0, 1\\]"),
        ({"seed": -1}, "use 0 or more"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_larger_scenes_show_the_same_things():
    train, _, _ = digits.source_digits()
    small, labels, _ = scenes.draw_split(train, 20, 40, (0, 0))
    large, labels_of_large, _ = scenes.draw_split(train, 20, 60, (0, 0))
    assert large.shape == (20, 60, 60, 3)
    np.testing.assert_array_equal(labels_of_large, labels)
    assert small.shape == (20, 40, 40, 3)
