import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score

from cftjax.config import ReportConfig
from cftjax.report import contents, printing, tables
from cftjax.report import write as report
from cftjax.report.contents import Results
from cftjax.scores import bootstrap, logits, predictions
from cftjax.types import Embeddings, Heads, Labels, Records

CATEGORIES = (
    "fox",
    "dog $x$ and a name of forty letters or so",
    "[red]bird[/red]",
    "no test positive",
    "untuned",
    "mouse",
)
C = len(CATEGORIES)
RESAMPLES = 40
STAGES = ("backbone", "ga", "polish", "final")


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
    embeddings = {
        name: make_split(n, len(name), groups) for name, n in (("train", 30), ("validation", 40), ("test", 40))
    }
    embeddings["test"].known[:, 3] &= ~embeddings["test"].labels[:, 3]
    embeddings["train"].known[:, 4] = False
    score = np.full((3, C), 0.5)
    score[1:, 0] = 0.7
    score[:, 4] = np.nan
    return {
        "categories": CATEGORIES,
        "embeddings": embeddings,
        "heads": stage_heads(),
        "chosen": ["polish", "ga", "polish", "backbone", "backbone", "ga"],
        "untuned": {"untuned": "no known positive in train"},
        "history": {"generation": np.arange(3), "score": score},
        "metric": "AP",
        "seconds": {"search": 1.5},
        "config": ReportConfig(resamples=RESAMPLES),
        "title": "a run",
    }


def make_records(n):
    labels = Labels(*(np.zeros((n, C), bool) for _ in range(3)))
    return Records(lambda row: np.full((20, 30, 3), row, np.uint8), labels, [str(row) for row in range(n)])


def write(folder, **changes):
    out = io.StringIO()
    found = report.write(folder, Results(**(make_run() | changes)), console=Console(file=out, width=120))
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
    assert loaded["chosen"] == ["polish", "ga", "polish", "backbone", "backbone", "ga"]
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
        before, after = drawn[name]
        ends = np.percentile(np.nanmean((after - before)[:, [0, 1, 2, 4, 5]], axis=1), [2.5, 97.5])
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


def measured(run):
    return contents.measured(Results(**run), "test")


def test_groups_are_resampled_whole():
    run = make_run(groups=True)
    found, data = measured(run), run["embeddings"]["test"]
    both = np.stack([data.z[:, :C], data.z[:, 3 * C :]])
    drawn = bootstrap.resample(both, data.labels, data.known, groups=data.groups, resamples=RESAMPLES)
    assert list(found.resampled["AP"]) == [0, 3]  # backbone and final
    np.testing.assert_array_equal(list(found.resampled["AP"].values()), drawn["AP"])
    assert contents.of_split(found)["difference"]["resampled"] == "groups"


def test_groups_of_categories_and_blocks_of_rows_do_not_change_a_score(monkeypatch):
    run = make_run()
    whole = measured(run)
    monkeypatch.setattr(logits, "BLOCK_BYTES", 16 * 8 * len(run["embeddings"]["test"]) * 2)
    monkeypatch.setattr(logits, "ROWS_AT_ONCE", 16)
    parts = measured(run)
    for one, other in zip(parts.scores, whole.scores, strict=True):
        np.testing.assert_array_equal(one.each["AP"], other.each["AP"])
    np.testing.assert_array_equal(parts.resampled["AUROC"][3], whole.resampled["AUROC"][3])
    np.testing.assert_array_equal(parts.scores[3].bins.count, whole.scores[3].bins.count)


def test_embeddings_are_read_once_for_all_stages_of_a_group_of_categories(monkeypatch):
    asked, whole = [], logits.logits

    def counted(heads, embeddings, some):
        asked.append(some)
        return whole(heads, embeddings, some)

    monkeypatch.setattr(predictions, "logits", counted)
    monkeypatch.setattr(logits, "BLOCK_BYTES", 16 * 8 * 40 * 2)
    measured(make_run())
    assert asked == [slice(0, 2), slice(2, 4), slice(4, 6)]


def test_embeddings_of_each_categorys_own_score_as_the_shared_ones_do():
    run = make_run()
    data = run["embeddings"]["test"]
    own = Embeddings(np.repeat(data.z[:, None, :], C, axis=1), data.labels, data.known)
    for some in (slice(0, C), slice(2, 4)):
        shared = logits.logits(run["heads"], data, some)
        for stage, found in logits.logits(run["heads"], own, some).items():
            np.testing.assert_allclose(found, shared[stage], atol=1e-6)
            np.testing.assert_allclose(found, data.z[:, STAGES.index(stage) * C :][:, some], atol=1e-6)


def test_the_table_shows_each_category_the_means_and_who_was_left_alone(written):
    folder, found, printed = written
    text = (folder / "table.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    rows = {line[0]: line for line in numbers(text) if line}
    test = found["test"]
    fox = rows["fox"]
    known = found["known"]["train"]
    assert fox[1:3] == [str(known["positive"][0]), str(known["negative"][0])]
    assert fox[3:7] == [f"{100 * test[stage]['AP'][0]:.2f}" for stage in STAGES]
    assert fox[7] == "polish"
    change = test["difference"]["AP"]
    assert " ".join(fox[8:]) == (
        f"{100 * change['value'][0]:+.2f} [{100 * change['low'][0]:+.2f}, {100 * change['high'][0]:+.2f}]"
    )
    assert rows["mAP"][1:5] == [f"{100 * test[stage]['mAP']:.2f}" for stage in STAGES]
    assert rows["mAUC"][4] == f"{100 * test['final']['mAUC']:.2f}"
    assert "[red]bird[/red]" in text  # a name is a name, not markup
    assert "Left as the backbone had them (no known positive in train): untuned." in text
    assert "AP undefined on test, left out of the mean: no known positive of no test positive." in text
    assert numbers(printed) == numbers(text)


def test_images_left_out_are_named_below_the_table_and_not_drawn(tmp_path):
    run = make_run()
    names = [str(row) for row in range(7)]
    run["embeddings"]["train"] = dataclasses.replace(run["embeddings"]["train"], unopened=("a.jpg",))
    run["embeddings"]["test"] = dataclasses.replace(run["embeddings"]["test"], unopened=names)

    def image(row):
        assert row >= 7, "opened an image that cannot be opened"
        return np.zeros((8, 8, 3), np.uint8)

    records = dataclasses.replace(make_records(40), image=image)
    found, printed = write(tmp_path, embeddings=run["embeddings"], records=records)
    assert found["unopened"] == {"train": ["a.jpg"], "validation": [], "test": names}
    assert "1 image of train could not be opened: a.jpg; left out." in printed
    assert "7 images of test could not be opened: 0, 1, 2, 3, 4 and 2 more; left out." in printed
    assert "of validation could not" not in printed
    assert (tmp_path / "test_images.png").is_file()


def test_a_split_of_which_no_image_could_be_opened_has_no_sheet_of_them(tmp_path):
    run = make_run()["embeddings"]
    run["test"] = dataclasses.replace(run["test"], unopened=[str(row) for row in range(40)])
    write(tmp_path, embeddings=run, records=make_records(40))
    assert not (tmp_path / "test_images.png").exists()


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
    found, printed = write(tmp_path, embeddings=run["embeddings"], metric="AUROC", records=make_records(40))
    assert "test" not in strict_json(tmp_path / "metrics.json")
    assert "AUROC in % on validation" in printed
    assert "optimistic" in printed
    assert "resamples of the validation images" in printed
    means = [line[0] for line in numbers(printed) if line and line[0] in ("mAP", "mAUC")]
    assert means == ["mAUC", "mAP"]
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
    lines = [line.strip() for line in out.export_text().splitlines()]
    assert {i for i in range(C) if any(line.startswith(CATEGORIES[i][:20]) for line in lines)} == extremes
    assert any("2 of 6 categories shown" in note for note in tables.notes(found, most_rows=2))


def test_colour_marks_only_changes_whose_interval_excludes_zero():
    for value, low, high, style in ((0.1, 0.05, 0.2, "green"), (-0.1, -0.2, -0.05, "red"), (0.1, -0.1, 0.2, "")):
        assert printing.change({"value": value, "low": low, "high": high}).style == style


def test_the_figures_are_written_and_not_blank(written):
    folder, _, _ = written
    for name in ("before_after", "search_history", "reliability", "test_images"):
        image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB")).astype(int)
        assert min(image.shape[:2]) > 300
        assert 0.01 < (image.min(-1) < 200).mean() < 0.9
        assert (image == 255).all(-1).mean() > 0.1
    assert not list(folder.glob(".*"))


def test_an_older_sheet_of_images_is_not_left_beside_a_report_without_one(tmp_path):
    (tmp_path / "test_images.png").write_bytes(b"old")
    write(tmp_path)
    assert not (tmp_path / "test_images.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": ["ga"]}, "chosen has 1 categories, but 6 are named"),
        ({"heads": {"backbone": stage_heads()["backbone"]}}, "lacks the stage ga, polish, final"),
        ({"embeddings": {"train": make_split(3, 0)}}, "give test, or at least validation"),
        ({"records": make_records(3)}, "records has 3 images, but the embeddings of test have 40"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "report", **changes)
    assert not (tmp_path / "report").exists()
