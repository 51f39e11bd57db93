import csv
import html
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from cftjax import runs, text
from cftjax.config import TuningConfig
from cftjax.data.reading.problems import DataError
from cftjax.embeddings import bundles
from cftjax.report import printing
from cftjax.runtime import storage

HOSTILE = (
    "\x1b[31mred\x1b[0m\x07",
    "<script>alert(1)</script>",
    '=HYPERLINK("http://x")',
    "a\nb\tc",
    "[link](javascript:alert(1))",
    "\u202eright to left",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_acts_on_a_terminal(name):
    shown = text.printable(name)
    assert shown.isprintable()
    assert shown == name or name.encode("unicode_escape").decode() == shown.replace("\\\\", "\\")
    assert text.few([name]).isprintable()
    out = io.StringIO()
    table = printing.begun(name)
    table.add_column("category")
    table.add_row(printing.named(name))
    written = printing.printed(lambda _: [table], [f"Left: {name}."], Console(file=out, width=120, color_system=None))
    for content in (out.getvalue(), written):
        assert "\x1b" not in content
        assert "\x07" not in content
        assert content.count(text.printable(name)) == 3 - ("\n" in name)


def test_letters_of_all_scripts_stay_as_they_are():
    for name in ("Ödem", "浮腫", "می\u200cشود", "🫁", "a b"):
        assert text.printable(name) == name


def test_markdown_shows_names_as_they_are():
    for name in HOSTILE:
        line = text.for_markdown(name)
        assert "<" not in line
        assert not re.search(r"(?<!\\)[\[\]|`*]", line)
        assert "\n" not in line
    assert html.unescape(text.for_markdown("<b> & snake_case")) == "<b> & snake_case"
    assert text.for_markdown("_a_ http://x") == "\\_a\\_ http\\://x"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "''-x"])
def test_what_a_spreadsheet_would_take_for_a_formula_is_text_and_can_be_undone(name):
    cell = text.for_spreadsheet(name)
    assert cell == f"'{name}"
    assert text.from_spreadsheet(cell) == name
    written = printing.to_csv([[name, -0.5, None]])
    assert list(csv.reader(io.StringIO(written))) == [[cell, "-0.5", ""]]
    assert list(csv.reader(io.StringIO(printing.to_csv([[name]], raw=True)))) == [[name]]


def test_other_names_are_left_alone_in_both_directions():
    for name in ("fox", "don't", "'quoted'", "a=b", ""):
        assert text.for_spreadsheet(name) == text.from_spreadsheet(name) == name
    assert text.for_spreadsheet(-1.5) == -1.5


def test_a_name_of_many_letters_is_cut_in_the_middle():
    assert text.cut("a" * 60 + "b" * 60) == "a" * 50 + "…" + "b" * 49
    assert len(text.few(["x" * 5000, "y"])) < 120
    assert text.cut("short") == "short"


@pytest.mark.parametrize("wrong", [[None, "b", "c"], [["a"], "b", "c"], [1, "b", "c"], {"a": 1}, "abc"])
def test_categories_that_are_no_texts_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="the categories"):
        text.names(wrong, "the categories")
    run = runs.create(tmp_path / "run", TuningConfig(), ("a", "b", "c"), "toy")
    path = run.folder / "config.json"
    storage.write_json(path, storage.read_json(path) | {"categories": wrong})
    with pytest.raises(ValueError, match=r"config\.json"):
        runs.Run(run.folder)


@pytest.mark.parametrize("content", ["[" * 100_000, json.dumps([None, "b"]), json.dumps([["a"], ["b"]]), "{"])
def test_a_bundle_whose_categories_are_no_list_of_texts_is_refused(tmp_path, content):
    file = tmp_path / "bundle.safetensors"
    arrays = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    for split in ("train", "validation"):
        arrays |= {f"{split}_z": np.zeros((4, 3), np.float32), f"{split}_labels": np.eye(4, 2, dtype=np.float32)}
    storage.write_tensors(file, arrays, {"categories": content})
    with pytest.raises(DataError, match="categories in its metadata is no JSON list"):
        bundles.read(file)


def test_a_bundle_of_numbers_for_categories_is_refused(tmp_path):
    file = tmp_path / "bundle.npz"
    arrays = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32), "categories": np.arange(2)}
    for split in ("train", "validation"):
        arrays |= {f"{split}_z": np.zeros((4, 3), np.float32), f"{split}_labels": np.eye(4, 2, dtype=np.float32)}
    storage.write_arrays(file, arrays)
    with pytest.raises(DataError, match="which are no names"):
        bundles.read(file)
