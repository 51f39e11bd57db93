import contextlib
import csv
import dataclasses
import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import toy
from rich.console import Console
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from cftjax import cli, evaluate, runs
from cftjax import decisions as decided
from cftjax.config import DecideConfig, TuningConfig
from cftjax.embeddings import embed
from cftjax.evaluation import pictures, tables
from cftjax.runtime import storage
from cftjax.scores import reliability

CATEGORIES = ("fox", "dog $x$", "[red]owl[/red]")
STUDIES = 48


def make_run(folder, seed, *, names=True, data=0, groups=True):
    """A finished run of toy embeddings: two views of each study, two studies of each patient."""
    run = runs.create(folder, TuningConfig(), CATEGORIES, "toy")
    made = {}
    for split, offset in (("validation", 10), ("test", 20)):
        split_data = toy.embeddings(seed=data + offset)
        n = len(split_data)
        group = np.arange(n) // 4 if groups else None
        made[split] = dataclasses.replace(split_data, groups=group)
        embed.save(run.folder / "embeddings" / split, made[split])
        if names:
            paths = [f"{split}/patient{i // 4}/study{i // 2 % 2 + 1}/view{i % 2}.jpg" for i in range(n)]
            storage.write_json(run.folder / "embeddings" / split / embed.NAMES, paths)
    heads = toy.heads(seed=seed)
    storage.write_heads(run.folder / "heads" / "final" / "heads.npz", heads)
    seen = made["validation"]
    fitted = decided.fit(
        heads(seen.z), seen.labels, seen.known, DecideConfig(), categories=CATEGORIES, split="validation"
    )
    decided.write(run.folder / "decisions" / runs.DECISIONS, fitted)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs, and files of predictions and labels of other programs."""
    made = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate("abc"):
        make_run(made / name, seed)
    rng = np.random.default_rng(0)
    for split, n in (("", 40), ("_val", 60)):
        labels = rng.random((n, 3)) < 0.4
        with (made / f"truth{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [["Study", *CATEGORIES], *([f"s{i}", *row] for i, row in enumerate(labels.astype(int).tolist()))]
            )
        for noise, (name, columns) in enumerate({"x": [2, 0, 1], "y": [1, 0]}.items()):
            probs = reliability.probabilities(2.0 * labels - 1 + (1 + noise) * rng.normal(size=labels.shape))
            rows = [[f"s{i}", *probs[i, columns].tolist()] for i in rng.permutation(n).tolist()]
            with (made / f"{name}{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["Study", *(CATEGORIES[c] for c in columns)], *rows])
    return made


@pytest.fixture
def call(monkeypatch, capsys, folder):
    """What `cftjax evaluate WORDS` prints, within the folder; its error where it fails."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CFTJAX_TRACEBACK", raising=False)

    def of(*words, fails=False, drawn=False):
        if not drawn:
            monkeypatch.setattr(pictures, "draw", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words), *([] if fails else ["--resamples", "25"])])
        with pytest.raises(SystemExit) if fails else contextlib.nullcontext():
            cli.run(evaluate.main)
        out = capsys.readouterr()
        return out.err if fails else out.out

    return of


def loaded(path):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads((path / "metrics.json").read_text(), parse_constant=refuse)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_runs_scores_are_those_of_its_final_heads_on_test_by_patient(call, folder, tmp_path):
    out = call("a", "-o", tmp_path / "out", drawn=True)
    found = loaded(tmp_path / "out")
    data, heads = toy.embeddings(seed=20), toy.heads(seed=0)
    logits = np.asarray(heads(data.z))
    model = found["models"][0]
    thresholds = runs.Run(folder / "a").decisions().thresholds
    for c in range(3):
        told = data.known[:, c]
        expected = average_precision_score(data.labels[told, c], logits[told, c])
        assert model["each"]["AP"][c] == pytest.approx(expected, abs=1e-6)
        probs = runs.Run(folder / "a").decisions().probabilities(logits)[told, c]
        hits = (probs >= thresholds[c]) & data.labels[told, c]
        assert model["each"]["recall"][c] == pytest.approx(hits.sum() / data.labels[told, c].sum())
    assert found["bootstrap"] == {"resamples": 25, "drawn": "groups", "seed": 0}
    assert found["ensemble"] is None
    assert found["differences"] == []
    assert "Thresholds: each run's own." in out
    assert "[red]owl[/red]" in out
    for name in ("table.txt", "table.csv", "scores.png", "curves.png", "reliability.png"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    assert (tmp_path / "out" / "table.txt").read_text().splitlines()[0] == "a on test, in %"
    assert max(map(len, (tmp_path / "out" / "table.txt").read_text().splitlines())) <= 120


@pytest.mark.parametrize("combine", ["mean", "rank", "weighted", "greedy"])
def test_runs_stand_beside_their_ensemble_which_is_written_as_predictions(call, folder, tmp_path, combine):
    written = tmp_path / "all.csv"
    out = call("a", "b", "c", "--combine", combine, "-o", tmp_path / "out", "--ensemble-out", written)
    found = loaded(tmp_path / "out")
    assert [model["name"] for model in found["models"]] == ["a", "b", "c", "ensemble"]
    assert [(one["first"], one["second"]) for one in found["differences"]][:3] == [
        ("ensemble", "a"),
        ("ensemble", "b"),
        ("ensemble", "c"),
    ]
    assert len(found["differences"]) == 6
    data = toy.embeddings(seed=20)
    rows = read_csv(written)
    assert [row["path"] for row in rows][:2] == ["test/patient0/study1/view0.jpg", "test/patient0/study1/view1.jpg"]
    probs = np.array([[float(row[name]) for name in CATEGORIES] for row in rows])
    for c in range(3):
        told = data.known[:, c]
        expected = average_precision_score(data.labels[told, c], probs[told, c])
        assert found["models"][3]["each"]["AP"][c] == pytest.approx(expected, abs=1e-6)
    weights = np.array(list(found["ensemble"]["weights"].values()))
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert "The ensemble's: fitted on validation by the rule f1." in out
    if combine == "mean":
        each = [runs.Run(folder / n).decisions().probabilities(toy.heads(seed=i)(data.z)) for i, n in enumerate("abc")]
        np.testing.assert_allclose(probs, np.mean(each, axis=0), rtol=1e-5)
    if combine == "rank":
        assert found["models"][3]["overall"]["ECE"] is None
        assert found["models"][3]["overall"]["OF1"] is not None
    if combine in ("weighted", "greedy"):
        judged = {one["name"]: one for one in found["ensemble"]["validation"]["models"]}
        assert list(judged) == ["a", "b", "c", "equal weights", "fitted"]
        if combine == "greedy":
            assert judged["fitted"]["mAP"] >= max(judged[name]["mAP"] for name in "abc")
        assert "Weights of the members" in out


def test_the_csv_holds_every_model_and_category_and_the_overall_scores(call, tmp_path):
    call("a", "b", "-o", tmp_path)
    found, rows = loaded(tmp_path), read_csv(tmp_path / "table.csv")
    assert [(row["model"], row["category"]) for row in rows] == [
        (model, category) for model in ("a", "b", "ensemble") for category in (*CATEGORIES, "mean")
    ]
    assert float(rows[1]["AP_low"]) == found["models"][0]["intervals"]["AP"]["low"][1]
    assert float(rows[11]["micro_AP"]) == found["models"][2]["overall"]["micro_AP"]
    assert float(rows[11]["F1"]) == found["models"][2]["overall"]["mF1"]
    assert float(rows[0]["weight"]) == 0.5
    assert rows[8]["weight"] == ""


def test_files_of_other_programs_are_measured_and_combined_where_both_give_a_category(call, tmp_path):
    out = call("x.csv", "y.csv", "--truth", "truth.csv", "-o", tmp_path, "--metric", "AUROC")
    found = loaded(tmp_path)
    assert found["unit"] == "studies"
    assert found["metric"] == "AUROC"
    x, y, whole = found["models"]
    assert y["not_given"] == [CATEGORIES[2]]
    assert y["each"]["AP"][2] is None
    assert whole["each"]["AP"][2] == x["each"]["AP"][2]
    assert "y does not give [red]owl[/red]; left out of its means." in out
    assert "Thresholds: 0.5. The ensemble's: the mean of its members'." in out


def test_weights_and_thresholds_of_files_are_fitted_on_their_files_of_validation(call, tmp_path):
    words = ["x.csv", "y.csv", "--truth", "truth.csv", "--combine", "weighted", "-o", tmp_path]
    out = call(*words, "--validation", "x_val.csv", "y_val.csv", "--validation-truth", "truth_val.csv")
    found = loaded(tmp_path)
    weights = found["ensemble"]["weights"]
    assert weights["x"][2] == 1
    assert 0.5 < weights["x"][0] < 1  # x has half the noise
    assert found["ensemble"]["validation"]["source"] == "truth_val.csv"
    assert "Thresholds: fitted on truth_val.csv by the rule f1." in out
    assert found["models"][0]["each"]["threshold"][0] != 0.5


def test_a_written_ensemble_is_a_model_like_any_other_beside_runs(call, tmp_path):
    call("a", "b", "--ensemble-out", tmp_path / "both.csv")
    call("a", "b", "-o", tmp_path / "first")
    call("a", tmp_path / "both.csv", "--combine", "none", "-o", tmp_path / "second")
    first, second = loaded(tmp_path / "first"), loaded(tmp_path / "second")
    assert [model["name"] for model in second["models"]] == ["a", "both"]
    assert second["models"][1]["each"]["AP"] == first["models"][2]["each"]["AP"]
    assert second["models"][1]["intervals"] == first["models"][2]["intervals"]
    assert second["differences"][0]["mAP"] == first["differences"][0]["mAP"]


@pytest.mark.parametrize("how", ["max", "mean"])
def test_studies_of_runs_are_measured_by_all_their_views(call, folder, tmp_path, how):
    call("a", "--aggregate", how, "-o", tmp_path, "--ensemble-out", tmp_path / "studies.csv")
    found, rows = loaded(tmp_path), read_csv(tmp_path / "studies.csv")
    assert found["unit"] == "studies"
    assert found["rows"] == len(rows) == STUDIES
    assert rows[1]["Study"] == "patient0/study2"
    data, heads = toy.embeddings(seed=20), toy.heads(seed=0)
    probs = runs.Run(folder / "a").decisions().probabilities(heads(data.z))
    merged = getattr(np, how)(probs.reshape(STUDIES, 2, 3), axis=1)
    np.testing.assert_allclose([[float(row[name]) for name in CATEGORIES] for row in rows], merged, rtol=1e-5)
    for c in range(3):
        positive = (data.labels & data.known).reshape(STUDIES, 2, 3).any(1)[:, c]
        told = data.known.reshape(STUDIES, 2, 3).any(1)[:, c]
        expected = average_precision_score(positive[told], merged[told, c])
        assert found["models"][0]["each"]["AP"][c] == pytest.approx(expected, abs=1e-6)
    assert any("disagree" in note for note in found["notes"])


def test_thresholds_given_hold_everywhere(call, folder, tmp_path):
    call("a", "b", "--threshold", "0.3", "-o", tmp_path / "one")
    assert {t for model in loaded(tmp_path / "one")["models"] for t in model["each"]["threshold"]} == {0.3}
    own = runs.Run(folder / "a").decisions().thresholds
    out = call("b", "--thresholds", folder / "a" / "decisions" / "decisions.json", "-o", tmp_path / "two")
    assert loaded(tmp_path / "two")["models"][0]["each"]["threshold"] == own.tolist()
    assert "Thresholds: those of decisions.json." in out


def test_without_a_test_split_validation_is_scored_and_said_to_be_optimistic(call, folder):
    make_run(folder / "no_test", 5)
    for file in (folder / "no_test" / "embeddings" / "test").iterdir():
        file.unlink()
    (folder / "no_test" / "embeddings" / "test").rmdir()
    out = call("no_test")
    assert out.startswith("no_test on validation")
    assert "validation was used to choose heads and thresholds, so that these scores are optimistic." in out
    error = "fits weights on validation, and there is no test to report on"
    assert error in call("no_test", "a", "--combine", "greedy", fails=True)


def test_runs_on_other_images_labels_or_categories_are_refused_with_the_first_difference(call, folder):
    make_run(folder / "other", 0, data=100)
    error = call("a", "other", fails=True)
    assert error.startswith("cftjax: error: a and other have other ")
    assert "in test: first row" in error
    other = runs.create(folder / "renamed", TuningConfig(), ("fox", "dog", "cow"), "toy")
    for part in ("embeddings/test", "heads/final", "decisions"):
        (other.folder / part).mkdir(parents=True)
        for file in (folder / "a" / part).iterdir():
            (other.folder / part / file.name).write_bytes(file.read_bytes())
    assert (
        "a and renamed have different categories (only a has [red]owl[/red], dog $x$; only renamed has cow, dog)"
        in (call("a", "renamed", fails=True))
    )
    names = folder / "other" / "embeddings" / "test" / embed.NAMES
    storage.write_json(names, ["z", *storage.read_json(names)[1:]])
    assert "row 0 is test/patient0/study1/view0.jpg and z" in call("a", "other", fails=True)


def test_runs_that_do_not_know_their_images_names_say_what_to_do(call, folder):
    make_run(folder / "old", 0, names=False)
    for words in (["--aggregate", "max"], ["--ensemble-out", "old.csv"], ["x.csv"]):
        assert "delete" in call("old", *words, fails=True)
    assert not (folder / "old.csv").exists()
    assert "fox" in call("old")


REFUSED = {
    "nothing to evaluate": [],
    "name the file of the labels with --truth": ["x.csv"],
    "runs bring their own labels": ["a", "--truth", "truth.csv"],
    "--readers needs labels": ["x.csv", "y.csv", "--ensemble-out", "e.csv", "--readers", "truth.csv"],
    "is not a run (it has no config.json)": ["nowhere"],
    "no such file or folder; the folder . has x.csv": ["X.csv", "--truth", "truth.csv"],
    "is named twice": ["a", "a"],
    "add --validation with one file for each of x.csv, y.csv and --validation-truth": [
        *["x.csv", "y.csv", "--truth", "truth.csv", "--combine", "weighted"]
    ],
    "--validation has 1 files for the 2 files of predictions": [
        *["x.csv", "y.csv", "--truth", "truth.csv", "--validation", "x_val.csv", "--validation-truth", "truth_val.csv"]
    ],
    "y_val.csv: does not give [red]owl[/red], which x gives": [
        *["x.csv", "--truth", "truth.csv", "--validation", "y_val.csv", "--validation-truth", "truth_val.csv"]
    ],
    "--validation and --validation-truth go together": [
        *["x.csv", "--truth", "truth.csv", "--validation", "x_val.csv"]
    ],
    "--threshold 1.5 is no probability": ["a", "--threshold", "1.5"],
    "--threshold and --thresholds": ["a", "--threshold", "0.5", "--thresholds", "t.json"],
    "is no regular expression": ["a", "--aggregate", "max", "--study", "("],
    "finds nothing; give --study": ["a", "--aggregate", "max", "--study", "exam[0-9]+"],
    "--resamples -1 is negative": ["a", "--resamples", "-1"],
    "has no embeddings of train; it has validation, test": ["a", "--split", "train"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_one_line(call, message):
    error = call(*REFUSED[message], fails=True)
    assert message in error
    assert error.startswith("cftjax: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("length", range(11, 19))
@pytest.mark.parametrize("width", [80, 120])
def test_no_column_is_lost_whatever_the_length_of_a_runs_name(call, folder, tmp_path, length, width):
    name, other = tmp_path / ("r" * length), tmp_path / ("s" * length)
    for path, source in ((name, "a"), (other, "b")):
        shutil.copytree(folder / source, path)
    call(name, other, "-o", tmp_path / "out")
    out = Console(file=io.StringIO(), width=width, record=True)
    for table in tables.tables_of(loaded(tmp_path / "out"), width=width):
        out.print(table)
    text = out.export_text()
    assert max(map(len, text.splitlines())) <= width
    heads = [line.split() for line in text.splitlines() if line.split()[:1] == ["model"]]
    assert [head[-1] for head in heads] == ["ECE"]
    row = next(line for line in text.split("Models on")[1].splitlines() if line.strip().startswith("s"))
    assert re.search(r"\d+\.\d\d\s*$", row)


def test_names_that_begin_like_formulas_come_back_as_they_were(call, tmp_path):
    truth, probs = tmp_path / "truth.csv", tmp_path / "p.csv"
    truth.write_text("Study,=fox\n=1+1,1\n-2,0\ns3,1\n")
    probs.write_text("Study,=fox\n=1+1,0.9\n-2,0.4\ns3,0.3\n")
    written = tmp_path / "again.csv"
    call(probs, "--truth", truth, "--ensemble-out", written, "-o", tmp_path / "out")
    rows = read_csv(written)
    assert [row["Study"] for row in rows] == ["'=1+1", "'-2", "s3"]
    assert "'=fox" in rows[0]
    assert read_csv(tmp_path / "out" / "table.csv")[0]["category"] == "'=fox"
    call(written, "--truth", truth, "--ensemble-out", tmp_path / "raw.csv", "--raw")
    assert [row["Study"] for row in read_csv(tmp_path / "raw.csv")] == ["=1+1", "-2", "s3"]


def test_readers_stand_beside_the_models_in_tables_pictures_and_files(call, folder, tmp_path):
    rows = read_csv(folder / "truth.csv")
    for name, wrong in {"bc4": 3, "bc6": 5}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            flipped = [
                [row["Study"], *(int(row[c]) ^ (i % wrong == 0) for c in CATEGORIES)] for i, row in enumerate(rows)
            ]
            csv.writer(file).writerows([["Study", *CATEGORIES], *flipped])
    people = ["--readers", tmp_path / "bc4.csv", tmp_path / "bc6.csv"]
    out = call("x.csv", "y.csv", "--truth", "truth.csv", *people, "-o", tmp_path / "out", drawn=True)
    assert "Readers below the ROC curve" in out
    found = loaded(tmp_path / "out")["readers"]
    assert [one["name"] for one in found["each"]] == ["bc4", "bc6"]
    assert found["below"]["y"]["readers"][0][2] is None  # y does not give the third category
    head, _, x, y, _ = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert head == r"| AP in % | fox | dog \$x\$ | \[red\]owl\[/red\] | mAP [95 % interval] | readers below |"
    assert x.startswith(f"| x | {100 * loaded(tmp_path / 'out')['models'][0]['each']['AP'][0]:.2f} | ")
    assert x.endswith(f" | {found['below']['x']['mean']:.1f} of 2 |")
    assert " | - | " in y
    lines = read_csv(tmp_path / "out" / "readers.csv")
    assert len(lines) == 6
    assert float(lines[0]["sensitivity"]) == found["each"][0]["sensitivity"][0]
    assert lines[2]["below y"] == ""
    call("x.csv", "--truth", "truth.csv", "-o", tmp_path / "out", drawn=True)
    assert not (tmp_path / "out" / "readers.csv").exists()
    assert loaded(tmp_path / "out")["readers"] is None


@pytest.mark.parametrize("combine", ["mean", "rank"])
def test_files_are_combined_without_labels_as_with_them(call, folder, tmp_path, combine):
    words = ["x.csv", "y.csv", "--combine", combine, "--ensemble-out"]
    out = call(*words, tmp_path / "a.csv")
    assert "40 studies of x.csv; without --truth nothing is scored." in out
    call(*words, tmp_path / "b.csv", "--truth", "truth.csv")
    unlabelled, labelled = ({row["Study"]: row for row in read_csv(tmp_path / f"{name}.csv")} for name in "ab")
    assert unlabelled == labelled
    if combine == "rank":
        each = [{row["Study"]: row for row in read_csv(folder / f"{name}.csv")} for name in "xy"]
        names = list(labelled)
        expected = np.mean(
            [(rankdata([float(file[name]["fox"]) for name in names]) - 0.5) / len(names) for file in each], axis=0
        )
        np.testing.assert_allclose([float(unlabelled[name]["fox"]) for name in names], expected)


def test_what_predict_writes_beside_probabilities_is_no_category(call, tmp_path):
    for name, prob in {"a": 0.25, "b": 0.5}.items():
        (tmp_path / f"{name}.csv").write_text(f"path,fox,fox decision,error\nx.png,{prob},0,\n")
    call(tmp_path / "a.csv", tmp_path / "b.csv", "--ensemble-out", tmp_path / "both.csv")
    assert read_csv(tmp_path / "both.csv") == [{"path": "x.png", "fox": "0.375"}]
