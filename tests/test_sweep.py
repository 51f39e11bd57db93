import csv
import dataclasses
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from cftjax import cli, sweep, train
from cftjax.config import LabelsConfig
from cftjax.default import get_config

OPTIONS = {
    "--data.num-train": "192",
    "--data.num-validation": "96",
    "--data.num-test": "96",
    "--data.known-proportion": "1",
    "--labels.hide": "uniform",
    "--training.epochs": "1",
    "--training.batch-size": "32",
    "--embed.batch-size": "12",
    "--ga.num-generations": "10",
    "--ga.population-size": "4",
    "--ga.dimensions": "4",
    "--polish.num-steps": "5",
    "--polish.dimensions": "4",
    "--report.resamples": "5",
}
SMALL = [word for pair in OPTIONS.items() for word in pair]
METHODS = ["Negative", "Ignore", "CFT polish", "CFT polish, then search", "CFT final"]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    sweep.main()


def test_a_sweep_that_is_stopped_goes_on_and_its_table_is_that_of_its_runs(tmp_path, monkeypatch, capsys):
    words = ["--workdir", tmp_path, "--known-proportions", "0.5", *SMALL]
    whole, calls = train.training.fit, []

    def fit(dataset, config, *args, **kwargs):
        calls.append((config.labels.unknown, config.labels.known_proportion))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(dataset, config, *args, **kwargs)

    monkeypatch.setattr(train.training, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, *words)
    call(monkeypatch, *words)
    assert calls == [("assume_negative", 0.5), ("ignore", 0.5), ("ignore", 0.5)]
    printed = capsys.readouterr().out
    assert all(method in printed for method in METHODS)
    assert "One seed (0)" in printed

    content = json.loads((tmp_path / "table.json").read_text())
    assert list(content["methods"]) == METHODS
    found = json.loads((tmp_path / "negative-0.5" / "report" / "metrics.json").read_text())["test"]
    for method, stage in zip(METHODS, ("backbone", None, "polish", "ga", "final"), strict=True):
        if stage:
            assert content["methods"][method]["scores"] == [[found[stage]["mAP"]]]

    # Finished runs are read, not made again.
    call(monkeypatch, *words)
    assert len(calls) == 3
    assert json.loads((tmp_path / "table.json").read_text()) == content

    # A backbone alone is scored as a report would.
    experiment = cli.parse("", get_config, ["--labels.known-proportion", "0.5", *SMALL])
    config = experiment.config
    score = sweep.ignore_run(config.data.load(), config, tmp_path / "negative-0.5", "test")
    np.testing.assert_allclose(score, found["backbone"]["mAP"], rtol=1e-6)


def test_every_proportion_and_seed_has_a_run_of_its_own_and_its_place_in_the_table(tmp_path, monkeypatch):
    made = {}

    def negative(loaded, config, folder):
        made[folder.name] = (config.labels.unknown, config.labels.known_proportion, config.seed)
        value = config.labels.known_proportion / 2 + config.seed / 100
        return "test", 96, {"Negative": value, "CFT final": value + 0.1}

    def ignore(loaded, config, folder, split):
        made[folder.name] = (config.labels.unknown, config.labels.known_proportion, config.seed)
        return 0.2

    monkeypatch.setattr(sweep, "negative_run", negative)
    monkeypatch.setattr(sweep, "ignore_run", ignore)
    call(monkeypatch, "--workdir", tmp_path, *SMALL, "--known-proportions", "0.5", "0.1", "--seeds", "1", "0")
    assert made["negative-0.1"] == ("assume_negative", 0.1, 0)
    assert made["ignore-0.5-seed-1"] == ("ignore", 0.5, 1)
    assert len(made) == 8
    content = json.loads((tmp_path / "table.json").read_text())
    assert list(content["methods"]) == ["Negative", "Ignore", "CFT final"]
    np.testing.assert_allclose(content["methods"]["Negative"]["scores"], [[0.26, 0.06], [0.25, 0.05]])
    np.testing.assert_allclose(content["methods"]["CFT final"]["columns"]["mean"]["mean"], 0.255)
    assert content["methods"]["Ignore"]["columns"]["0.1"] == {"mean": 0.2, "std": 0.0}
    assert (tmp_path / "table.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--known-proportions", "0"], "0 is not a share"),
        (["--known-proportions", "0.1", "1.5"], "1.5 is not a share"),
        (["--known-proportions", "nan"], "nan is not a share"),
        (["--known-proportions", "0.1", "0.1"], "has 0.1 twice"),
        (["--known-proportions"], "is empty"),
        (["--seeds", "-1"], "-1 is negative"),
        (["--seeds", "2", "2"], "has 2 twice"),
        (["--labels.hide", "none"], "add --labels.hide uniform"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_read(tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(type(get_config().data), "load", None)
    with pytest.raises(ValueError, match=message):
        call(monkeypatch, "--workdir", tmp_path, *SMALL, *words)


def test_the_folder_of_a_single_run_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="is a single run"):
        call(monkeypatch, "--workdir", tmp_path, *SMALL)


def scores(**changes):
    found = sweep.Scores(
        {"Negative": np.array([[0.5, 0.6], [0.7, 0.8]]), "CFT final": np.array([[0.6, 0.8], [0.8, np.nan]])},
        proportions=(0.1, 0.9),
        seeds=(0, 1),
        metric="AP",
        split="test",
        num_images=1000,
        num_categories=3,
    )
    return dataclasses.replace(found, **changes)


def test_several_seeds_give_mean_and_sample_deviation_and_undefined_scores_stay_undefined(tmp_path):
    columns = scores().columns
    np.testing.assert_allclose(columns["Negative"]["0.1"], (0.6, 0.02**0.5))
    np.testing.assert_allclose(columns["Negative"]["mean"], (0.65, 0.02**0.5))
    with open(tmp_path / "terminal", "w") as file:
        sweep.write(tmp_path, scores(), LabelsConfig(hide="uniform"), Console(file=file, width=120))
    text = (tmp_path / "table.txt").read_text()
    assert [line.rstrip() for line in (tmp_path / "terminal").read_text().splitlines()] == text.splitlines()
    assert "60.00 ± 14.14" in text
    assert "2 seeds (0, 1)" in text
    with open(tmp_path / "table.csv", newline="") as file:
        _, negative, final = csv.reader(file)
    np.testing.assert_allclose([float(cell) for cell in negative[1:4]], [0.6, 0.7, 0.65])
    assert final[2:4] == ["", ""]
    assert json.loads((tmp_path / "table.json").read_text())["methods"]["CFT final"]["scores"][1] == [0.8, None]


def test_a_table_of_validation_says_that_it_is_optimistic():
    lines = sweep.notes(scores(split="validation", seeds=(4,)), LabelsConfig(hide="uniform"))
    assert any("optimistic" in line for line in lines)
    assert any("One seed (4)" in line for line in lines)
