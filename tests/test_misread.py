"""Inputs that people met and that were misread or answered badly: what is right, by the commands themselves."""

import json

import numpy as np
import pytest
import toy
from PIL import Image

from cftjax import evaluate, finetune, train
from cftjax.data import __main__ as data_command

SMALL = ["--ga.num-generations", "4", "--ga.restarts", "0", "--polish.num-steps", "4", "--report.resamples", "10"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """A command in a folder of its own: exit code, output and error."""
    monkeypatch.chdir(tmp_path)

    def of(main, *words):
        return toy.command(monkeypatch, capsys, main, *words)

    return of


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 32, 3), np.uint8)).save(path)


def table(path, head, rows):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


def test_a_table_of_one_and_minus_one_is_asked_about_by_every_command(call, tmp_path):
    rng, rows = np.random.default_rng(1), []
    for i in range(8):
        picture(tmp_path / f"img/{i}.png", i)
        rows.append((f"img/{i}.png", ("train", "test")[i > 4], *np.where(rng.random(2) < 0.4, 1, -1)))
    table(tmp_path / "labels.csv", "path,split,Bald,Young", rows)
    for main, words in ((data_command.main, ["check"]), (data_command.main, ["summary"]), (train.main, [])):
        code, _, error = call(main, *words, "csv", "--data.file", "labels.csv")
        assert code == 1
        assert "column Bald, Young: -1 stands there and no 0" in error
        assert "--data.minus-one negative, uncertain or unknown" in error
    code, out, _ = call(data_command.main, "check", "csv", "--data.file", "labels.csv", "--data.minus-one", "negative")
    assert code == 0
    assert "labels.csv: -1 is negative in Bald, Young." in out


def test_a_truth_of_one_and_minus_one_is_asked_about_and_random_numbers_do_not_score_100(call, tmp_path):
    rng = np.random.default_rng(3)
    truth = np.where(rng.random((60, 2)) < 0.4, 1, -1)
    table(tmp_path / "truth.csv", "id,cat,dog", [(i, *row) for i, row in enumerate(truth)])
    table(tmp_path / "random.csv", "id,cat,dog", [(i, *np.round(rng.random(2), 4)) for i in range(60)])
    words = ["random.csv", "--truth", "truth.csv", "--resamples", 0]
    code, _, error = call(evaluate.main, *words)
    assert (code, "--minus-one negative, uncertain or unknown" in error) == (1, True)
    code, _, _ = call(evaluate.main, *words, "--minus-one", "negative", "-o", "out")
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"][0]["overall"]
    assert code == 0
    assert 0.2 < scores["mAP"] < 0.7
    assert 0.3 < scores["mAUC"] < 0.7
    code, _, _ = call(evaluate.main, *words, "--minus-one", "unknown", "-o", "positive")
    scores = json.loads((tmp_path / "positive" / "metrics.json").read_text())["models"][0]["overall"]
    assert code == 0
    assert scores["mAP"] is None


def test_labels_of_three_values_have_an_answer_that_scores_as_the_same_labels_written_plainly(call, tmp_path):
    kernel = np.array([[2, 1, 0, 0], [0, 2, -1, 0]], np.float32)
    said, right = {}, {}
    for i, split in enumerate(("train", "validation", "test")):
        rng = np.random.default_rng(i)
        z = rng.normal(0, 1, (80, 4)).astype(np.float32)
        labels = np.where(z @ kernel.T + rng.normal(0, 1, (80, 2)) > 0, 1.0, -1.0)
        labels[rng.random((80, 2)) < 0.6] = 0
        said[f"{split}_z"] = right[f"{split}_z"] = z
        said[f"{split}_labels"] = labels
        right[f"{split}_labels"] = np.where(labels == 0, np.nan, (labels + 1) / 2)
    last_layer = {"kernel": kernel, "bias": np.zeros(2, np.float32)}
    np.savez(tmp_path / "three.npz", **said, **last_layer)
    np.savez(tmp_path / "right.npz", **right, **last_layer)
    code, _, error = call(finetune.main, "three.npz", "--workdir", "refused", *SMALL)
    assert code == 1
    assert "uncertain, unknown or negative-and-zero-unknown" in error
    answer = ["--minus-one", "negative-and-zero-unknown"]
    assert call(finetune.main, "three.npz", "--workdir", "three", *answer, *SMALL)[0] == 0
    assert call(finetune.main, "right.npz", "--workdir", "right", *SMALL)[0] == 0
    reports = [json.loads((tmp_path / run / "report" / "metrics.json").read_text()) for run in ("three", "right")]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    heads = [(tmp_path / run / "heads.safetensors").read_bytes() for run in ("three", "right")]
    assert heads[0] == heads[1]


def test_a_label_column_without_a_name_is_refused_in_tables_truths_and_predictions(call, tmp_path):
    rows = []
    for i in range(6):
        picture(tmp_path / f"img/{i}.png", i)
        rows.append((f"img/{i}.png", i % 2, i // 2 % 2, i // 4 % 2))
    for name in ("labels.csv", "truth.csv"):
        table(tmp_path / name, "path,ship,,water", rows)
    table(tmp_path / "pred.csv", "path,ship,snow,water", [(row[0], 0.2, 0.3, 0.4) for row in rows])
    for main, words in (
        (data_command.main, ["check", "csv", "--data.file", "labels.csv"]),
        (evaluate.main, ["pred.csv", "--truth", "truth.csv"]),
    ):
        code, _, error = call(main, *words)
        assert (code, "column 3 has values, such as '0', and no name" in error) == (1, True)


def test_pictures_whose_zero_is_white_pass_as_the_others_do(call, tmp_path):
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (3, 1))
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    table(tmp_path / "labels.csv", "path,cat", [("a.tif", 1)])
    code, out, _ = call(data_command.main, "check", "csv", "--data.file", "labels.csv")
    assert code == 0
    assert out.endswith("1 images: nothing is broken.\n")
