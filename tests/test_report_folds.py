import csv
import json

import numpy as np
import pytest
from scipy import stats

import cftjax
from cftjax.evaluation import files
from cftjax.report import folds
from cftjax.stages import pooled


def fold(before, final, images=10):
    def split(scores):
        defined = [score for score in scores if score is not None]
        mean = sum(defined) / len(defined)
        return {"AP": scores, "mAP": mean, "AUROC": scores, "mAUC": mean}

    return {
        "metric": "AP",
        "categories": ["cat", "[b]dog"],
        "images": {"test": images},
        "test": {"backbone": split(before), "final": split(final)},
    }


FOLDS = [fold([0.5, 0.4], [0.6, None]), fold([0.6, 0.4], [0.8, 0.5]), fold([0.7, 0.4], [0.7, None], 11)]


def test_intervals_are_those_of_student():
    scores = [0.6, 0.8, 0.7]
    found = folds.summarise(FOLDS)["cat"]["final"]
    low, high = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
    np.testing.assert_allclose(found, (np.mean(scores), low, high, 3))


def test_folds_in_which_a_category_is_undefined_do_not_count():
    row = folds.summarise(FOLDS)["[b]dog"]
    assert (row["final"].mean, row["final"].folds, row["change"].folds) == (0.5, 1, 1)
    assert np.isnan(row["final"].low)


def test_changes_are_taken_fold_by_fold():
    assert folds.summarise(FOLDS)["cat"]["change"].mean == pytest.approx((0.1 + 0.2 + 0.0) / 3)


def test_text_csv_and_json_say_the_same(tmp_path, capsys):
    folds.write(tmp_path, FOLDS)
    text = (tmp_path / "folds.txt").read_text()
    assert "AP in % over 3 folds, 31 images tested once each" in text
    assert "[b]dog" in text
    assert "+10.00 [" in text
    assert "mAUC" in capsys.readouterr().out
    rows = (tmp_path / "folds.csv").read_text().splitlines()
    assert rows[0].startswith("category,before mean,before low")
    assert [row.split(",")[0] for row in rows[1:]] == ["cat", "[b]dog", "mAP", "mAUC"]
    assert json.loads((tmp_path / "folds.json").read_text())["cat"]["final"]["mean"] == pytest.approx(0.7)


def test_what_folds_say_of_all_images_has_each_image_once_by_the_fold_that_tested_it(image_runs, tmp_path):
    folders = [run.folder for run in image_runs[1].values()]
    path = pooled.write(tmp_path, folders)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    each = [cftjax.open_run(folder) for folder in folders]
    assert [row["fold"] for row in rows] == ["0"] * 11 + ["1"] * 11
    for run, some in zip(each, (rows[:11], rows[11:]), strict=True):
        assert [row["path"] for row in some] == run.names("test")
        expected = run.decisions().probabilities(run.heads("final")(run.embeddings("test").z))
        np.testing.assert_allclose([[float(row[name]) for name in run.categories] for row in some], expected, rtol=1e-6)


def test_predictions_that_do_not_fit_into_memory_are_left_out(image_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_CELLS", 32)
    assert pooled.write(tmp_path, [image_runs[1]["tiny_mean"].folder]) is None
    assert list(tmp_path.iterdir()) == []
