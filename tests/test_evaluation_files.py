import dataclasses
import json

import numpy as np
import pytest

from cftjax import decisions
from cftjax.config import DecideConfig
from cftjax.data import meaning
from cftjax.data.reading.problems import DataError
from cftjax.evaluation import content, files
from cftjax.evaluation import models as members
from cftjax.evaluation.models import Reading
from cftjax.scores import measure
from cftjax.scores.predictions import Truth

TRUTH = "Study,Edema,Pleural Effusion,Fracture\np1,1,0,\np2,0,1,-1\np3,1.0,,0\n"
MODEL = "remark,Pleural Effusion, Edema ,Study\nx,.25,0.1,p9\n\n,0.5,1,p3\ny,2.5e-1,0.75 ,p1\n,0.125,0,p2\n"


@pytest.fixture
def read(tmp_path):
    """Labels and predictions of CSV files given as text; the first is the truth."""

    def of(truth, *models, **reading):
        paths = []
        for name, text in zip(["truth", *"abc"], (truth, *models), strict=False):
            paths.append(tmp_path / f"{name}.csv")
            paths[-1].write_text(text)
        found, predictions = members.of_files(paths[1:], list("abc"[: len(models)]), paths[0], Reading(**reading))
        return found, [model.block(slice(0, len(found.categories))).probs for model in predictions]

    return of


def test_rows_and_columns_find_each_other_in_any_order_and_more_of_both_are_left_out(read):
    truth, (probs,) = read(TRUTH, MODEL)
    assert truth.categories == ("Edema", "Pleural Effusion")
    assert truth.names == ("p1", "p2", "p3")
    assert truth.unit == "studies"
    np.testing.assert_array_equal(truth.known, [[True, True], [True, True], [True, False]])
    np.testing.assert_array_equal(truth.labels & truth.known, [[True, False], [False, True], [True, False]])
    np.testing.assert_array_equal(probs, [[0.75, 0.25], [0, 0.125], [1, 0.5]])
    assert truth.notes == ("Columns of truth.csv that no model gives, left out: Fracture.",)


def test_a_category_that_one_model_lacks_is_nan_for_it_and_uncertain_labels_are_not_known(read):
    truth, (a, b) = read(TRUTH, MODEL, "study,Fracture\np3,0.1\np2,0.2\np1,0.3\n")
    assert truth.categories == ("Edema", "Pleural Effusion", "Fracture")
    assert truth.known[:, 2].tolist() == [False, False, True]
    np.testing.assert_array_equal(a[:, 2], [np.nan] * 3)
    np.testing.assert_array_equal(b[:, :2], np.full((3, 2), np.nan))
    assert b[:, 2].tolist() == [0.3, 0.2, 0.1]


REFUSED = {
    "missing": (
        MODEL.replace("p2", "p_2"),
        "1 of the 3 studies of truth.csv are missing: p2; the nearest it has is p_2",
    ),
    "twice": (MODEL + ",0.5,0.5,p1\n", "a.csv: row 7, column Study: 'p1' is there twice, first in row 5"),
    "word": (MODEL.replace("0.125", "high"), "a.csv: row 6, column Pleural Effusion: 'high' is no probability; use"),
    "blank": (MODEL.replace("0.125", " "), "a.csv: row 6, column Pleural Effusion: the cell is blank"),
    "percent": (MODEL.replace("0.125", "12.5"), "row 6, column Pleural Effusion: '12.5' is no probability"),
    "negative": (MODEL.replace("0.125", "-0.1"), "row 6, column Pleural Effusion: '-0.1' is no probability"),
    "nan": (MODEL.replace("0.125", "nan"), "row 6, column Pleural Effusion: 'nan' is no probability"),
    "inf": (MODEL.replace("0.125", "inf"), "row 6, column Pleural Effusion: 'inf' is no probability"),
    "short row": (MODEL + "0.5,p1\n", "row 7: 2 cells where the header has 4"),
    "column twice": (MODEL.replace("remark", "Edema"), "column Edema: the header has this column twice"),
    "no key": (MODEL.replace("Study", "Patient"), "a.csv: no column study or path or image or id names its rows"),
    "other key": (MODEL.replace("Study", "Path"), "its rows are named by Path, those of"),
    "no category": (MODEL.replace("Pleural Effusion", "pleural_effusion").replace("Edema", "Oedema"), "is 'pleural_ef"),
    "blank key": (MODEL.replace("p2", " "), "row 6, column Study: the cell is blank"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_file_is_one_line_with_file_row_and_column(read, kind):
    text, message = REFUSED[kind]
    with pytest.raises(ValueError, match=r"\.csv") as refused:
        read(TRUTH, text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_that_the_truth_lacks_may_hold_anything(read):
    _, (probs,) = read(TRUTH, MODEL.replace(".25,0.1,p9", "?,7,p9") + "?,?,?,p9\n")
    assert probs[0].tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (TRUTH.replace("p1,1", "p1,2"), "truth.csv: row 2, column Edema: '2' is no label"),
        (TRUTH.replace("p2", "p1"), "truth.csv: row 3, column Study: 'p1' is there twice"),
    ],
)
def test_bad_labels_are_refused(read, bad, message):
    with pytest.raises(DataError) as refused:
        read(bad, MODEL)
    assert message in str(refused.value)


def test_near_misses_of_a_column_are_suggested(read):
    truth, _ = read(TRUTH, MODEL.replace("Pleural Effusion", "Pleural_effusion"))
    assert truth.categories == ("Edema",)
    assert "is 'Pleural_effusion' meant to be Pleural Effusion?" in truth.notes[0]


def test_asked_categories_need_be_given_by_the_truth_and_may_lack_in_models(read):
    truth, (probs,) = read(TRUTH, MODEL, categories=("Fracture", "Edema"))
    assert truth.categories == ("Fracture", "Edema")
    assert np.isnan(probs[:, 0]).all()
    with pytest.raises(DataError, match="Fractur: no such column in the table; the nearest is Fracture"):
        read(TRUTH, MODEL, categories=("Fractur",))


VIEWS = "Path,Edema\nx/patient1/study1/a.jpg,0.25\nx/patient1/study1/b.jpg,0.75\nx/patient1/study2/a.jpg,0.5\n"
VIEWS_TRUTH = "path,Edema\npatient1/study2/a,0\npatient1/study1/a,1\npatient1/study1/b,0\npatient1/study1/c,\n"


@pytest.mark.parametrize(("how", "value"), [("max", 0.75), ("mean", 0.5)])
def test_views_become_studies_and_a_positive_view_makes_a_positive_study(read, how, value):
    truth, (probs,) = read(VIEWS_TRUTH, VIEWS, aggregate=how)
    assert truth.names == ("patient1/study2", "patient1/study1")
    assert truth.labels[:, 0].tolist() == [False, True]
    assert truth.known.all()
    assert probs[:, 0].tolist() == [0.5, value]
    assert truth.notes == (
        "Images of one study disagree in 1 labels, first in Edema of patient1/study1; it counts as positive.",
    )


def test_studies_named_as_such_are_found_in_paths_of_views(read):
    truth, (probs,) = read("Study,Edema\nCheX/patient1/study1,1\nCheX/patient1/study2,0\n", VIEWS, aggregate="max")
    assert truth.names == ("patient1/study1", "patient1/study2")
    assert probs[:, 0].tolist() == [0.75, 0.5]
    with pytest.raises(ValueError, match=r"a.csv: row 1 is '7', in which .* finds nothing; give --study"):
        read("id,Edema\npatient1/study1,1\n", "id,Edema\n7,0.5\n", aggregate="max")


def test_rows_that_predict_could_not_open_are_missing_unless_another_view_is_there(read):
    predicted = "path,Edema,Edema decision,error\n{},0.25,0,\n{},,,cannot be read\n"
    paths = ("patient1/study1/a", "patient1/study1/b")
    truth = "path,Edema\n" + "".join(f"{path},1\n" for path in paths)
    _, (probs,) = read(truth, predicted.format(*paths), aggregate="mean")
    assert probs.tolist() == [[0.25]]
    with pytest.raises(DataError, match="are missing: patient1/study1/b; row 3 has the error 'cannot be read'"):
        read(truth, predicted.format(*paths))


def test_what_is_written_is_read_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    truth = Truth(('a "quoted", name', "b", "c"), np.ones((5, 3), bool), np.ones((5, 3), bool), "test")
    truth = dataclasses.replace(truth, names=("x,1", 'y"2', "z", "ü", "w w"))
    probs = rng.random((5, 3))
    given = np.array([True, False, True])
    path = tmp_path / "out" / "all.csv"
    files.write_predictions(path, truth, files.of_array("m", probs, given), "path")
    (tmp_path / "truth.csv").write_text('path,"a ""quoted"", name",c\n"x,1",1,1\n')
    _, (found,) = members.of_files([path], ["m"], truth, Reading())
    np.testing.assert_array_equal(found.block(slice(0, 3)).probs, np.where(given, probs, np.nan))


def test_thresholds_come_from_json_csv_and_a_runs_decisions(tmp_path):
    names = ("Edema", "Fracture")
    (tmp_path / "t.json").write_text(json.dumps({"Fracture": 0.25, "other": 0.3}))
    (tmp_path / "t.csv").write_text("category,threshold\nFracture,0.25\nEdema,\n")
    logits, labels = np.array([[-1.0, 2], [1, -2], [2, 1]]), np.array([[False, True], [True, False], [True, True]])
    config = DecideConfig(calibration="none")
    known = np.ones((3, 2), bool)
    decided = decisions.fit(logits, labels, known, config, categories=names, split="validation")
    decisions.write(tmp_path / "decisions.json", decided)
    for file in ("t.json", "t.csv"):
        np.testing.assert_array_equal(files.read_thresholds(tmp_path / file, names, ["other"]), [np.nan, 0.25])
    np.testing.assert_array_equal(files.read_thresholds(tmp_path / "decisions.json", names), decided.thresholds)
    (tmp_path / "bad.json").write_text('{"Edema": "high"}')
    with pytest.raises(ValueError, match=r"bad.json: the threshold of Edema is 'high'; use a number in"):
        files.read_thresholds(tmp_path / "bad.json", names)
    (tmp_path / "bad.json").write_text('{"edema": 0.5}')
    with pytest.raises(ValueError, match="has a threshold for 'edema', which is no category here; is Edema meant"):
        files.read_thresholds(tmp_path / "bad.json", names)


WRONG_THRESHOLDS = {
    '{"Edema": 1.5}': r"the threshold of Edema is 1\.5; use a number in \[0, 1\], and 0\.5 for 50 %",
    '{"Edema": 50}': "for 50 %",
    '{"Edema": -0.1}': "the threshold of Edema is -0.1; use a number in",
    '{"Edema": "inf"}': "the threshold of Edema is 'inf'",
    '{"Edema": 0.5, "Hernia": 0.5}': "'Hernia', which is no category here; there are Edema, Fracture",
    '{"Edema": null}': "has a threshold for none of Edema, Fracture",
    '[{"category": "Edema", "threshold": 0.5}, {"category": "Edema", "threshold": 0.6}]': "two thresholds of Edema",
}


@pytest.mark.parametrize("text", WRONG_THRESHOLDS)
def test_thresholds_that_cannot_be_meant_are_refused_by_name(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=WRONG_THRESHOLDS[text]):
        files.read_thresholds(tmp_path / "t.json", ["Edema", "Fracture"])


def test_thresholds_may_be_there_for_categories_that_are_not_scored_and_for_none_that_is_reached(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"Edema": decisions.NEVER, "Hernia": 0.5}))
    found = files.read_thresholds(tmp_path / "t.json", ["Edema", "Fracture"], ["Hernia"])
    np.testing.assert_array_equal(found, [decisions.NEVER, np.nan])


SIGNED = "id,cat,dog\n1,1,-1\n2,-1,1\n3,1,-1\n"
OF_SIGNED = "id,cat,dog\n1,0.5,0.4\n2,0.5,0.2\n3,0.6,0.1\n"


def test_a_truth_of_one_and_minus_one_is_asked_about_and_the_answer_is_told(read):
    with pytest.raises(
        DataError, match=r"column cat, dog: -1 stands there and no 0; .*--minus-one negative, uncertain"
    ):
        read(SIGNED, OF_SIGNED)
    truth, _ = read(SIGNED, OF_SIGNED, minus_one=meaning.parse("negative", "--minus-one"))
    np.testing.assert_array_equal(truth.labels, [[True, False], [False, True], [True, False]])
    assert truth.known.all()
    assert truth.notes == ("In truth.csv -1 is negative in cat, dog.",)


@pytest.mark.parametrize("ids", [("0001", "0002", "0003"), ("1.0", "2.0", "3.0")])
def test_ids_that_are_equal_as_numbers_are_told(read, ids):
    predicted = OF_SIGNED
    for number, name in enumerate(ids, 1):
        predicted = predicted.replace(f"\n{number},", f"\n{name},")
    message = rf"3 of them are there as numbers: it has {', '.join(ids)} for 1, 2, 3; write them alike"
    with pytest.raises(ValueError, match=message):
        read(SIGNED.replace("-1", "0"), predicted)


def table(values):
    """Ids and two columns of numbers."""
    return "\n".join(["id,cat,dog", *(f"{i},{float(a)!r},{float(b)!r}" for i, (a, b) in enumerate(values))]) + "\n"


def test_numbers_outside_of_zero_and_one_are_scores_where_they_are_many_and_slips_where_they_are_few(tmp_path):
    values = np.random.default_rng(0).normal(0, 3, (40, 2))
    (tmp_path / "truth.csv").write_text(table(values > 0))
    (tmp_path / "a.csv").write_text(table(values))
    (tmp_path / "b.csv").write_text(table(np.where(np.arange(80).reshape(40, 2) == 7, 1.5, np.abs(np.tanh(values)))))
    _, (found,) = members.of_files([tmp_path / "a.csv"], ["a"], tmp_path / "truth.csv", Reading())
    assert (found.only_ranks, found.calibrated) == (True, False)
    np.testing.assert_array_equal(found.block(slice(0, 2)).scores, values)
    assert np.isnan(found.block(slice(0, 2)).probs).all()
    assert "a gives scores from" in found.note
    with pytest.raises(
        DataError, match=r"row 5, column dog: '1.5' is no probability; use numbers in .* or say --scores"
    ):
        members.of_files([tmp_path / "b.csv"], ["b"], tmp_path / "truth.csv", Reading())
    _, (found,) = members.of_files([tmp_path / "b.csv"], ["b"], tmp_path / "truth.csv", Reading(scores=True))
    assert found.only_ranks


def test_scores_are_ranked_and_ensembled_by_rank_and_have_nothing_that_needs_probabilities(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (40, 2))
    (tmp_path / "truth.csv").write_text(table(values + rng.normal(0, 3, (40, 2)) > 0))
    (tmp_path / "a.csv").write_text(table(values))
    (tmp_path / "b.csv").write_text(table(1 / (1 + np.exp(-values))))
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    truth, models = members.of_files(paths, ["a", "b"], tmp_path / "truth.csv", Reading())
    with pytest.raises(
        ValueError, match="--combine mean needs probabilities, and a gives scores: use --combine rank, or"
    ):
        content.with_ensemble(truth, models, "mean", metric="AP")
    made = content.with_ensemble(truth, models, "rank", metric="AP")
    measured = measure.measure(truth, made.each, measure.Asked(resamples=0))
    a, b, whole = (scores.overall for scores in measured.scores)
    # b is a in other words, so that all rank alike.
    assert a["mAP"] == pytest.approx(b["mAP"], abs=1e-9) == pytest.approx(whole["mAP"], abs=1e-9)
    assert a["mAUC"] == pytest.approx(whole["mAUC"], abs=1e-9)
    for name in ("micro_AP", "ECE", "CP", "CR", "CF1", "OP", "OR", "OF1", "mF1"):
        assert np.isnan(a[name]), name
        assert not np.isnan(b[name]), name
    out = content.to_dict(made, measured, metric="AP", resamples=0, seed=0)
    assert out["models"][0]["each"]["threshold"] == [None, None]
    assert any("a gives scores from" in note for note in out["notes"])
    assert any("none for a, which gives scores" in note for note in out["notes"])
