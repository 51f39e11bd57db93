import csv
import dataclasses
import json
import os
import sys

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import cftjax
from cftjax import cli, predict
from cftjax.data.reading import finding
from cftjax.data.reading.problems import DataError
from cftjax.inference import kept
from cftjax.inference import output as predicted
from cftjax.types import Heads


@pytest.fixture(scope="module")
def images(image_runs):
    return image_runs[0]


@pytest.fixture(scope="module")
def run(image_runs):
    return image_runs[1]["tiny_mean_max"].folder


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    predict.main()


def refused(monkeypatch, capsys, *words):
    """The one line of a command that ends with code 1."""
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        cli.run(predict.main)
    assert stopped.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cftjax: error: ")
    return line


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_image_has_its_row_in_every_kind_of_table(run, images, tmp_path, monkeypatch, capsys, ending):
    output = tmp_path / "new" / f"out.{ending}"
    call(monkeypatch, run, images, "-o", output, "--workers", 0)
    said = capsys.readouterr().out
    assert "11 images: " in said
    if ending == "csv":
        rows = read_csv(output)
    elif ending == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pyarrow.parquet.read_table(output).to_pylist()
    categories = ["cat", "dog", "cow"]
    assert list(rows[0]) == ["path", *categories, *(f"{name} decision" for name in categories), "error"]
    files = sorted(images.iterdir())
    assert [row["path"] for row in rows] == list(map(str, files))
    model = cftjax.load(run)
    probs = model(files)
    np.testing.assert_allclose([[float(row[name]) for name in categories] for row in rows], probs, rtol=1e-5)
    decided = [[int(row[f"{name} decision"]) for name in categories] for row in rows]
    np.testing.assert_array_equal(decided, model.decide(probs))
    assert not any(row["error"] for row in rows)
    assert os.listdir(output.parent) == [output.name]


def test_images_that_cannot_be_read_have_an_error_and_no_values(run, images, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"nonsense")
    table = tmp_path / "table.csv"
    table.write_text(f"path,other\nbroken.jpg,1\n{images / '00.png'},2\nmissing.png,3\n")
    output = tmp_path / "out.csv"
    call(monkeypatch, run, table, "-o", output, "--tta", "mirror", "shift")
    rows = read_csv(output)
    assert [row["path"] for row in rows] == ["broken.jpg", str(images / "00.png"), "missing.png"]
    assert [row["cat"] == row["cat decision"] == "" for row in rows] == [True, False, True]
    assert "of no image format" in rows[0]["error"]
    assert rows[1]["error"] == ""
    assert "no such file" in rows[2]["error"]
    looking = cftjax.load(run).looking(["mirror", "shift"])
    np.testing.assert_allclose(float(rows[1]["cow"]), looking([images / "00.png"])[0, 2], rtol=1e-5)
    said = capsys.readouterr()
    assert "3 images, 2 of them could not be read" in said.out
    assert "broken.jpg: cannot be read" in said.err

    os.remove(output)
    line = refused(monkeypatch, capsys, run, tmp_path / "broken.jpg", "-o", output)
    assert "no image could be read" in line
    assert not output.exists()
    assert not list(tmp_path.glob(".out*"))


def test_heatmaps_are_drawn_of_what_is_decided_or_asked_for(run, images, tmp_path, monkeypatch):
    files = sorted(images.iterdir())
    maps = tmp_path / "maps"
    options = ["-o", tmp_path / "out.csv", "--overwrite", "--heatmaps", maps]
    call(monkeypatch, run, files[0], files[1], *options, "--heatmaps-of", "cow", "cat")
    assert sorted(os.listdir(maps)) == ["00.png", "01.png"]
    with Image.open(maps / "00.png") as one:
        assert one.width > one.height
        assert np.ptp(np.asarray(one.convert("RGB")).astype(int), axis=2).max() > 50  # colours
    for name in os.listdir(maps):
        os.remove(maps / name)
    call(monkeypatch, run, *files[:4], *options, "--heatmaps-at-most", 1)
    rows = read_csv(tmp_path / "out.csv")
    positive = [any(row[f"{name} decision"] == "1" for name in ("cat", "dog", "cow")) for row in rows]
    assert sorted(os.listdir(maps)) == [f"0{i}.png" for i in range(4) if positive[i]]


def test_pictures_of_images_that_differ_in_their_ending_do_not_meet(run):
    options = predict.Predicting(run=run, paths=(), output=run)
    files = [finding.Path(name) for name in ("/a/b/x.png", "/a/b/x.jpg", "/a/y.png")]
    pictures = predict.Pictures(cftjax.load(run), files, options)
    assert [pictures.name(file) for file in files] == ["b/x.png.png", "b/x.jpg.png", "y.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{images}", "-o", "out.xlsx"], "-o out.xlsx: the name must end in one of .csv, .jsonl, .parquet"),
        (["{images}", "-o", "{there}"], "exists: give another name, or --overwrite"),
        (["{images}x", "-o", "out.csv"], "no such file or folder; the folder"),
        (["{empty}", "-o", "out.csv"], "no image in this folder or below it"),
        (["{images}/*.gif", "-o", "out.csv"], "no file fits this pattern"),
        (["{table}", "-o", "out.csv"], "no such column in the table; it has file"),
        (["{images}", "-o", "out.csv", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["{images}", "-o", "out.csv", "--heatmaps-of", "cat"], "--heatmaps-of needs a folder"),
        (
            ["{images}", "-o", "out.csv", "--heatmaps", "m", "--heatmaps-of", "cut"],
            "--heatmaps-of cut: no such category; the model has cat",
        ),
        (["{images}", "-o", "out.csv", "--heatmaps", "{there}"], "is a file; give a folder"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(run, images, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    places = {
        "images": images,
        "there": tmp_path / "there.csv",
        "empty": tmp_path / "empty",
        "table": tmp_path / "t.csv",
    }
    places["there"].write_text("old")
    places["empty"].mkdir()
    places["table"].write_text("file\na.png\n")
    words = [word.format(**places) for word in words]
    assert message in refused(monkeypatch, capsys, run, *words)
    assert places["there"].read_text() == "old"
    assert not list(tmp_path.glob("out*"))


def test_folders_are_searched_below_links_and_each_image_is_found_once(images, tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub" / ".hidden").mkdir(parents=True)
    (folder / "sub" / "b.JPG").touch()
    (folder / "a.png").touch()
    (folder / ".c.png").touch()
    (folder / "sub" / ".hidden" / "d.png").touch()
    (folder / "notes.txt").touch()
    (folder / "scan").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(images)
    names, files = finding.find([str(folder / "sub" / "*.JPG"), str(folder), str(folder / "a.png")])
    assert files[:3] == [folder / "sub" / "b.JPG", folder / "a.png", folder / "scan"]
    assert [file.parent for file in files[3:]] == [folder / "linked"] * 11
    assert names == list(map(str, files))


@pytest.fixture
def whole(run, images, tmp_path, monkeypatch):
    """What a call that nobody disturbs writes, with one image that cannot be read among the others."""
    (tmp_path / "broken.jpg").write_bytes(b"nonsense")
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    words = [run, images, tmp_path / "broken.jpg", "--batch-size", 1, "--workers", 0]
    call(monkeypatch, *words, "-o", tmp_path / "whole.csv")
    return words, (tmp_path / "whole.csv").read_bytes()


def killed_after(blocks, words, tmp_path, monkeypatch):
    """A call that ends as a killed one does, and leaves a file half written."""
    real, calls = kept.Kept.flush, []

    def flush(self):
        if len(calls) == blocks:
            raise KeyboardInterrupt
        calls.append(real(self))

    with monkeypatch.context() as patch:
        patch.setattr(kept.Kept, "flush", flush)
        with pytest.raises(KeyboardInterrupt):
            call(patch, *words, "-o", tmp_path / "out.csv")
    (tmp_path / ".out.csv.0123abcd.part").write_text("half")
    (tmp_path / ".out.csv.kept" / ".000000000099.npz.0123abcd.part").write_text("half")


def test_a_call_that_was_killed_goes_on_where_it_stood_and_clears_up(whole, images, tmp_path, monkeypatch, capsys):
    words, expected = whole
    killed_after(1, words, tmp_path, monkeypatch)
    opened = []
    real = predict.Opening.__call__
    monkeypatch.setattr(predict.Opening, "__call__", lambda self, row: opened.append(row) or real(self, row))
    call(monkeypatch, *words, "-o", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == expected
    assert "Going on after 8 of 12 images" in capsys.readouterr().err  # one step of eight devices
    assert sorted(opened) == list(range(8, 12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jpg", "out.csv", "whole.csv"]


def test_rows_of_other_options_images_or_runs_are_predicted_again(whole, images, tmp_path, monkeypatch, capsys):
    words, expected = whole
    killed_after(1, words, tmp_path, monkeypatch)
    call(monkeypatch, *words, "-o", tmp_path / "out.csv", "--tta", "mirror")
    assert "Going on" not in capsys.readouterr().err
    killed_after(1, [*words, "--overwrite"], tmp_path, monkeypatch)
    (tmp_path / "broken.jpg").write_bytes(b"other nonsense")
    call(monkeypatch, *words, "-o", tmp_path / "out.csv", "--overwrite")
    assert "Going on" not in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_bytes() == expected


def test_two_calls_do_not_write_the_same_output(run, images, tmp_path, monkeypatch, capsys):
    with kept.Kept(tmp_path / "out.csv", "key"):
        assert "another process is writing -o" in refused(monkeypatch, capsys, run, images, "-o", tmp_path / "out.csv")


def test_what_is_no_number_is_refused(run, images):
    model = cftjax.load(run)
    kernel = np.asarray(model.heads.kernel) * np.float32(np.nan)
    broken = dataclasses.replace(model, heads=Heads(kernel, model.heads.bias))
    with pytest.raises(ValueError, match=r"logit of cat is not finite for image 0: .*cftjax verify RUN"):
        broken(sorted(images.iterdir()))


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("path\n")
    with pytest.raises(DataError, match="no rows"):
        finding.find([str(tmp_path / "t.csv")])


def test_categories_called_like_other_columns_give_way():
    assert predicted.columns(["error", "A", "A decision"]) == (
        "path",
        ["error (category)", "A", "A decision"],
        ["error decision", "A decision (category)", "A decision decision"],
        "error",
    )


@pytest.mark.parametrize("ending", predicted.ENDINGS)
def test_parts_are_written_as_they_come_and_nothing_remains_of_a_failure(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(predicted, "BLOCK_CELLS", 6)
    part = predicted.Rows(
        ["a", "b\udcff"], np.array([[0.25], [1.0]]), np.array([[False], [True]]), ["", 'bad, "so"\nto say']
    )
    output = tmp_path / f"out{ending}"

    def interrupted():
        with predicted.writing(output, ["c"]) as add:
            for _ in range(5):
                add(part)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not os.listdir(tmp_path)
    with predicted.writing(output, ["c"]) as add:
        for _ in range(3):
            add(part)
    if ending == ".csv":
        rows = [{k: v or None for k, v in row.items()} for row in read_csv(output)]
    elif ending == ".jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pyarrow.parquet.read_table(output).to_pylist()
    assert [row["path"] for row in rows] == ["a", r"b\xff"] * 3
    assert [row["error"] for row in rows] == [None, 'bad, "so"\nto say'] * 3
    assert [row["c"] and float(row["c"]) for row in rows] == [0.25, None] * 3
    assert [row["c decision"] and int(row["c decision"]) for row in rows] == [0, None] * 3
