import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cftjax import cli, types
from cftjax.config import LabelsConfig, SplitConfig
from cftjax.data import __main__ as command
from cftjax.data.looking import checking, overview, summary, workers
from cftjax.data.reading import images

CONFIG = "csv"
SOUND = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


@pytest.fixture
def folder(tmp_path):
    """A table of sound images and of four that are broken in different ways."""
    rng = np.random.default_rng(0)
    for name in SOUND:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    rows = [f"{name},{i % 2},{(i + 1) % 2},train" for i, name in enumerate(SOUND)]
    (tmp_path / "sound.csv").write_text("\n".join(["path,dog,cat,split", *rows]) + "\n")
    rows += ["cut.jpg,1,-1,train", "empty.jpg,0,,test", "none.jpg,1,1,test", "text.jpg,1,1,test"]
    (tmp_path / "broken.csv").write_text("\n".join(["path,dog,cat,split", *rows]) + "\n")
    return tmp_path


def call(monkeypatch, *words):
    """Exit code of `cftjax data WORDS`."""
    monkeypatch.setattr(sys, "argv", ["cftjax.data", *map(str, words)])
    try:
        cli.run(command.main, stopped="Stopped.")
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_sound_images_pass_the_check(folder, monkeypatch, capsys):
    assert call(monkeypatch, "check", CONFIG, "--data.file", folder / "sound.csv") == 0
    out = capsys.readouterr()
    told = "sound.csv: path from path; split from split; no groups; 2 categories: dog, cat.\n"
    assert out.out == told + "4 images: nothing is broken.\n"
    assert "Check: 4/4 images" in out.err


def test_everything_broken_is_listed_with_file_and_fault_and_the_exit_code_is_one(folder, monkeypatch, capsys):
    words = ("check", CONFIG, "--data.file", folder / "broken.csv", "--json", folder / "found.json")
    assert call(monkeypatch, *words) == 1
    *told, _, _, _, _, _ = lines = capsys.readouterr().out.splitlines()
    assert told[1:] == ["broken.csv: -1 is uncertain and 0 is negative in cat."]
    faults = {
        "train, image 4 (cut.jpg)": "truncated",
        "test, image 0 (empty.jpg)": "it is empty",
        "test, image 1 (none.jpg)": "no such file",
        "test, image 2 (text.jpg)": "it is of no image format",
    }
    for line, (place, fault) in zip(lines[len(told) : -1], faults.items(), strict=True):
        assert line.startswith(f"{place}: {folder}")
        assert fault in line
    assert lines[-1] == "8 images: 4 broken."
    found = json.loads((folder / "found.json").read_text())
    assert found["images"] == {"train": 5, "test": 3}
    assert found["complete"]
    assert [(one["split"], one["row"], one["name"]) for one in found["broken"]] == [
        ("train", 4, "cut.jpg"),
        ("test", 0, "empty.jpg"),
        ("test", 1, "none.jpg"),
        ("test", 2, "text.jpg"),
    ]


def test_pictures_that_use_less_than_an_eighth_of_their_range_are_named(tmp_path, monkeypatch, capsys):
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (3, 1))
    for name, array in (("sound", ramp), ("narrow", ramp // 8), ("deep", ramp.astype(np.uint16) * 16)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("path,dog\nsound.png,1\nnarrow.png,0\ndeep.png,1\n")
    assert call(monkeypatch, "check", CONFIG, "--data.file", tmp_path / "t.csv", "--json", tmp_path / "found.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("train, image 1 (narrow.png): its levels are 0 to 31 of 0 to 255: fewer bits")
    assert lines[2].startswith("train, image 2 (deep.png): its levels are 0 to 16 of 0 to 255")
    assert lines[3] == "3 images: nothing is broken, 2 with hardly any contrast."
    assert len(json.loads((tmp_path / "found.json").read_text())["narrow"]) == 2


def test_of_very_many_broken_images_the_first_are_printed_and_the_rest_counted(folder, monkeypatch, capsys):
    monkeypatch.setattr(command, "MOST_PRINTED", 1)
    assert call(monkeypatch, "check", CONFIG, "--data.file", folder / "broken.csv") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == ["and 3 more; --json FILE lists them all", "8 images: 4 broken."]


def test_ctrl_c_ends_a_check_with_what_was_found_so_far(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workers, "CHUNK", 1)
    labels = types.Labels(*(np.zeros((50, 1), bool) for _ in range(3)))

    def image(row):
        if row == 5:
            raise KeyboardInterrupt
        raise images.ImageError(f"{row} is broken")

    records = types.Records(image, labels, [f"image{row}" for row in range(50)])
    found = checking.check({"train": records}, threads=1)
    assert not found.complete
    assert found.opened == len(found.broken) == 5
    monkeypatch.setattr(command, "load", lambda data: types.Dataset(("a",), {"train": records}, "x"))
    assert call(monkeypatch, "check", "--json", tmp_path / "found.json") == 130
    out = capsys.readouterr().out
    # Several threads look: of images that come one after another, a later one may be done before an earlier one.
    stopped = re.search(r"Stopped after (\d+) of 50 images: \1 broken\.", out)
    assert stopped
    assert out.count(" is broken\n") == int(stopped[1]) < 50
    assert json.loads((tmp_path / "found.json").read_text())["complete"] is False


def test_work_in_threads_gives_every_result_once_and_ends_at_an_error():
    items = list(range(300))
    assert sorted(workers.each(items, lambda item: item * item, 3, "Squares")) == [(i, i * i) for i in items]
    assert list(workers.each([], str, 2, "Nothing")) == []
    begun = []

    def fail(item):
        begun.append(item)
        raise ImportError("not installed")

    with pytest.raises(ImportError, match="not installed"):
        list(workers.each(items, fail, 1, "Fail"))
    assert len(begun) <= 2


def test_a_summary_is_printed_and_written_as_json_and_as_a_picture(folder, monkeypatch, capsys):
    words = ["summary", CONFIG, "--data.file", folder / "broken.csv", "--split.validation-share", "0.4", "--contents"]
    words += ["--json", folder / "out" / "found.json", "--picture", folder / "out" / "found.png"]
    assert call(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "Validation was carved from train: 2 images" in out
    assert "Missing files of test: none.jpg." in out
    assert "test: 2 of the 2 images have no readable header; run check." in out
    assert "Same content under different names: none." in out
    found = json.loads((folder / "out" / "found.json").read_text())
    assert found["carved"]
    assert list(found["splits"]) == ["train", "validation", "test"]
    assert found["splits"]["test"]["missing"] == ["none.jpg"]
    positive = [found["splits"][name]["labels_given"]["positive"] for name in ("train", "validation")]
    assert np.sum(positive, axis=0).tolist() == [3, 2]
    assert images.read_header(folder / "out" / "found.png").width > 500


def test_hidden_labels_are_shown_beside_those_of_the_files(folder, monkeypatch, capsys):
    words = ["summary", CONFIG, "--data.file", folder / "sound.csv", "--split.validation-share", "0"]
    assert call(monkeypatch, *words, "--labels.hide", "single_positive", "--labels.unknown", "ignore") == 0
    out = capsys.readouterr().out
    assert "train, after hiding" in out
    assert "train, in the files" in out
    assert "hide single_positive, hide_seed 526" in out
    assert "In training unknown labels do not count (--labels.unknown ignore)." in out


def test_a_faulty_table_is_refused_in_one_message(folder, monkeypatch, capsys):
    (folder / "wrong.csv").write_text("path,dog\na.jpg,2\n../b.jpg,1\na.jpg,0\nnone.jpg,1\n")
    for name in ("summary", "check"):
        assert call(monkeypatch, name, CONFIG, "--data.file", folder / "wrong.csv") == 1
        error = capsys.readouterr().err
        assert "3 problems" in error
        for place in ("row 2, column dog", "row 3, column path", "row 4, column path"):
            assert place in error


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "usage: cftjax data {summary,check}"),
        (["--help"], 0, "open and decode every image, and list what is broken"),
        (["sumary"], 1, "no command 'sumary'; did you mean summary?"),
        (["train"], 1, "no command 'train'; use summary or check"),
        (["check", "configs/cvs.py"], 1, "did you mean the recipe csv?"),
        (["check", CONFIG, "--data.fiel", "x"], 2, "--data.file STR"),
        (["summary", CONFIG, "--help"], 0, "--data.path-column STR"),
        (["summary", "--most", "0"], 1, "--most 0 is not in 1..200"),
        (["summary", "--size-sample", "0"], 1, "must be at least 1"),
    ],
)
def test_words_that_are_not_understood_are_answered_with_those_that_are(monkeypatch, capsys, words, code, message):
    assert call(monkeypatch, *words) == code
    out = capsys.readouterr()
    assert message in out.out + out.err


def made_up(c, n=60):
    rng = np.random.default_rng(0)
    known = rng.random((n, c)) < 0.7
    labels = types.Labels(known & (rng.random((n, c)) < 0.4), known, ~known & (rng.random((n, c)) < 0.2))
    records = types.Records(lambda row: np.zeros((3, 4, 3), np.uint8), labels, [str(row) for row in range(n)])
    names = tuple(f"[b]category {i}[/b] of a name that is long" for i in range(c))
    return types.Dataset(names, {"train": records, "test": records}, "x")


@pytest.mark.parametrize("c", [2, 30, 300])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_numbers_are_never_cut_and_of_very_many_categories_the_most_frequent_are_shown(c, width):
    config = LabelsConfig()
    found = summary.summarise(made_up(c), config, SplitConfig(), most=80, size_sample=10, contents=False, threads=1)
    out = io.StringIO()
    overview.show(found, config, Console(width=width, file=out), most=80)
    text = out.getvalue()
    tables = text[text.index("Images with each label") : text.index("% positive for the column")].splitlines()
    rows = [line for line in tables if line.startswith(" [b]category")]
    assert len({line.split("[/b]")[0] for line in rows}) == min(c, 80)
    assert not any("…" in line[overview.NAME_WIDTH + 1 :] for line in rows)
    assert all(len(line) <= width for line in tables)
    assert ("80 of 300 categories shown" in text) == (c == 300)
