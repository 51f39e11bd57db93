import unicodedata
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from cftjax.data.reading import spelling
from cftjax.data.reading.problems import DataError
from cftjax.data.table import TableData

FILES = ["img/a b.png", "img/Zoë.png", "img/sub/C3.jpg", "top.png"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spelling")
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / unicodedata.normalize("NFC", name))
    return folder


WAYS = {
    "img\\a b.png": ("img/a b.png", "with / for \\"),
    "C:\\data\\img\\a b.png": ("img/a b.png", "without the drive and with / for \\ and without the folders before it"),
    "img/a%20b.png": ("img/a b.png", "with characters for %-codes"),
    "img/a b.png ": ("img/a b.png", "without blanks at the ends"),
    "IMG/A B.PNG": ("img/a b.png", "in other case and with the suffix in other case"),
    "img/a b.PNG": ("img/a b.png", "with the suffix in other case"),
    "img/a b.jpeg": ("img/a b.png", "as .png"),
    "img/a b": ("img/a b.png", "as .png"),
    unicodedata.normalize("NFD", "img/Zoë.png"): ("img/Zoë.png", "with accents composed otherwise"),
    "/home/me/set/img/sub/C3.jpg": ("img/sub/C3.jpg", "without the folders before it"),
    "set/top.png": ("top.png", "without the folders before it"),
    "a b.png": ("img/a b.png", "in another folder"),
}


@pytest.mark.parametrize("path", WAYS)
def test_the_nearest_file_is_found_with_how_it_differs(root, path):
    near = spelling.Folders(root).nearest(path)
    assert near is not None
    name, how = WAYS[path]
    assert (unicodedata.normalize("NFC", near.name), near.how) == (name, how)


@pytest.mark.parametrize("path", ["img/none.png", "", "..", "img", "x" * 300, "img/a b.png/more", "a\\..\\b"])
def test_what_resembles_nothing_has_no_nearest(root, path):
    assert spelling.Folders(root).nearest(path) is None


def refused(root, *paths, **options):
    (root / "labels.csv").write_text("\n".join(["path,cat", *(f"{path},1" for path in paths)]) + "\n")
    with pytest.raises(DataError) as caught:
        TableData(str(root / "labels.csv"), **options).load()
    return str(caught.value)


def test_the_pattern_of_all_paths_is_one_problem(root):
    message = refused(root, "img\\a b.png", "img\\sub\\C3.jpg", "img\\Zoë.png")
    assert message == (
        f"{root / 'labels.csv'}: row 2, column path: no such file: {root}/img\\a b.png; img/a b.png is there, with / "
        "for \\ (and 2 more in the same way); write the paths as the files are named."
    )


def test_every_way_and_every_file_that_is_not_there_is_told(root):
    message = refused(root, "img/A B.png", "nothing.png", "img/sub/C3.png", "/else/where/top.png")
    assert "row 2, column path: no such file" in message
    assert "img/a b.png is there, in other case;" in message
    assert "row 3, column path: no such file" in message
    assert "nothing.png; copy it there, or leave out what is missing: --data.on-bad-image skip" in message
    assert "img/sub/C3.jpg is there, as .jpg;" in message
    assert f"'/else/where/top.png' is outside of {root}; top.png is there, without the folders before it;" in message


IDS = [
    (["0000", "0001", "0002"], ["0", "1", "2"], "3 of them are there as numbers: it has 0, 1, 2 for 0000, 0001, 0002"),
    (["1", "2"], ["1.0", "2.0", "3.0"], "2 of them are there as numbers: it has 1.0, 2.0 for 1, 2"),
    (["a/1.png"], ["a\\1.png"], "1 of them are there but for \\ and /"),
    (["P1", "P2"], ["p1", "p2"], "but for upper and lower case"),
    (["a.png", "b.png"], ["a", "b"], "but for the suffix"),
    (["x/a.png", "x/b.png"], ["a.png", "b.png"], "but for the folders before them"),
    (["Zoë"], [unicodedata.normalize("NFD", "Zoë")], "but for how accents are composed"),
    (["a b"], [urllib.parse.quote("a b")], "but for %-codes"),
    (["x/a.png", "x/b.png"], ["A.jpg", "B.jpg"], "but for folders and suffix"),
]


@pytest.mark.parametrize(("missing", "there", "words"), IDS)
def test_rows_of_another_table_are_found_by_what_their_names_have_in_common(missing, there, words):
    assert words in (spelling.alike(missing, there) or "")


def test_names_that_have_nothing_in_common_are_not_alike():
    assert spelling.alike(["p1", "p2", "p3"], ["q1", "P1", "inf", "1e400"]) is None
