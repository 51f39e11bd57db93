import contextlib
import csv
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import cftjax
from cftjax import cli, decisions, ensemble, evaluate, predict
from cftjax.embeddings import embed
from cftjax.evaluation import pictures
from cftjax.inference import ensemble as kept
from cftjax.runtime import digests
from cftjax.stages import together
from cftjax.types import SPLITS


@pytest.fixture(scope="module")
def members(image_runs, tmp_path_factory):
    """Two finished runs with another backbone each, whose validation is as their test."""
    made = tmp_path_factory.mktemp("members")
    for name, run in image_runs[1].items():
        shutil.copytree(run.folder, made / name)
        shutil.copytree(made / name / "embeddings" / "test", made / name / "embeddings" / "validation")
    return [made / name for name in image_runs[1]]


@pytest.fixture
def call(monkeypatch, capsys):
    """What a command prints; the one line of its error where it fails."""

    def of(command, *words, fails=False):
        monkeypatch.setattr(pictures, "draw", lambda *_: None)
        monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
        monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
        if not fails:
            command.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit):
            cli.run(command.main)
        return capsys.readouterr().err.strip().splitlines()[-1]

    return of


@pytest.fixture(scope="module")
def made(members, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "both"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda *_: None)
        patch.setattr(sys, "argv", ["cftjax", *map(str, members), "-o", str(folder), "--resamples", "5"])
        ensemble.main()
    return folder


def mean_of(members, files):
    return np.mean([cftjax.load(member)(files) for member in members], axis=0)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_ensemble_of_finished_runs_predicts_the_calibrated_mean_of_what_they_say(
    members, made, image_runs, call, tmp_path
):
    files = sorted(image_runs[0].iterdir())
    mean = mean_of(members, files)
    record, decided = kept.read(made), decisions.read(made / "decisions.json")
    assert record.weights.tolist() == [[0.5] * 3] * 2
    # Platt's line rises, so that the order of the mean stays.
    odds = np.log(mean / (1 - mean))
    expected = 1 / (1 + np.exp(-(odds * decided.scale + decided.offset)))
    out = call(predict, made, image_runs[0], "-o", tmp_path / "out.csv", "--workers", 0)
    assert f"{len(files)} images: " in out
    rows = table(tmp_path / "out.csv")
    probs = np.array([[float(row[name]) for name in record.categories] for row in rows])
    np.testing.assert_allclose(probs, expected, rtol=1e-5)
    np.testing.assert_allclose(kept.load(made)(files), expected, rtol=1e-5)
    told = [[int(row[f"{name} decision"]) for name in record.categories] for row in rows]
    np.testing.assert_array_equal(told, expected >= decided.thresholds)


def test_thresholds_and_calibration_are_those_of_the_mean_on_validation(members, made, image_runs):
    names = embed.load_names(members[0] / "embeddings" / "validation")
    mean = mean_of(members, [image_runs[0] / name for name in names])
    labels = np.asarray(cftjax.open_run(members[0]).embeddings("validation").labels)
    fitted = decisions.fit(
        np.log(mean / (1 - mean)),
        labels,
        np.ones_like(labels),
        cftjax.TuningConfig().decide,
        categories=("cat", "dog", "cow"),
        split="validation",
    )
    written = decisions.read(made / "decisions.json")
    np.testing.assert_allclose(written.scale, fitted.scale, rtol=1e-3)
    np.testing.assert_allclose(written.thresholds, fitted.thresholds, rtol=1e-3)
    assert written.fitted_on.split == "validation"


def test_the_report_has_members_and_ensemble_and_evaluate_takes_the_folder_as_a_run(members, made, call, tmp_path):
    found = json.loads((made / "report" / "metrics.json").read_text())
    assert [model["name"] for model in found["models"]] == [*(member.name for member in members), "ensemble"]
    call(evaluate, made, "--resamples", 5, "-o", tmp_path / "alone")
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    (model,) = alone["models"]
    assert model["name"] == "both"
    assert model["each"] == found["models"][-1]["each"]
    test = cftjax.open_run(members[0]).embeddings("test")
    names = embed.load_names(members[0] / "embeddings" / "test")
    call(evaluate, made, "--resamples", 5, "--ensemble-out", tmp_path / "probs.csv")
    rows = {row["path"]: row for row in table(tmp_path / "probs.csv")}
    for c, category in enumerate(("cat", "dog", "cow")):
        scores = [float(rows[name][category]) for name in names]
        assert model["each"]["AUROC"][c] == pytest.approx(roc_auc_score(test.labels[:, c], scores))


def test_an_ensemble_looks_some_images_at_a_time_and_goes_on_after_a_kill(
    made, image_runs, call, tmp_path, monkeypatch
):
    whole = tmp_path / "whole.csv"
    call(predict, made, image_runs[0], "-o", whole, "--workers", 0, "--batch-size", 1)
    monkeypatch.setattr(kept, "ROWS_AT_ONCE", 8)
    real, begun = kept.log_odds, []

    def killed(probs):
        begun.append(len(probs))
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(probs)

    monkeypatch.setattr(kept, "log_odds", killed)
    words = [predict, made, image_runs[0], "-o", tmp_path / "out.csv", "--workers", 0, "--batch-size", 1]
    with pytest.raises(KeyboardInterrupt):
        call(*words)
    call(*words)
    assert begun == [8, 3, 3]
    for row, other in zip(table(tmp_path / "out.csv"), table(whole), strict=True):
        assert row == other


def test_weights_are_fitted_on_validation(members, call, tmp_path):
    out = call(ensemble, *members, "-o", tmp_path / "w", "--combine", "weighted", "--resamples", 0)
    assert "Weights of the members in %, fitted on validation" in out
    weights = kept.read(tmp_path / "w").weights
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    found = json.loads((tmp_path / "w" / "report" / "metrics.json").read_text())
    assert list(found["ensemble"]["weights"].values()) == weights.tolist()


def test_a_folder_with_its_members_can_be_moved(members, call, image_runs, tmp_path):
    folder = tmp_path / "here"
    for member in members:
        shutil.copytree(member, folder / member.name)
    call(ensemble, *(folder / member.name for member in members), "-o", folder, "--resamples", 0)
    folder.rename(tmp_path / "there")
    files = sorted(image_runs[0].iterdir())
    assert kept.load(tmp_path / "there")(files).shape == (len(files), 3)


def test_members_are_trained_one_after_the_other_and_a_stop_goes_on(members, call, tmp_path, monkeypatch):
    begun = []

    @contextlib.contextmanager
    def opened(loaded, config, folder):
        begun.append(config.seed)
        if len(begun) == 2:
            raise KeyboardInterrupt
        yield folder, SimpleNamespace(reported="test images")

    def train(folder, dataset, config, needed, elsewhere):
        assert elsewhere == [tmp_path / f"small_resnet-seed-{seed}" for seed in (0, 1) if seed != config.seed]
        assert needed == SPLITS
        shutil.copytree(members[config.seed], folder, dirs_exist_ok=True)
        return ["key"]

    def tune(folder, config, made_from, reported, maps):
        assert (folder.name, made_from, reported) == (f"small_resnet-seed-{config.seed}", ["key"], "test images")

    monkeypatch.setattr(together.backbone, "opened", opened)
    monkeypatch.setattr(together.backbone, "train", train)
    monkeypatch.setattr(together.heads, "tune", tune)
    monkeypatch.setattr(together.outcome, "heatmaps", lambda run: None)
    words = [ensemble, "-o", tmp_path, "--seeds", 0, 1, "--report.resamples", 5, "--data.num-train", 8]
    with pytest.raises(KeyboardInterrupt):
        call(*words)
    out = call(*words)
    assert begun == [0, 1, 0, 1]
    assert f"Ensemble: {tmp_path}" in out
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert [model["name"] for model in found["models"]] == ["small_resnet-seed-0", "small_resnet-seed-1", "ensemble"]
    note = "The ensemble's, and its calibration: fitted on validation."
    assert note in (tmp_path / "report" / "table.txt").read_text()


def test_backbones_come_with_their_weights():
    config = cftjax.with_recipe(ensemble.get_config(), "default")
    parts = ensemble.members(config, (0, 4), ("resnet50=a.pth", "small_resnet"))
    assert list(parts) == ["resnet50-seed-0", "resnet50-seed-4", "small_resnet-seed-0", "small_resnet-seed-4"]
    assert [own.backbone.weights for own in parts.values()] == ["a.pth", "a.pth", None, None]
    assert [own.seed for own in parts.values()] == [0, 4, 0, 4]
    assert {own.split for own in parts.values()} == {config.split}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "3"], "one run is no ensemble: name more --seeds or --backbones"),
        (["--seeds", "3", "3"], "--seeds has 3 twice"),
        (["--seeds", "0", "-1"], "--seeds -1 is negative"),
        (["--backbones", "resnet50", "resnet50=x.pth"], "--backbones has resnet50 twice"),
        (["--split.folds", "5"], "leave it out"),
        (["--backbones", "resnet50", "--backbone.weights", "x.pth"], "say whose they are, --backbones NAME=WEIGHTS"),
        (["--lr", "1"], "the option is --training.learning-rate here"),
    ],
)
def test_what_is_no_ensemble_is_refused_in_one_line(call, tmp_path, words, message):
    assert message in call(ensemble, "-o", tmp_path / "new", *words, fails=True)


def test_folders_that_hold_something_else_or_too_little_are_refused(members, made, call, tmp_path):
    a, b = members
    assert "one run is no ensemble: name two or more" in call(ensemble, a, "-o", tmp_path / "x", fails=True)
    assert "is a single run" in call(ensemble, a, b, "-o", a, fails=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    assert "is not empty and holds no ensemble" in call(ensemble, a, b, "-o", tmp_path / "full", fails=True)
    with pytest.raises(ValueError, match="is an ensemble"):
        cftjax.load(made)
    words = [made, a, "-o", tmp_path / "o.csv", "--heatmaps", tmp_path / "maps"]
    assert "is an ensemble, whose members see in different places" in call(predict, *words, fails=True)
    shutil.copytree(made, tmp_path / "damaged")
    text = (tmp_path / "damaged" / kept.FILE).read_text()
    (tmp_path / "damaged" / kept.FILE).write_text(text.replace("0.5", "0.6", 1))
    with pytest.raises(digests.Damaged, match="not what was written"):
        kept.read(tmp_path / "damaged")
