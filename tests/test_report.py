import csv
import io
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score

from cftjax import bootstrap, figures, reliability, report, tables
from cftjax.config import ReportConfig
from cftjax.types import Embeddings, Heads, Labels, Records

CATEGORIES = ("cat", "dog $x$ with a name of forty letters or so", "[red]bird[/red]", "no test positive", "untuned")
C = len(CATEGORIES)
RESAMPLES = 40
STAGES = ("backbone", "ga", "polish", "final")
BLUE, ORANGE = (0x17, 0x66, 0xA6), (0xC8, 0x50, 0x0A)


def make_split(n, seed, groups=False):
    """Embeddings whose columns are the logits of the four stages, one block of c after another."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, C)) < 0.4
    noise = rng.normal(size=(n, 4, C)) * np.array([2.0, 1.5, 1.0, 0.5])[None, :, None]
    z = (noise + 2.0 * labels[:, None, :] - 1).astype(np.float32).round(1)
    known = rng.random((n, C)) < 0.8
    return Embeddings(z.reshape(n, -1), labels, known, None, np.arange(n) // 2 if groups else None)


def stage_heads():
    blocks = np.eye(4 * C, dtype=np.float32).reshape(4, C, 4 * C)
    return {stage: Heads(block, np.zeros(C, np.float32)) for stage, block in zip(STAGES, blocks, strict=True)}


def make_run(groups=False):
    embeddings = {name: make_split(n, n, groups) for name, n in (("train", 30), ("validation", 31), ("test", 40))}
    embeddings["test"].known[:, 3] &= ~embeddings["test"].labels[:, 3]
    embeddings["train"].known[:, 4] = False
    score = np.array([[0.5, 0.4, 0.6, 0.3, np.nan], [0.6, 0.4, 0.6, 0.4, np.nan], [0.7, np.nan, 0.6, 0.4, np.nan]])
    return {
        "categories": CATEGORIES,
        "embeddings": embeddings,
        "heads": stage_heads(),
        "chosen": ["polish", "ga", "polish", "backbone", "backbone"],
        "untuned": {"untuned": "no known positive in train"},
        "history": {"generation": np.arange(3), "score": score},
        "metric": "AP",
        "seconds": {"search": 1.5},
        "config": ReportConfig(resamples=RESAMPLES),
    }


def make_records(n):
    labels = Labels(*(np.zeros((n, C), bool) for _ in range(3)))
    return Records(lambda row: np.full((20, 30, 3), row, np.uint8), labels, [str(row) for row in range(n)])


def write(folder, **changes):
    out = io.StringIO()
    found = report.write(folder, **(make_run() | changes), console=Console(file=out, width=120))
    return found, out.getvalue()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "report"
    found, printed = write(folder, records=make_records(40))
    return folder, found, printed


def strict_json(path):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def numbers(text):
    return [line.split() for line in text.splitlines()]


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def has_colour(image, colour):
    return bool((np.abs(image - np.array(colour)).max(-1) < 12).any())


def test_metrics_json_is_strict_and_has_null_where_a_score_is_undefined(written):
    folder, found, _ = written
    loaded = strict_json(folder / "metrics.json")
    assert loaded == found
    assert loaded["categories"] == list(CATEGORIES)
    for stage in STAGES:
        assert loaded["test"][stage]["AP"][3] is None
        assert loaded["test"][stage]["AUROC"][3] is None
        assert None not in loaded["validation"][stage]["AP"]
    assert {key: loaded["test"]["difference"]["AP"][key][3] for key in ("value", "low", "high", "resamples")} == {
        "value": None,
        "low": None,
        "high": None,
        "resamples": 0,
    }
    assert loaded["chosen"] == ["polish", "ga", "polish", "backbone", "backbone"]
    assert loaded["untuned"] == {"untuned": "no known positive in train"}
    assert loaded["seconds"] == {"search": 1.5}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_scores_are_scikit_learns_on_known_labels_and_means_leave_undefined_categories_out(written, split):
    _, found, _ = written
    data = make_run()["embeddings"][split]
    for block, stage in enumerate(STAGES):
        for name, mean, oracle in (
            ("AP", "mAP", average_precision_score),
            ("AUROC", "mAUC", roc_auc_score),
        ):
            expected = []
            for c in range(C):
                known = data.known[:, c]
                if (split, c) != ("test", 3):
                    expected.append(oracle(data.labels[known, c], data.z[known, block * C + c]))
                    assert found[split][stage][name][c] == pytest.approx(expected[-1], abs=1e-6)
            assert found[split][stage][mean] == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_difference_is_final_minus_backbone_with_an_interval_of_the_paired_resamples(written):
    _, found, _ = written
    test = found["test"]
    data = make_run()["embeddings"]["test"]
    both = np.stack([data.z[:, :C], data.z[:, 3 * C :]])
    drawn = bootstrap.resample(both, data.labels, data.known, resamples=RESAMPLES)
    for name, mean in (("AP", "mAP"), ("AUROC", "mAUC")):
        difference = test["difference"][mean]
        assert difference["value"] == pytest.approx(test["final"][mean] - test["backbone"][mean], abs=1e-6)
        assert difference["value"] > 0.1
        before, after = getattr(drawn, name)
        ends = np.percentile(np.nanmean((after - before)[:, [0, 1, 2, 4]], axis=1), [2.5, 97.5])
        np.testing.assert_allclose([difference["low"], difference["high"]], ends, atol=1e-6)
        each = test["difference"][name]
        assert each["value"][0] == pytest.approx(test["final"][name][0] - test["backbone"][name][0], abs=1e-6)
        np.testing.assert_allclose(
            [each["low"][0], each["high"][0]],
            np.percentile((after - before)[:, 0], [2.5, 97.5]),
            atol=1e-6,
        )
        assert each["resamples"][0] == difference["resamples"] == RESAMPLES
    assert test["difference"]["resampled"] == "images"


def test_known_labels_are_counted_per_split_and_category(written):
    _, found, _ = written
    for split, data in make_run()["embeddings"].items():
        assert found["known"][split]["positive"] == np.sum(data.labels & data.known, axis=0).tolist()
        assert found["known"][split]["negative"] == np.sum(~data.labels & data.known, axis=0).tolist()
    assert found["known"]["train"]["positive"][4] == 0
    assert found["known"]["test"]["positive"][3] == 0


def test_groups_are_resampled_whole(tmp_path):
    run = make_run(groups=True)
    scores = report.measure(run["embeddings"]["test"], run["heads"], resamples=RESAMPLES, seed=0)
    data = run["embeddings"]["test"]
    both = np.stack([data.z[:, :C], data.z[:, 3 * C :]])
    drawn = bootstrap.resample(both, data.labels, data.known, groups=data.groups, resamples=RESAMPLES)
    np.testing.assert_array_equal(scores.resampled.AP, drawn.AP)
    assert report.to_dict(scores)["difference"]["resampled"] == "groups"


def test_groups_of_categories_and_blocks_of_rows_do_not_change_a_score(monkeypatch):
    run = make_run()
    data = run["embeddings"]["test"]
    whole = report.measure(data, run["heads"], resamples=RESAMPLES, seed=0)
    monkeypatch.setattr(report, "LOGITS_BYTES", 4 * 4 * len(data) * 2)
    monkeypatch.setattr(report, "ROWS_AT_ONCE", 16)
    parts = report.measure(data, run["heads"], resamples=RESAMPLES, seed=0)
    for stage in STAGES:
        np.testing.assert_array_equal(parts.points[stage]["AP"], whole.points[stage]["AP"])
    np.testing.assert_array_equal(parts.resampled.AUROC, whole.resampled.AUROC)
    np.testing.assert_array_equal(parts.bins["final"].count, whole.bins["final"].count)


def test_embeddings_of_each_categorys_own_score_as_the_shared_ones_do():
    run = make_run()
    data = run["embeddings"]["test"]
    own = Embeddings(np.repeat(data.z[:, None, :], C, axis=1), data.labels, data.known)
    for some in (slice(0, C), slice(2, 4)):
        shared_logits = report.logits(run["heads"], data, some)
        for stage, found in report.logits(run["heads"], own, some).items():
            np.testing.assert_allclose(found, shared_logits[stage], atol=1e-6)
            np.testing.assert_allclose(found, data.z[:, STAGES.index(stage) * C :][:, some], atol=1e-6)


def test_the_table_shows_each_category_the_means_and_who_was_left_alone(written):
    folder, found, printed = written
    text = (folder / "table.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    rows = {line[0]: line for line in numbers(text) if line}
    test = found["test"]
    cat = rows["cat"]
    known = found["known"]["train"]
    assert cat[1:3] == [str(known["positive"][0]), str(known["negative"][0])]
    assert cat[3:7] == [f"{100 * test[stage]['AP'][0]:.2f}" for stage in STAGES]
    assert cat[7] == "polish"
    change = test["difference"]["AP"]
    assert " ".join(cat[8:]) == (
        f"{100 * change['value'][0]:+.2f} [{100 * change['low'][0]:+.2f}, {100 * change['high'][0]:+.2f}]"
    )
    assert rows["mAP"][1:5] == [f"{100 * test[stage]['mAP']:.2f}" for stage in STAGES]
    assert rows["mAUC"][4] == f"{100 * test['final']['mAUC']:.2f}"
    assert "[red]bird[/red]" in text  # a name is a name, not markup
    assert "Left as before (no known positive in train): untuned." in text
    assert "AP undefined on test (left out of the mean): no test positive." in text
    assert numbers(printed) == numbers(text)


def test_the_csv_holds_every_category_and_the_mean_at_full_precision(written):
    folder, found, _ = written
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == [*CATEGORIES, "mean"]
    assert float(rows[0]["AUROC_final"]) == found["test"]["final"]["AUROC"][0]
    assert float(rows[0]["AP_difference_low"]) == found["test"]["difference"]["AP"]["low"][0]
    assert rows[3]["AP_final"] == ""
    assert rows[4]["untuned"] == "no known positive in train"
    assert float(rows[-1]["AP_final"]) == found["test"]["final"]["mAP"]
    assert float(rows[-1]["AUROC_difference"]) == found["test"]["difference"]["mAUC"]["value"]
    assert {row["split"] for row in rows} == {"test"}


def test_without_a_test_split_everything_is_labelled_validation(tmp_path):
    run = make_run()
    del run["embeddings"]["test"]
    found, printed = write(tmp_path, embeddings=run["embeddings"], metric="AUROC", records=make_records(31))
    assert "test" not in strict_json(tmp_path / "metrics.json")
    assert "AUROC in % on validation" in printed
    assert "optimistic" in printed
    assert "resamples of the validation images" in printed
    assert [line[0] for line in numbers(printed) if line][-4:-2] == ["mAUC", "mAP"]
    assert (tmp_path / "validation_images.png").exists()
    assert not (tmp_path / "test_images.png").exists()
    assert found["validation"]["difference"]["mAUC"]["value"] is not None


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("c", [14, 80])
def test_numbers_are_never_cut_whatever_the_width(written, width, c):
    _, found, _ = written
    long = {"categories": [f"a category of some length, number {i}" for i in range(c)], "metric": "AP", "untuned": {}}
    long["chosen"] = ["backbone"] * c
    long["known"] = {"train": {"positive": [123456] * c, "negative": [1000000] * c}}
    test = {stage: {"AP": [1.0] * c, "mAP": 1.0, "mAUC": 1.0} for stage in STAGES}
    each = {"value": [-0.125] * c, "low": [-0.25] * c, "high": [-0.1] * c, "resamples": [9] * c}
    mean = {"value": -0.125, "low": -0.25, "high": -0.1, "resamples": 9}
    long["test"] = test | {"difference": found["test"]["difference"] | {"AP": each, "mAP": mean, "mAUC": mean}}
    out = Console(file=io.StringIO(), width=width, record=True)
    out.print(tables.table(long, width=width))
    text = out.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("123,456") == c
    assert text.count("[-25.00, -10.00]") == c + 2
    assert text.count("100.00") == (c + 2) * (4 if width == 120 else 2)


def test_of_very_many_categories_the_largest_changes_are_shown(written):
    _, found, _ = written
    out = Console(file=io.StringIO(), width=120, record=True)
    out.print(tables.table(found, most_rows=2))
    changes = [x if x is not None else 0.0 for x in found["test"]["difference"]["AP"]["value"]]
    defined = [i for i in range(C) if i != 3]
    extremes = {min(defined, key=changes.__getitem__), max(defined, key=changes.__getitem__)}
    text = out.export_text()
    assert {i for i in range(C) if CATEGORIES[i][:20] in text} == extremes
    assert any("2 of 5 categories shown" in note for note in tables.notes(found, most_rows=2))


def test_colour_marks_only_changes_whose_interval_excludes_zero():
    for value, low, high, style in ((0.1, 0.05, 0.2, "green"), (-0.1, -0.2, -0.05, "red"), (0.1, -0.1, 0.2, "")):
        assert tables._difference(value, low, high).style == style


def test_the_figures_are_written_and_not_blank(written):
    folder, _, _ = written
    for name in ("before_after", "search_history", "reliability", "test_images"):
        image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB")).astype(int)
        assert min(image.shape[:2]) > 300
        assert 0.01 < (image.min(-1) < 200).mean() < 0.9
        assert has_colour(image, (255, 255, 255))
    assert not list(folder.glob("*.partial"))


def test_an_older_sheet_of_images_is_not_left_beside_a_report_without_one(tmp_path):
    (tmp_path / "test_images.png").write_bytes(b"old")
    write(tmp_path)
    assert not (tmp_path / "test_images.png").exists()


def test_rises_are_blue_and_falls_orange():
    names, before = ["a", "b"], np.array([0.4, 0.5], np.float32)
    rises = pixels(figures.before_after(names, before, before + np.float32(0.1), metric="AP", split="test"))
    falls = pixels(figures.before_after(names, before, before - np.float32(0.1), metric="AP", split="test"))
    assert has_colour(rises, BLUE)
    assert not has_colour(rises, ORANGE)
    assert has_colour(falls, ORANGE)


def test_before_after_sorts_by_change_and_breaks_many_categories_into_columns():
    c = 90
    after = np.linspace(0.1, 0.9, c, dtype=np.float32)
    names = [f"c{i}" for i in range(c)]
    figure = figures.before_after(names, np.full(c, 0.5, np.float32), after, metric="AP", split="test")
    assert len(figure.axes) == 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:2] == ["c89", "c88"]
    assert [label.get_text() for label in figure.axes[2].get_yticklabels()][-1] == "c0"


@pytest.mark.parametrize("c", [1, 3, 20, 21])
@pytest.mark.parametrize("flat", [False, True])
def test_the_search_is_drawn_for_few_and_many_categories_and_for_no_gain(c, flat):
    generation = np.arange(5)
    score = np.repeat(np.linspace(0.2, 0.2 if flat else 0.6, 5)[:, None], c, axis=1)
    figure = figures.search_history([f"c{i}" for i in range(c)], generation, score, metric="AUROC")
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), 100 * score[:, 0])


def test_a_stopped_category_keeps_its_score_in_the_mean_of_the_search():
    score = np.array([[0.2, 0.4], [0.3, 0.6], [np.nan, 0.8], [np.nan, np.nan]])
    figure = figures.search_history(["a", "b"], np.arange(4), score, metric="AP")
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [30, 45, 55])


@pytest.mark.parametrize("name", ["before_after", "search_history", "reliability"])
def test_a_figure_without_data_says_why(name):
    nothing = np.full(2, np.nan)
    drawn = {
        "before_after": lambda: figures.before_after(["a", "b"], nothing, nothing, metric="AP", split="test"),
        "search_history": lambda: figures.search_history(["a", "b"], np.arange(1), nothing[None], metric="AP"),
        "reliability": lambda: figures.reliability(
            {"x": reliability.bins(np.ones((2, 1)), np.ones((2, 1), bool), np.zeros((2, 1), bool))}, split="test"
        ),
    }[name]()
    assert not drawn.axes
    assert len(drawn.texts[0].get_text()) > 20


def test_the_sheet_marks_what_is_present_absent_and_not_known():
    probs = np.array([[0.9, 0.8, 0.7, 0.1]])
    labels, known = np.array([[True, False, False, True]]), np.array([[True, True, False, True]])
    image = np.zeros((8, 8, 3), np.uint8)
    figure = figures.image_sheet([image], ["a", "b", "c", "d"], probs, labels, known, split="test", bars=3)
    picture, bars = figure.axes
    assert picture.get_title() == "a, d"
    assert [text.get_text() for text in bars.texts] == ["✓ a", "90", "✗ b", "80", "? c", "70"]


def test_reliability_bins_and_calibration_error_by_hand():
    probs = np.array([[0.01, 0.99], [0.03, 0.99], [0.5, 0.99], [1.0, np.nan]])
    labels = np.array([[False, True], [True, True], [True, False], [True, True]])
    known = np.array([[True, True], [True, True], [False, True], [True, True]])
    found = reliability.bins(probs, labels, known)
    assert (found.count[0], found.positive[0], found.count[-1], found.positive[-1]) == (2, 1, 4, 3)
    assert found.predicted[0] == pytest.approx(0.02)
    assert found.observed[-1] == pytest.approx(0.75)
    assert np.isnan(found.observed[7])
    expected = (2 * abs(0.5 - 0.02) + 4 * abs(0.75 - (3 * 0.99 + 1) / 4)) / 6
    assert found.calibration_error == pytest.approx(expected)
    assert (found + found).calibration_error == pytest.approx(expected)
    np.testing.assert_allclose(reliability.probabilities(np.array([[-1e4, 0, 1e4]])), [[0, 0.5, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": ["ga"]}, "chosen has 1 categories, but 5 are named"),
        ({"heads": {"backbone": stage_heads()["backbone"]}}, "lacks the stage ga, polish, final"),
        ({"embeddings": {"train": make_split(3, 0)}}, "lacks the split validation"),
        ({"records": make_records(3)}, "records has 3 images, but the embeddings of test have 40"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "report", **changes)
    assert not (tmp_path / "report").exists()
