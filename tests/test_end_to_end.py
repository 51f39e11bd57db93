import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import safetensors.numpy

import cftjax
from cftjax import cli, finetune, train
from cftjax.cft import crossfit
from cftjax.data.digits import DigitsData
from cftjax.runtime import interruption
from cftjax.stages import backbone, outcome

OPTIONS = {
    "--data.num-train": "192",
    "--data.num-validation": "96",
    "--data.num-test": "96",
    "--training.epochs": "1",
    "--training.batch-size": "32",
    "--embed.batch-size": "12",
    "--ga.num-generations": "50",
    "--ga.population-size": "10",
    "--ga.dimensions": "4",
    "--polish.num-steps": "20",
    "--polish.dimensions": "4",
    "--report.resamples": "50",
}
SMALL = [word for pair in OPTIONS.items() for word in pair]


def call(monkeypatch, main, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    main()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, train.main, "--workdir", folder, *SMALL)
    return folder


def scores(folder):
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    return {key: metrics[key] for key in ("categories", "validation", "test", "chosen", "untuned")}


def test_a_run_interrupted_in_every_stage_ends_with_the_same_scores(run, tmp_path, monkeypatch):
    folder = tmp_path / "interrupted"

    for module, name in (
        (backbone.loop, "fit"),
        (backbone.embed, "embed"),
        (crossfit, "find"),
        (crossfit, "learn"),
        (crossfit, "share"),
        (outcome.decisions, "fit"),
        (outcome.write, "write"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                call(patch, train.main, "--workdir", folder, *SMALL)
    call(monkeypatch, train.main, "--workdir", folder, *SMALL)
    assert scores(folder) == scores(run)


def test_a_signal_during_polish_and_search_saves_and_says_so(run, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(folder / "heads" / "polish")
    shutil.rmtree(folder / "heads" / "ga")
    for stage, name in (("search", "find"), ("polish", "learn")):
        real = getattr(crossfit, name)

        def signalled(*args, real=real, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(crossfit, name, signalled)
            with pytest.raises(interruption.Terminated, match=f"{stage} is saved; the same command goes on from there"):
                call(patch, train.main, "--workdir", folder, *SMALL)
        assert any((folder / "heads" / ("ga" if stage == "search" else stage) / "categories").iterdir())
    call(monkeypatch, train.main, "--workdir", folder, *SMALL)
    for stage in ("polish", "ga"):
        name = f"heads/{stage}/heads.npz"
        assert (folder / name).read_bytes() == (run / name).read_bytes()


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_the_report_has_every_key_and_figure_promised(run):
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    for split in ("validation", "test"):
        for stage in ("backbone", "ga", "polish", "final"):
            assert set(metrics[split][stage]) >= {"mAP", "mAUC", "AP", "AUROC"}
        assert set(metrics[split]["difference"]["mAP"]) >= {"value", "low", "high", "resamples"}
    assert {"categories", "chosen", "untuned", "seconds"} <= set(metrics)
    for figure in ("before_after", "search_history", "reliability", "test_images"):
        assert (run / "report" / f"{figure}.png").stat().st_size > 10_000


def test_other_search_settings_leave_the_backbone_and_embeddings_alone(run, tmp_path, monkeypatch, capsys):
    kept = ["backbone/history.json", "embeddings/train/z.npy"]
    before = [(run / name).stat().st_mtime_ns for name in kept]
    call(monkeypatch, train.main, "--workdir", run, *SMALL, "--ga.patience", "10")
    assert "heads/ga: made anew, since patience: 15 -> 10" in capsys.readouterr().out
    assert [(run / name).stat().st_mtime_ns for name in kept] == before


def test_a_run_that_begins_to_skip_bad_images_keeps_what_is_done(run, monkeypatch, capsys):
    kept = ["backbone/history.json", "embeddings/train/z.npy", "heads/backbone/heads.npz"]
    before = [(run / name).stat().st_mtime_ns for name in kept]
    call(monkeypatch, train.main, "--workdir", run, *SMALL, "--data.on-bad-image", "skip")
    assert "backbone: made anew" not in capsys.readouterr().out
    assert [(run / name).stat().st_mtime_ns for name in kept] == before
    assert json.loads((run / "report" / "metrics.json").read_text())["unopened"]["train"] == []


def test_a_run_opens_in_a_notebook_and_another_one_is_made_from_its_embeddings(run, tmp_path, monkeypatch):
    opened = cftjax.open_run(run)
    splits = {split: opened.embeddings(split) for split in ("train", "validation", "test")}
    ap = cftjax.metrics.average_precision(
        np.asarray(opened.heads("final")(splits["test"].z)), splits["test"].labels, where=splits["test"].known
    )
    np.testing.assert_allclose(ap, scores(run)["test"]["final"]["AP"], atol=1e-5)

    arrays = dict(opened.heads("backbone").__dict__)
    for name, split in splits.items():
        arrays[f"{name}_z"] = split.z
        arrays[f"{name}_labels"] = np.where(split.known, split.labels, np.nan).astype(np.float32)
    np.savez(tmp_path / "mine.npz", **arrays, categories=list(opened.categories))
    tuning = [word for pair in OPTIONS.items() if pair[0][2:].startswith(("ga", "polish", "report")) for word in pair]
    call(monkeypatch, finetune.main, tmp_path / "mine.npz", "--workdir", tmp_path / "run", *tuning)
    assert scores(tmp_path / "run")["test"]["backbone"] == scores(run)["test"]["backbone"]
    with np.load(tmp_path / "run" / "heads.npz", allow_pickle=False) as heads:
        kernel, bias = heads["kernel"], heads["bias"]
    assert kernel.shape == (10, splits["test"].z.shape[1])
    state_dict = safetensors.numpy.load_file(tmp_path / "run" / "heads.safetensors")
    assert set(state_dict) == {"weight", "bias"}  # those of torch.nn.Linear, strictly
    np.testing.assert_array_equal(state_dict["weight"], kernel)
    np.testing.assert_array_equal(state_dict["bias"], bias)


def test_a_run_is_a_model_that_sees_images_as_its_embeddings_were_made(run):
    opened, model = cftjax.open_run(run), cftjax.load(run)
    images = DigitsData(num_train=192, num_validation=96, num_test=96).load().splits["test"].image
    logits = np.asarray(opened.heads("final")(opened.embeddings("test").z))
    seen = model(np.stack([images(row) for row in range(96)]))
    np.testing.assert_allclose(seen, opened.decisions().probabilities(logits), atol=1e-6)
    fitted_on = opened.decisions().fitted_on
    known = opened.embeddings("validation").known
    np.testing.assert_array_equal(fitted_on.positive + fitted_on.negative, known.sum(0))
    with pytest.raises(ValueError, match="trained without mirror images"):
        model.looking(["mirror"])


def test_without_a_validation_split_the_last_layer_is_cross_validated(run, tmp_path, monkeypatch, capsys):
    opened = cftjax.open_run(run)
    arrays = dict(opened.heads("backbone").__dict__)
    for name in ("train", "test"):
        split = opened.embeddings(name)
        arrays[f"{name}_z"] = split.z
        arrays[f"{name}_labels"] = np.where(split.known, split.labels, np.nan).astype(np.float32)
    tuning = [word for pair in OPTIONS.items() if pair[0][2:].startswith(("ga", "polish", "report")) for word in pair]
    np.savez(tmp_path / "tested.npz", **arrays)
    call(monkeypatch, finetune.main, tmp_path / "tested.npz", "--workdir", tmp_path / "tested", *tuning)
    reported = json.loads((tmp_path / "tested" / "report" / "metrics.json").read_text())
    assert reported["test"]["final"]["mAP"] > reported["test"]["backbone"]["mAP"]
    assert "validation" not in reported

    np.savez(tmp_path / "alone.npz", **{name: x for name, x in arrays.items() if not name.startswith("test")})
    capsys.readouterr()
    call(monkeypatch, finetune.main, tmp_path / "alone.npz", "--workdir", tmp_path / "alone", *tuning)
    said = capsys.readouterr().out
    assert "Cross-validated mAP on the known training labels: discriminant" in said
    assert "no validation split; the model has seen these training labels" in said
    assert cftjax.open_run(tmp_path / "alone").decisions().fitted_on.split == "train"
    assert not (tmp_path / "alone" / "report").exists()
    with np.load(tmp_path / "alone" / "heads.npz") as a, np.load(tmp_path / "tested" / "heads.npz") as b:
        np.testing.assert_array_equal(a["kernel"], b["kernel"])


def test_changed_data_are_refused_with_what_changed(run, monkeypatch):
    with pytest.raises(ValueError, match=r"other data \(seed: 0 -> 3\)"):
        call(monkeypatch, train.main, "--workdir", run, *SMALL, "--data.seed", "3")


def test_a_second_process_in_the_same_run_is_refused(run):
    opened = cftjax.open_run(run)
    with opened.writing(), pytest.raises(ValueError, match="another process"), cftjax.open_run(run).writing():
        pass


def test_a_mistyped_option_is_refused_with_the_nearest_right_one(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, train.main, "--ga.num-generatons", "3")
    assert stopped.value.code == 2
    assert "--ga.num-generations" in capsys.readouterr().err


def test_a_missing_configuration_names_the_nearest_recipe():
    with pytest.raises(ValueError, match="did you mean the recipe digits"):
        cli.read_config(cli.Path("configs/digit.py"))
