import dataclasses

import numpy as np
import pytest
from PIL import Image

from cftjax import types
from cftjax.config import LabelsConfig, SplitConfig
from cftjax.data import sparse
from cftjax.data.looking import summary
from cftjax.data.reading import files

NAN = np.nan
# Rows: images; columns: fox, hen, egg.
TRAIN = np.array([[1, 1, 0], [1, 0, NAN], [1, NAN, -1], [0, 1, 1]])
TEST = np.array([[0, 1, NAN], [1, 1, 0]])


def labels_of(values):
    return types.Labels(values == 1, ~np.isnan(values) & (values >= 0), values == -1)


def array_records(values, split, groups=None):
    """Images of two shapes that are not files."""
    names = [f"{split}/{row}" for row in range(len(values))]

    def image(row):
        return np.full((4, 6 + row % 2, 3), row, np.uint8)

    return types.Records(image, labels_of(np.asarray(values, float)), names, groups)


def dataset(**splits):
    return types.Dataset(("fox", "hen", "egg"), splits, "x")


def summarise(given, hide="none", share=0.0, most=80, size_sample=100, contents=False):
    return summary.summarise(
        given,
        LabelsConfig(hide=hide, known_per_category=2),
        SplitConfig(validation_share=share),
        most=most,
        size_sample=size_sample,
        contents=contents,
        threads=2,
    )


def counts(found):
    return [column.tolist() for column in found]


@pytest.mark.parametrize("stored", ["dense", "sparse"])
def test_labels_of_each_kind_and_pairs_are_counted_by_hand(stored):
    train = array_records(TRAIN, "train")
    if stored == "sparse":
        train = dataclasses.replace(train, labels=sparse.of(train.labels))
    found = summarise(dataset(train=train, test=array_records(TEST, "test")))
    part = found.splits["train"]
    assert counts(part.given) == counts(part.seen) == [[3, 2, 1], [1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert counts(found.splits["test"].given) == [[1, 2, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert part.pairs.categories.tolist() == [0, 1, 2]
    # Of three images of a fox the label of hen is known in two and positive in one, that of egg known in one.
    assert part.pairs.both.tolist() == [[3, 1, 0], [1, 2, 1], [0, 1, 1]]
    assert part.pairs.judged.tolist() == [[3, 2, 1], [2, 2, 2], [1, 1, 1]]
    np.testing.assert_allclose(part.pairs.shares[0], [1, 0.5, 0])
    assert np.isnan(found.splits["test"].pairs.shares).sum() == 3


def test_a_summary_shows_what_training_uses_validation_carved_and_labels_hidden():
    rng = np.random.default_rng(0)
    given = dataset(train=array_records((rng.random((200, 3)) < 0.4).astype(float), "train", np.arange(200) // 2))
    found = summarise(given, hide="fixed_per_category", share=0.2)
    train, validation = found.splits["train"], found.splits["validation"]
    assert found.carved
    assert train.images + validation.images == 200
    assert train.groups + validation.groups == 100
    assert found.shared_groups == 0
    assert sum(train.seen.positive) <= 3
    np.testing.assert_array_equal(train.given.positive + train.given.negative, train.images)
    np.testing.assert_array_equal(train.seen.unknown, train.images - train.seen.positive - train.seen.negative)
    assert counts(validation.given) == counts(validation.seen)


def test_only_the_most_frequent_categories_are_paired():
    found = summarise(dataset(train=array_records(TRAIN, "train"), test=array_records(TEST, "test")), most=2)
    assert found.splits["train"].pairs.categories.tolist() == [0, 1]
    assert found.splits["test"].pairs.both.tolist() == [[1, 1], [1, 2]]
    assert found.to_dict()["splits"]["test"]["co_occurrence"]["categories"] == ["fox", "hen"]


def test_a_set_too_large_to_be_dense_is_summarised_sparse():
    n, c = 300_000, 1000
    assert n * c > sparse.DENSE_LIMIT
    rng = np.random.default_rng(0)
    stored = sparse.from_entries(rng.integers(0, n, n), rng.integers(0, c, n), rng.choice([1, 0, -1], n), (n, c))

    def image(row):
        return np.zeros((1, 1, 3), np.uint8)

    train = types.Records(image, stored, [str(row) for row in range(n)])
    given = types.Dataset(tuple(map(str, range(c))), {"train": train}, "x")
    found = summarise(given, hide="uniform", share=0.1, most=10, size_sample=5)
    positive = sum(split.given.positive.sum() for split in found.splits.values())
    assert positive == (stored.values == 1).sum()
    assert found.splits["train"].pairs.both.shape == (10, 10)


def test_images_that_are_not_files_are_opened_for_their_size():
    sizes = summarise(dataset(train=array_records(TRAIN, "train"))).splits["train"].sizes
    assert sizes == summary.Sizes(4, 0, summary.Range(6, 6.5, 7), summary.Range(4, 4, 4), {"RGB": 4})


@pytest.fixture
def folder(tmp_path):
    """Two copies of one image, a grey one, a broken one; the fifth is missing."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.full((8, 2), 9, np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "3.png").write_text("no image")
    return tmp_path


def file_records(root, names):
    values = np.zeros((len(names), 3))
    return types.Records(files.ImageFiles(root, names), labels_of(values), names)


def test_files_are_measured_by_their_headers_and_missing_ones_are_named(folder):
    given = dataset(train=file_records(folder, [f"{row}.png" for row in range(5)]))
    part = summarise(given).splits["train"]
    assert part.missing == ("4.png",)
    expected = summary.Sizes(4, 1, summary.Range(2, 6, 6), summary.Range(4, 4, 8), {"RGB": 2, "L": 1})
    assert part.sizes == expected
    assert summarise(given, size_sample=2).splits["train"].sizes.sampled == 2


def test_a_name_in_two_splits_and_the_same_bytes_under_two_names_are_told(folder):
    given = dataset(
        train=file_records(folder, ["0.png", "1.png", "4.png"]), test=file_records(folder, ["1.png", "2.png"])
    )
    found = summarise(given, contents=True)
    assert found.repeated == {"1.png": ["train", "test"]}
    assert found.same_content == [[("train", "0.png"), ("test", "2.png")]]
    assert summarise(given).same_content is None


def test_the_same_pixels_are_found_where_images_are_not_files():
    train = array_records(TRAIN, "train")
    again = dataclasses.replace(train, names=[f"again/{row}" for row in range(4)])
    found = summarise(dataset(train=train, test=again), contents=True)
    assert found.same_content == [[("train", f"train/{row}"), ("test", f"again/{row}")] for row in range(4)]


def test_groups_in_two_splits_are_counted():
    given = dataset(
        train=array_records(TRAIN, "train", np.array([1, 1, 2, 3])), test=array_records(TEST, "test", np.array([3, 4]))
    )
    found = summarise(given)
    assert found.shared_groups == 1
    assert (found.splits["train"].groups, found.splits["test"].groups) == (3, 2)
