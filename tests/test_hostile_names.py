"""Names that nobody should obey, through a whole fine-tuning: `benchmarks/attack.py --names` in short."""

import csv
import io
import re
import sys
import types

import numpy as np
import pytest
import toy
from markdown_it import MarkdownIt
from test_report_page import Page

from cftjax import finetune, runs
from cftjax.runtime import storage
from cftjax.text import from_spreadsheet

NAMES = (
    "\x1b[2J\x1b]0;owned\x07red \x1b[31m",
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "[link](javascript:alert(1)) | **bold**",
    '=HYPERLINK("http://localhost/","x")',
    "-1+1",
    "very " * 500 + "long",
    "\u202edesrever\u202c \u05d0\u05d1",
    "two\nlines",
    "$\\undefined{ and $x",
    "../../up",
    "\U0001f9d1\u200d\U0001f52c \u732b",
)
# What a terminal or a reader of lines acts on.
ACTS = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]|[\u202a-\u202e\u2028\u2029]")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder, rng, c = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0), len(NAMES)
    arrays = {"categories": np.array(NAMES), "kernel": rng.normal(size=(c, 4)), "bias": np.zeros(c)}
    for split in ("train", "validation", "test"):
        arrays[f"{split}_z"] = rng.normal(size=(40, 4)).astype(np.float32)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (40, c)).astype(np.float32)
    np.savez(folder / "bundle.npz", **arrays)
    small = [
        f"--{name}=4" for name in ("ga.num-generations", "ga.population-size", "polish.num-steps", "report.resamples")
    ]
    with pytest.MonkeyPatch.context() as patch:
        capture = Capture(patch)
        code, out, error = toy.command(
            patch, capture, finetune.main, folder / "bundle.npz", "-o", folder / "run", *small, "--log", "tensorboard"
        )
    assert code == 0, error
    return folder / "run", out + error


class Capture:
    """As pytest's capsys, for a whole module."""

    def __init__(self, patch):
        self.out, self.err = io.StringIO(), io.StringIO()
        patch.setattr(sys, "stdout", self.out)
        patch.setattr(sys, "stderr", self.err)

    def readouterr(self):
        return types.SimpleNamespace(out=self.out.getvalue(), err=self.err.getvalue())


def test_nothing_that_is_said_or_read_acts_on_a_terminal(tuned):
    folder, said = tuned
    for text in (said, *((folder / name).read_text(encoding="utf-8") for name in ("report/table.txt", "README.md"))):
        found = ACTS.search(text)
        assert found is None, text[max(found.start() - 60, 0) : found.end() + 60]


def test_names_are_kept_as_they_came(tuned):
    folder, _ = tuned
    assert runs.Run(folder).categories == NAMES
    assert storage.read_json(folder / "config.json")["categories"] == list(NAMES)
    with (folder / "report" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert {from_spreadsheet(row[0]) for row in rows} >= set(NAMES)
    assert not any(re.match(r"[=+@\t\r\n]", row[0]) for row in rows)


def test_neither_page_nor_card_has_an_element_of_a_name(tuned):
    folder, _ = tuned
    page = Page((folder / "report" / "index.html").read_text(encoding="utf-8"))
    assert page.scripts == 1
    assert not any("javascript" in link for link in page.links)
    card = MarkdownIt("commonmark", {"html": True}).enable("table").render((folder / "README.md").read_text())
    card = Page(card)
    assert card.scripts == 0
    assert card.images == []
    assert not any("javascript" in link for link in card.links)
