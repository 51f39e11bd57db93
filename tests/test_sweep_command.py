import csv
import dataclasses
import functools
import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

import cftjax
from cftjax import sweep
from cftjax.config import ChooseConfig, GAConfig, LabelsConfig, PolishConfig, TuningConfig
from cftjax.default import get_config
from cftjax.report import sweep_table
from cftjax.report.sweep_scores import RunScores, SweepScores
from cftjax.stages import backbone

OPTIONS = {
    "--data.num-train": "192",
    "--data.num-validation": "96",
    "--data.num-test": "96",
    "--data.known-positives": "1",
    "--data.known-negatives": "1",
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
JUDGE_ONLY = TuningConfig(
    ga=GAConfig(num_generations=10, population_size=4, dimensions=4),
    polish=PolishConfig(num_steps=5, dimensions=4),
    choose=ChooseConfig(refit="none"),
)
REFIT = "Ignore, refit on all known labels"
BEFORE = ["Negative", "Ignore", "CFT search", "CFT search, then polish", "CFT final", "CFT on Ignore"]
JUDGED = [f"{name}, validation only judges" for name in ("CFT final", "CFT on Ignore")]
METHODS = [*BEFORE, *JUDGED, REFIT]
RUNS = ("negative", "ignore")
# Of the methods.
ROWS = [
    (RUNS[i], stage)
    for i, stage in zip((0, 1, 0, 0, 0, 1), ["backbone", "backbone", "ga", "polish", "final", "final"], strict=True)
]
OWN = [("CFT final", "Negative"), ("CFT on Ignore", "Ignore")]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    sweep.main()


def test_a_sweep_that_is_stopped_goes_on_and_its_table_is_that_of_its_runs(tmp_path, monkeypatch, capsys):
    words = ["--workdir", tmp_path, "--known-proportions", "0.5", *SMALL]
    whole, calls = backbone.loop.fit, []

    def fit(source, *args, **kwargs):
        calls.append((source.labels.unknown, source.labels.known_proportion))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(source, *args, **kwargs)

    monkeypatch.setattr(backbone.loop, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, *words)
    call(monkeypatch, *words)
    assert calls == [("assume_negative", 0.5), ("ignore", 0.5), ("ignore", 0.5)]
    printed = capsys.readouterr().out
    assert all(method in printed for method in METHODS)
    assert "One seed (0)" in printed

    content = json.loads((tmp_path / "table.json").read_text())
    assert list(content["methods"]) == METHODS
    found = {mode: json.loads((tmp_path / f"{mode}-0.5/report/metrics.json").read_text()) for mode in RUNS}
    assert content["methods"][REFIT]["stage"] == "refit"
    for method, (mode, stage) in zip(BEFORE, ROWS, strict=True):
        score = content["methods"][method]["scores"][0][0]
        np.testing.assert_allclose(score, found[mode]["test"][stage]["mAP"], rtol=1e-6)
    check_both_protocols(tmp_path, content)
    # The same resamples as in the reports, whose seed is the runs'.
    own = {gain["method"]: gain for gain in content["gains"] if (gain["method"], gain["over"]) in OWN}
    for (method, _), mode in zip(OWN, RUNS, strict=True):
        expected = found[mode]["test"]["difference"]["mAP"]
        for key in ("value", "low", "high"):
            np.testing.assert_allclose(own[method][key], expected[key], rtol=1e-4, atol=1e-6)

    # Finished runs are read, not made again; a mode's score is the same whatever CFT is put on.
    monkeypatch.setattr(sweep.heads, "tune", functools.partial(tuned_before, sweep.heads.tune))
    call(monkeypatch, *words)
    assert len(calls) == 3
    assert json.loads((tmp_path / "table.json").read_text()) == content
    call(monkeypatch, *words, "--tuned", "ignore")
    fewer = json.loads((tmp_path / "table.json").read_text())["methods"]
    assert list(fewer) == ["Negative", "Ignore", "CFT on Ignore", JUDGED[1], REFIT]
    assert fewer == {name: content["methods"][name] for name in fewer}


def check_both_protocols(folder, content):
    """The second row is of the heads that `--choose.refit none` gives; what has learned from more is no rival of it."""
    assert "from those of train alone (--choose.refit none)" in " ".join((folder / "table.txt").read_text().split())
    for name, mode, (_, own) in zip(JUDGED, RUNS, OWN, strict=True):
        run = cftjax.open_run(folder / f"{mode}-0.5")
        train, validation = run.embeddings("train"), run.embeddings("validation")
        expected = cftjax.fine_tune(train, validation, run.heads("backbone"), config=JUDGE_ONLY).heads
        np.testing.assert_allclose(run.heads("judged").kernel, expected.kernel, rtol=1e-5, atol=1e-6)
        assert np.abs(run.heads("judged").kernel - run.heads("final").kernel).max() > 1e-4
        assert content["methods"][name]["unknown"] == {"negative": "assume_negative"}.get(mode, mode)
        compared = [gain["over"] for gain in content["gains"] if gain["method"] == name]
        assert compared == list(dict.fromkeys([own, "Ignore"]))


def tuned_before(tune, run, *arguments):
    assert (run.folder / "report").is_dir()
    return tune(run, *arguments)


def measured(before, after=None, seed=0):
    """A run whose samples are its score give and take a little."""
    scores = {"backbone": before} | ({} if after is None else {"ga": 0.1, "polish": 0.1, "final": after})
    rng = np.random.default_rng(seed)
    samples = {stage: score + 0.01 * rng.normal(size=50) for stage, score in scores.items()}
    return RunScores(scores, samples, 96, "images")


def test_every_mode_proportion_and_seed_has_a_run_of_its_own_and_its_place_in_the_table(tmp_path, monkeypatch):
    made = {}

    def one_run(loaded, config, folder, split, tuned, elsewhere):
        assert split == "test"
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
        # All that are there may lend their embeddings.
        assert {other.name for other in elsewhere} == set(made)
        made[folder.name] = (config.labels.unknown, config.labels.known_proportion, config.seed, tuned)
        value = 0.2 if config.labels.unknown == "ignore" else config.labels.known_proportion / 2 + config.seed / 100
        return measured(value, value + 0.1 if tuned else None)

    monkeypatch.setattr(sweep, "one_run", one_run)
    words = ["--known-proportions", "0.5", "0.1", "--seeds", "1", "0", "--tuned", "assume_negative", "selective"]
    modes = ["--unknowns", "assume_negative", "ignore", "selective", "--training.epochs", "2"]
    call(monkeypatch, "--workdir", tmp_path, *SMALL, *words, *modes)
    assert made["negative-0.1"] == ("assume_negative", 0.1, 0, True)
    assert made["ignore-0.5-seed-1"] == ("ignore", 0.5, 1, False)
    assert made["selective-0.5"] == ("selective", 0.5, 0, True)
    assert len(made) == 12
    content = json.loads((tmp_path / "table.json").read_text())
    assert list(content["methods"]) == ["Negative", "Ignore", "CSL", *METHODS[2:5], "CFT on CSL"]
    np.testing.assert_allclose(content["methods"]["Negative"]["scores"], [[0.26, 0.06], [0.25, 0.05]])
    np.testing.assert_allclose(content["methods"]["CFT final"]["columns"]["mean"]["mean"], 0.255)
    np.testing.assert_allclose(content["methods"]["CFT on CSL"]["columns"]["0.1"]["mean"], 0.155)
    assert content["methods"]["Ignore"]["columns"]["0.1"] == {"mean": 0.2, "std": 0.0}
    with open(tmp_path / "gains.csv", newline="") as file:
        rows = [(row["method"], row["over"], row["known_proportion"]) for row in csv.DictReader(file)]
    pairs = [("CFT final", "Negative"), ("CFT final", "Ignore"), ("CFT on CSL", "CSL"), ("CFT on CSL", "Ignore")]
    assert rows == [(*pair, proportion) for pair in pairs for proportion in ("0.5", "0.1")]
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_a_data_set_with_nothing_to_score_is_refused(tmp_path, monkeypatch):
    config = get_config()
    data = dataclasses.replace(config.data, num_train=20, num_validation=1, num_test=1).load()
    data = dataclasses.replace(data, splits={"train": data.splits["train"]})
    assert sweep.split_scored(data, config) == "validation"
    without = dataclasses.replace(config, split=dataclasses.replace(config.split, validation_share=0.0))
    with pytest.raises(ValueError, match=r"neither a test nor a validation split.*--split\.validation-share"):
        sweep.split_scored(data, without)


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
        (["--unknowns"], "is empty"),
        (["--unknowns", "ignore", "ignore"], "has ignore twice"),
        (["--unknowns", "ignore", "--tuned", "assume_negative"], "assume_negative is not among the modes"),
        (["--unknowns", "ignore", "selective"], "leaves none of 1 epochs to selective"),
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
    """Two seeds at two proportions, the last run undefined after CFT."""
    pairs = [[(0.5, 0.6), (0.6, 0.8)], [(0.7, 0.8), (0.8, np.nan)]]
    found = SweepScores(
        {"assume_negative": [[measured(*pair, seed=i) for i, pair in enumerate(runs)] for runs in pairs]},
        tuned=("assume_negative",),
        order="polish_search",
        proportions=(0.1, 0.9),
        seeds=(0, 1),
        metric="AP",
        split="test",
        num_images=1000,
        num_categories=3,
        unit="images",
    )
    return dataclasses.replace(found, **changes)


def test_several_seeds_give_mean_and_sample_deviation_and_undefined_scores_stay_undefined(tmp_path):
    columns = scores().columns
    np.testing.assert_allclose(columns["Negative"]["0.1"], (0.6, 0.02**0.5))
    np.testing.assert_allclose(columns["Negative"]["mean"], (0.65, 0.02**0.5))
    with open(tmp_path / "terminal", "w") as file:
        sweep_table.write(tmp_path, scores(), LabelsConfig(hide="uniform"), Console(file=file, width=120))
    text = (tmp_path / "table.txt").read_text()
    assert [line.rstrip() for line in (tmp_path / "terminal").read_text().splitlines()] == text.splitlines()
    assert "60.00 ± 14.14" in text
    assert "2 seeds (0, 1)" in text
    with open(tmp_path / "table.csv", newline="") as file:
        _, negative, *_, final = csv.reader(file)
    np.testing.assert_allclose([float(cell) for cell in negative[1:4]], [0.6, 0.7, 0.65])
    assert final[2:4] == ["", ""]
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["methods"]["CFT final"]["scores"][1] == [0.8, None]
    assert [gain["value"] for gain in content["gains"]][1] is None


def test_a_gain_is_of_the_mean_over_seeds_and_its_interval_of_the_paired_resamples():
    found = scores()
    (gain, _) = found.gains
    first, second = (runs[0] for runs in found.runs["assume_negative"])
    paired = [run.samples["final"] - run.samples["backbone"] for run in (first, second)]
    low, high = np.quantile(np.mean(paired, axis=0), [0.025, 0.975])
    np.testing.assert_allclose(gain.interval.value, 0.1)
    np.testing.assert_allclose([gain.interval.low, gain.interval.high], [low, high])
    text = Console(width=120, file=io.StringIO(), record=True)
    text.print(sweep_table.gains_table(found))
    assert f"+10.00 [{100 * low:+.2f}, {100 * high:+.2f}]" in text.export_text()


def test_a_table_of_validation_says_that_it_is_optimistic():
    lines = sweep_table.notes(scores(split="validation", seeds=(4,)), LabelsConfig(hide="uniform"))
    assert any("optimistic" in line for line in lines)
    assert any("One seed (4)" in line for line in lines)
    assert any(
        "of the validation groups, each" in line
        for line in sweep_table.notes(scores(split="validation", unit="groups"), LabelsConfig())
    )
