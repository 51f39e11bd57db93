"""What is looked at before a run, on small tables of images."""

import re

import numpy as np
import pytest
import toy
from PIL import Image

from cftjax import sweep, train, types
from cftjax.data import __main__ as data_command
from cftjax.data import leaks, preflight
from cftjax.data.reading import files

CONFIG = "csv"


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((4, 4, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def records(root, names, groups=None):
    labels = types.Labels(*(np.zeros((len(names), 1), bool) for _ in range(3)))
    return types.Records(files.ImageFiles(root, names), labels, names, None if groups is None else np.array(groups))


def dataset(**splits):
    return types.Dataset(("a",), splits, "x")


def test_groups_in_two_splits_are_counted_with_their_images():
    groups = {"train": np.array([1, 1, 2, 3]), "validation": None, "test": np.array(["1", "3", "4", "3"])}
    (leak,) = leaks.find(groups)
    assert leak == leaks.Leak("train", "test", 2, (3, 3), (4, 4))
    assert str(leak) == (
        "2 groups (such as patients) have images in both train and test: 3 of the 4 images of train and 3 of the 4 "
        "images of test. Scores on them are too good"
    )
    assert leaks.find({"train": np.array([1]), "test": np.array([2])}) == []


def test_groups_in_two_splits_are_told_or_refused(folder):
    both = dataset(train=records(folder, ["0.png", "1.png"], [7, 8]), test=records(folder, ["2.png"], [7]))
    with pytest.warns(
        UserWarning, match="1 group has images in both train and test: 1 of the 2 images of train and 1 of"
    ):
        preflight.check(both, "warn", allow_missing=False)
    with pytest.raises(ValueError, match=r"1 group has .* --split\.leak warn"):
        preflight.check(both, "refuse", allow_missing=False)


def test_a_split_without_one_readable_image_is_refused(folder):
    (folder / "broken.png").write_text("<html>")
    for allow_missing in (True, False):
        given = dataset(train=records(folder, ["0.png"]), test=records(folder, ["broken.png", "broken.png"]))
        with pytest.raises(ValueError, match=r"test: none of its 2 images can be opened; the first: .*broken\.png"):
            preflight.check(given, "warn", allow_missing=allow_missing)
        given = dataset(train=records(folder, ["0.PNG", "1.PNG"]))
        with pytest.raises(ValueError, match=r"train: none of .*0\.png, with the suffix in other case"):
            preflight.check(given, "warn", allow_missing=allow_missing)


def test_missing_images_are_told_where_they_are_left_out(folder):
    given = dataset(train=records(folder, ["none.png", "0.png"]))
    with pytest.warns(UserWarning, match=r"train: 1 of 2 images are missing: none\.png"):
        preflight.check(given, "warn", allow_missing=True)


def table(folder, names, header="path,split,cat,dog"):
    rows = [f"{name},{('train', 'test')[i % 2]},{i // 2 % 2},{i % 2}" for i, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return ["--data.file", folder / "labels.csv"]


@pytest.mark.filterwarnings("ignore:.*are missing")
def test_skipping_bad_images_covers_missing_ones_but_not_all_of_them(folder, monkeypatch, capsys):
    words = [CONFIG, *table(folder, ["img\\0.png", "img\\1.png", "a.png", "b.png"]), "--workdir", folder / "run"]
    words += ["--split.validation-share", 0]
    code, _, error = toy.command(monkeypatch, capsys, train.main, *words)
    assert code == 1
    assert "0.png is there, with / for \\ and without the folders before it (and 1 more in the same way)" in error
    code, out, error = toy.command(monkeypatch, capsys, train.main, *words, "--data.on-bad-image", "skip")
    assert code == 1
    assert "\nlabels.csv: path from path; split from split; no groups; 2 categories: cat, dog.\n" in out
    assert re.search(r"train: none of its \d images is there; in place of img\\0\.png there is 0\.png", error)
    assert not (folder / "run").exists()
    sweep_words = [CONFIG, *table(folder, ["a.png", "b.png"]), "--workdir", folder / "s", "--labels.hide", "uniform"]
    sweep_words += ["--split.validation-share", 0]
    code, _, error = toy.command(monkeypatch, capsys, sweep.main, *sweep_words, "--data.on-bad-image", "skip")
    assert (code, "none of its 1 images is there" in error) == (1, True)


def test_a_summary_of_nothing_says_so_first(folder, monkeypatch, capsys):
    words = ["summary", CONFIG, *table(folder, ["img\\0.png", "img\\1.png"]), "--split.validation-share", 0]
    code, out, _ = toy.command(monkeypatch, capsys, data_command.main, *words)
    assert code == 1
    assert out.splitlines()[1] == (
        "None of the 1 images of train is there; in place of img\\0.png there is 0.png, with / for \\ and without the "
        "folders before it."
    )
