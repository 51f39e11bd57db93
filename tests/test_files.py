import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from cftjax import types
from cftjax.data import sparse, splits
from cftjax.data.reading import files
from cftjax.data.reading.problems import DataError, Problems


@pytest.fixture
def root(tmp_path):
    for name in [f"many/{number}.png" for number in range(12)] + ["few/0.png", "few/1.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 3), 9, np.uint8)).save(tmp_path / name)
    (tmp_path / "many" / "folder.png").mkdir()
    return tmp_path


def test_missing_files_are_found_in_full_and_in_sparse_folders(root):
    names = [f"many/{number}.png" for number in range(15)] + ["few/1.png", "few/2.png", "none/0.png", "many/folder.png"]
    order = np.random.default_rng(0).permutation(len(names))
    names = [names[index] for index in order]
    absent = [row for row, name in enumerate(names) if not os.path.isfile(root / name)]
    assert files.missing(names, range(len(names)), root) == absent
    few = [row for row in range(len(names)) if row % 4 == 0]
    assert files.missing(names, few, root) == [row for row in few if row in absent]


def test_names_are_relative_to_the_root_whatever_the_spelling(root, monkeypatch):
    problems = Problems(root)
    paths = ["few/0.png", "./few//1.png", "many/../many/3.png", str(root / "many/4.png")]
    expected = ["few/0.png", "few/1.png", "many/3.png", "many/4.png"]
    assert files.relative_names(paths, root, problems, place=str) == expected
    monkeypatch.chdir(root.parent)
    assert files.relative_names(paths, type(root)(root.name), problems, place=str) == expected
    problems.raise_if_any()
    opened = files.ImageFiles(root, expected)(2)
    np.testing.assert_array_equal(opened, np.full((2, 3, 3), 9, np.uint8))


def test_a_folder_whose_name_begins_like_the_roots_is_outside(root):
    problems = Problems(root)
    files.relative_names([f"{root}-other/0.png"], root, problems, place=str)
    with pytest.raises(DataError, match="outside"):
        problems.raise_if_any()


def dataset(labels, names=("a", "b", "c"), groups=None):
    return {"train": types.Records(lambda row: np.zeros((1, 1, 3), np.uint8), labels, list(names), groups)}


def test_the_fingerprint_changes_with_every_label_name_and_group():
    rng = np.random.default_rng(0)
    known = rng.random((3, 4)) < 0.7
    positive = known & (rng.random((3, 4)) < 0.5)
    labels = types.Labels(positive, known, np.zeros_like(known))
    prints = {files.fingerprint("wxyz", dataset(labels)), files.fingerprint("wxyv", dataset(labels))}
    prints.add(files.fingerprint("wxyz", dataset(labels, names=("a", "b", "d"))))
    prints.add(files.fingerprint("wxyz", dataset(labels, groups=np.array([1, 2, 2]))))
    prints.add(files.fingerprint("wxyz", {"test": dataset(labels)["train"]}))
    for row in range(3):
        for category in range(4):
            for field in ("labels", "known", "uncertain"):
                changed = {name: getattr(labels, name).copy() for name in ("labels", "known", "uncertain")}
                changed[field][row, category] ^= True
                prints.add(files.fingerprint("wxyz", dataset(types.Labels(**changed))))
    assert len(prints) == 5 + 3 * 3 * 4
    assert files.fingerprint("wxyz", dataset(labels)) in prints


def test_sparse_labels_have_a_fingerprint_that_changes_with_an_entry():
    rows, categories, values = np.array([[0, 0, 2], [1, 3, 3], [1, 0, -1]])
    prints = set()
    for value in (1, 0):
        labels = sparse.from_entries(rows, categories, np.append(values[:2], value), (3, 4))
        prints.add(files.fingerprint("wxyz", dataset(labels)))
    assert len(prints) == 2


def test_unlabelled_categories_are_found_in_dense_and_in_sparse_labels():
    labels = sparse.from_entries(np.array([0, 2]), np.array([1, 3]), np.array([-1, 0]), (3, 4))
    for same in (labels, labels[:]):
        with pytest.warns(UserWarning, match=r"no training image has a label for w, y\."):
            files.warn_of_unlabelled("here", "wxyz", same)


def test_the_files_of_selected_rows_are_found_and_those_of_other_sources_are_none(root):
    labels = types.Labels(*(np.zeros((4, 1), bool) for _ in range(3)))
    names = [f"{i}.png" for i in range(4)]
    records = types.Records(files.ImageFiles(root, names), labels, names)
    some = splits.select(splits.select(records, np.array([3, 2, 0])), np.array([2, 0]))
    assert files.of(records) == records.image
    found = files.of(some)
    assert found is not None
    assert (found.root, found.names) == (root, ["0.png", "3.png"])
    assert files.of(dataclasses.replace(records, image=lambda row: np.zeros((1, 1, 3), np.uint8))) is None
