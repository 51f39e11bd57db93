import re
import typing

import made_run
import numpy as np
import pytest
import yaml

from cftjax import metrics
from cftjax.config import LabelsConfig, ReportConfig
from cftjax.report import card, contents
from cftjax.report.contents import Results
from cftjax.runtime import storage


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = made_run.make(
        tmp_path_factory.mktemp("runs") / "my run", labels=LabelsConfig(hide="uniform", known_proportion=0.8)
    )
    heads = {"backbone": made.heads("backbone"), "ga": made.heads("ga"), "polish": made.heads("polish")}
    heads["final"] = made.heads("final").__class__(made.heads("final").kernel, made.heads("final").bias + 1)
    splits = {split: made.embeddings(split) for split in made.splits}
    results = Results(
        categories=made.categories,
        embeddings=splits,
        heads=heads,
        chosen=["ga", "polish", "backbone"],
        untuned={},
        history={},
        metric="AP",
        seconds={},
        config=ReportConfig(resamples=20),
        title="my run",
    )
    content = contents.of_results(results, {split: contents.measured(results, split) for split in results.judged})
    storage.write_json(made.folder / "report" / "metrics.json", content)
    return made


def rows(text, heading):
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {first: rest for first, *rest in cells}


def test_scores_are_those_of_the_report(run):
    told, found = rows(card.text(run), "Scores"), storage.read_json(run.folder / "report" / "metrics.json")["test"]
    for mean in ("mAP", "mAUC"):
        change = found["difference"][mean]
        assert told[mean] == [
            f"{100 * found['backbone'][mean]:.2f}",
            f"{100 * found['final'][mean]:.2f}",
            f"{100 * change['value']:+.2f}",
            f"{100 * change['low']:+.2f}, {100 * change['high']:+.2f}",
        ]
    assert told["owl"][1] == f"{100 * found['final']['AP'][2]:.2f}"
    assert [told[name.replace("|", "\\|")][-1] for name in run.categories] == ["search", "polish", "backbone"]


def test_counts_and_thresholds_are_those_of_the_run(run):
    told = rows(card.text(run), "Data")
    for split in run.splits:
        x = run.embeddings(split)
        counts = [40, (x.labels & x.known).sum(), (~x.labels & x.known).sum(), x.uncertain.sum()]
        assert told[split] == [*map(str, counts), str(120 - sum(map(int, counts[1:]))), "0"]
    told, fitted = rows(card.text(run), "Thresholds and probabilities"), run.decisions()
    assert told["cat"][:2] == [f"{fitted.thresholds[0]:.4f}", str(fitted.fitted_on.positive[0])]


def test_the_front_matter_is_yaml_of_true_facts(run):
    _, front, _ = card.text(run).split("---\n", 2)
    read = yaml.safe_load(front)
    assert read["library_name"] == "cftjax"
    assert read["pipeline_tag"] == "image-classification"
    (result,) = read["model-index"][0]["results"]
    assert read["model-index"][0]["name"] == "my run"
    assert result["dataset"] == {"name": "DigitsData", "type": "DigitsData", "split": "test"}
    found = storage.read_json(run.folder / "report" / "metrics.json")["test"]["final"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        mean: pytest.approx(found[mean], abs=1e-4) for mean in ("mAP", "mAUC")
    }


def test_labels_settings_and_limits_are_told(run):
    text = card.text(run)
    assert "unknown labels counted as negative (`assume_negative`); uncertain ones counted not at all" in text
    told = rows(text, "Settings that differ from the defaults")
    assert told == {
        "option": ["value", "default"],
        "---": ["---", "---"],
        "`--labels.hide`": ["uniform", "none"],
        "`--labels.known-proportion`": ["0.8", "0.1"],
        "`--seed`": ["3", "0"],
    }
    assert "- Not fine-tuned: owl (too few)." in text
    assert "jax " in text.split("## Versions")[1]
    assert 'cftjax.load("RUN")' in text


@pytest.mark.parametrize("mode", typing.get_args(typing.get_type_hints(LabelsConfig)["unknown"]))
def test_every_mode_for_unknown_labels_is_told(run, mode):
    labels = run.config["settings"]["labels"] | {"unknown": mode, "unknown_warmup": 1}
    settings = run.config["settings"] | {"labels": labels, "training": {"freeze_backbone": True}}
    changed = type(run)(run.folder)
    changed.config = run.config | {"settings": settings}
    told = re.search(r"While the head was trained, unknown labels (.+?) \(`(\w+)`\);", card.text(changed))
    assert told is not None
    assert told[2] == mode


def test_a_run_from_a_file_alone_names_the_file_and_not_its_folder(tmp_path):
    made = made_run.make(tmp_path / "secret" / "mine", backbone=False, splits=("train",))
    text = card.text(made)
    assert "Source: mine.npz." in text
    assert str(tmp_path) not in text
    assert "elsewhere" not in text
    assert "Cross-validated on the known training labels" in text
    assert "- polish: mAP 60.00" in text
    assert "fitted on the known labels of train" in text
    assert "Beware: there is no validation split" in text
    assert "How the backbone was trained is not known here" in text
    assert "load_state_dict" in text
    assert "model-index" not in text


def test_an_undefined_score_is_a_dash_and_named(run, tmp_path):
    path = run.folder / "report" / "metrics.json"
    whole = storage.read_json(path)
    hurt = {**whole, "test": {**whole["test"]}}
    final = whole["test"]["final"]
    hurt["test"]["final"] = {**final, "AP": [None, *final["AP"][1:]]}
    storage.write_json(path, hurt)
    try:
        text = card.text(run)
    finally:
        storage.write_json(path, whole)
    assert rows(text, "Scores")["cat"][1] == "-"
    assert "- Without a score on test, and left out of the means: cat." in text
    expected = metrics.average_precision(
        np.asarray(run.heads("final")(run.embeddings("test").z)),
        run.embeddings("test").labels,
        run.embeddings("test").known,
    )
    np.testing.assert_allclose(final["AP"], expected, atol=1e-6)
