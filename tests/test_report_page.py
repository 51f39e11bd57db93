import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import special
from test_report_write import CATEGORIES, STAGES, make_records, stage_heads, write

from cftjax import figures
from cftjax.config import GAConfig, TuningConfig
from cftjax.data.reading.images import ImageError
from cftjax.report import mistakes, page, pictures
from cftjax.scores import reliability
from cftjax.types import word

EVIL = "<script>alert('a')</script> & \"b\""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser would find: rows of the first table, heads, images, scripts, and all text outside of them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.rows, self.heads, self.images, self.links, self.text = [], [], [], [], ""
        self.scripts, self.inside, self.tables, self.part = 0, [], 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert not any(name.startswith("on") for name in attributes)
        self.inside.append(tag)
        self.tables += tag == "table"
        self.scripts += tag == "script"
        self.part = tag if tag in ("thead", "tbody", "tfoot") else self.part
        if tag == "img":
            self.images.append(attributes["src"])
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if self.tables == 1 and tag == "tr" and self.part == "tbody":
            self.rows.append([])
        if self.tables == 1 and tag in ("th", "td"):
            if self.part == "thead":
                self.heads.append({"attributes": attributes, "text": ""})
            elif self.part == "tbody":
                self.rows[-1].append("")
        if tag == "button" and self.part == "thead" and self.tables == 1:
            self.heads[-1]["button"] = attributes

    def handle_endtag(self, tag):
        self.part = "" if tag == self.part else self.part

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ("script", "style"):
            return
        self.text += data
        if self.tables == 1 and self.part == "tbody" and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")
        if self.tables == 1 and self.part == "thead" and self.heads:
            self.heads[-1]["text"] += data


def noisy_records(n):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (n, 40, 200, 3)).astype(np.uint8)
    return dataclasses.replace(make_records(n), image=lambda row: pixels[row])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    categories = (EVIL, *CATEGORIES[1:])
    asked = []

    def heatmaps(images, category):
        asked.append(category)
        return [(np.linspace(-1, 1, 6).reshape(2, 3), (-10.0, 0.0, 210.0, 40.0))] * len(images)

    found, _ = write(
        folder,
        categories=categories,
        heads=stage_heads() | {"final": stage_heads()["ga"]},  # the toy's own final heads make no mistake
        records=noisy_records(40),
        heatmaps=heatmaps,
        title=EVIL,
        settings=list(page.of_config(TuningConfig(ga=GAConfig(population_size=7)))),
        versions={"cftjax": "1.2.3", "jax": "9"},
    )
    text = (folder / "index.html").read_text(encoding="utf-8")
    return folder, found, text, Page(text), asked


def test_the_page_is_one_file_that_asks_for_nothing(written):
    _, _, text, parsed, _ = written
    assert all(link.startswith(("data:image/", "#")) for link in parsed.links)
    assert "url(" not in text
    assert "@import" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(ids)


def test_names_titles_and_settings_are_text_and_never_markup(written):
    _, _, text, parsed, _ = written
    assert parsed.scripts == 1
    assert "<script>alert" not in text
    assert parsed.rows[0][0] == EVIL
    assert f"Report of {EVIL}" in parsed.text


def test_the_rows_are_metrics_jsons_numbers(written):
    folder, _, _, parsed, _ = written
    metrics = json.loads((folder / "metrics.json").read_text())
    test, known = metrics["test"], metrics["known"]
    assert [row[0] for row in parsed.rows] == metrics["categories"]
    for i, row in enumerate(parsed.rows):
        assert [int(x) for x in row[1:4]] == [
            known["train"]["positive"][i],
            known["train"]["negative"][i],
            known["test"]["positive"][i],
        ]
        scores = [test[stage]["AP"][i] for stage in STAGES]
        assert row[4:8] == ["–" if score is None else f"{100 * score:.2f}" for score in scores]  # noqa: RUF001
        change = test["difference"]["AP"]["value"][i]
        if change is not None:
            assert float(row[9].replace("−", "-")) == pytest.approx(100 * change, abs=0.005)  # noqa: RUF001
        assert row[11].split(" ")[0] == word(metrics["chosen"][i])
    assert parsed.rows[4][11] == "backbone (no known positive in train)"
    for mean in ("mAP", "mAUC"):
        assert f"{100 * test['backbone'][mean]:.2f} %→{100 * test['final'][mean]:.2f} %" in parsed.text


def test_every_column_has_a_button_that_sorts(written):
    _, _, _, parsed, _ = written
    assert [head["attributes"]["scope"] for head in parsed.heads] == ["col"] * 14
    assert all(head["button"] == {"type": "button"} or "title" in head["button"] for head in parsed.heads)
    kinds = {head["text"]: head["attributes"]["data-kind"] for head in parsed.heads}
    assert {name for name, kind in kinds.items() if kind == "text"} == {"category", "chosen"}


def test_changed_settings_are_marked_beside_their_defaults(written):
    _, _, text, parsed, _ = written
    assert text.count("<tr class=changed>") == 1
    row = text[text.index("<tr class=changed>") :].split("<tr>")[0]
    assert "ga.population_size" in row
    assert "<code>7</code>" in row
    assert "default <code>50</code>" in row
    assert "1 differ from the defaults" in parsed.text
    assert "Made by cftjax 1.2.3." in parsed.text


def test_figures_and_thumbnails_are_embedded_and_open(written):
    _, _, _, parsed, asked = written
    shown = parsed.text.count(" %, rank ")
    kinds = [source.partition(";")[0] for source in parsed.images]
    assert kinds[:4] == ["data:image/svg+xml"] * 3 + ["data:image/jpeg"]
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))) for s in parsed.images[4:]]
    assert len(thumbnails) == 2 * shown > 2 * len(asked) > 0  # each beside its heatmap
    assert {image.size for image in thumbnails} == {(128, 26)}


def test_a_run_without_images_says_so_in_place_of_its_mistakes():
    assert "This run has embeddings and no images" in Page(page.render(many(2), title="x")).text


def test_without_a_test_split_the_page_warns():
    metrics = many(2)
    assert "No test split." not in page.render(metrics, title="x")
    for of in (metrics, metrics["known"], metrics["images"], metrics["unopened"]):
        of["validation"] = of.pop("test")
    assert "No test split." in page.render(metrics, title="x")


def test_mistakes_are_known_images_on_the_wrong_side_of_others_worst_first():
    #                   0    1    2    3    4    5    6
    logits = np.array([9.0, 3.0, 5.0, 1.0, 0.0, 4.0, 5.0], np.float32)
    labels = np.array([1, 0, 0, 0, 0, 1, 1], bool)
    known = np.array([0, 1, 1, 1, 1, 1, 1], bool)
    assert mistakes.ranked(logits, labels, known) == ([2], [5, 6])  # a tie is a mistake
    assert mistakes.ranked(logits, logits > 3.5, known) == ([], [])
    assert mistakes.ranked(logits, np.ones(7, bool), known) == ([], [])


def test_mistakes_hold_rank_name_and_an_image_that_opens():
    logits = np.array([[4.0], [3.0], [2.0], [1.0]], np.float32)
    labels, known = np.array([[0], [0], [1], [0]], bool), np.ones((4, 1), bool)
    records = make_records(4)

    def image(row):
        if row == 0:
            raise ImageError("cut short")
        return np.full((20, 30, 3), row, np.uint8)

    (found,) = mistakes.find(
        [3], logits, special.expit(logits), labels, known, dataclasses.replace(records, image=image)
    )
    assert (found.category, found.known) == (3, 4)
    assert [(one.name, one.rank) for one in found.false_positives] == [("1", 2)]
    assert found.false_positives[0].probability == pytest.approx(special.expit(3.0))
    assert [(one.name, one.rank) for one in found.false_negatives] == [("2", 3)]
    assert found.false_negatives[0].heat is None


def test_the_categories_furthest_from_perfect_are_shown_and_their_number_is_bounded():
    assert mistakes.categories_shown(np.array([0.5, np.nan, 1.0, 0.2])) == [3, 0]
    assert len(mistakes.categories_shown(np.linspace(0, 0.9, 500))) == mistakes.MOST_CATEGORIES
    n, k = 60, mistakes.MOST_CATEGORIES
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(n, k)).astype(np.float32), rng.random((n, k)) < 0.5
    found = mistakes.find(range(k), logits, logits, labels, np.ones((n, k), bool), make_records(n))
    shown = sum(len(one.false_positives) + len(one.false_negatives) for one in found)
    assert k <= shown <= mistakes.MOST_THUMBNAILS


def test_a_heat_is_red_where_it_is_positive_and_ends_a_place_beyond_its_box():
    grey = np.full((64, 128, 3), 128, np.uint8)
    heat = np.array([[1.0, -1.0]])
    picture = np.asarray(Image.open(io.BytesIO(mistakes.thumbnail(grey, heat, (48.0, 16.0, 80.0, 48.0))))).astype(int)
    red, blue, outside = picture[32, 44], picture[32, 84], picture[32, 8]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 30
    assert np.abs(outside - 128).max() < 6


def many(c):
    """metrics.json of c categories."""
    rng = np.random.default_rng(0)
    each = [float(x) for x in rng.random(c)]
    interval = {"value": 0.1, "low": 0.05, "high": 0.2, "resamples": 9}
    scores = {stage: {"AP": each, "AUROC": each, "mAP": 0.5, "mAUC": 0.5} for stage in STAGES}
    change = {name: {key: [value] * c for key, value in interval.items()} for name in ("AP", "AUROC")}
    scores["difference"] = {"mAP": interval, "mAUC": interval, "resampled": "images", "resamples": 9, **change}
    counts = {"positive": [3] * c, "negative": [2000] * c}
    return {
        "categories": [f"category {i}" for i in range(c)],
        "metric": "AP",
        "test": scores,
        "chosen": ["ga"] * c,
        "untuned": {},
        "known": {"train": counts, "test": counts},
        "images": {"train": 9, "test": 9},
        "unopened": {"train": [], "test": []},
        "seconds": {},
    }


def test_names_are_shown_escaped_and_long_ones_without_their_middle():
    content = many(2) | {"categories": ["\x1b[31m\nred", "left lung " + "x" * 400 + " upper lobe"]}
    shown = Page(page.render(content, title="x\x07"))
    assert shown.rows[0][0] == r"\x1b[31m\nred"
    assert re.fullmatch(r"left lung x+…x+ upper lobe", shown.rows[1][0])
    assert len(shown.rows[1][0]) == 80
    assert r"Report of x\x07" in shown.text


def test_of_thousands_of_categories_most_rows_wait_and_the_page_stays_small():
    text = page.render(many(5000), title="x")
    assert text.count("<tr hidden>") == 4800
    assert len(text) < 4_000_000


def test_large_figures_are_embedded_as_pixels(monkeypatch):
    monkeypatch.setattr(pictures, "SVG_BYTES", 10)
    bins = reliability.bins(np.zeros((1, 1)), *np.ones((2, 1, 1), bool))
    figure = figures.reliability({"x": bins}, split="test")
    assert pictures.embedded("reliability", figure, b"png").kind == "image/png"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser_a_head_sorts_and_what_is_undefined_stays_last(written, tmp_path):
    _, found, text, _, _ = written
    click = (
        "<script>const b = document.querySelectorAll('thead button')[4]; b.click(); const first = order(); b.click();"
        "function order() { return Array.from(document.querySelectorAll('#categories tbody tr'), r => "
        "r.cells[0].title || r.cells[0].textContent) }"
        "document.title = JSON.stringify([first, order(), b.parentNode.getAttribute('aria-sort')])</script></body>"
    )
    (tmp_path / "clicked.html").write_text(text.replace("</body>", click), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    out = subprocess.run(
        [*command, "--dump-dom", f"file://{tmp_path / 'clicked.html'}"], capture_output=True, text=True, timeout=240
    )
    title = re.search("<title>(.*?)</title>", out.stdout, re.DOTALL)
    assert title is not None, out.stderr
    unescaped = Page(f"<p>{title[1]}").text
    first, second, direction = json.loads(unescaped)
    ap = dict(zip(found["categories"], found["test"]["backbone"]["AP"], strict=True))
    defined = sorted((name for name in ap if ap[name] is not None), key=lambda name: -ap[name])
    assert first == [*defined, "no test positive"]
    assert second == [*defined[::-1], "no test positive"]
    assert direction == "ascending"
