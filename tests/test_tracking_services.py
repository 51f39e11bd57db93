"""Weights & Biases and MLflow themselves, where they are installed: offline, and in a data base on this machine."""

import dataclasses
import json
import struct

import numpy as np
import pytest

from cftjax.runtime import tracking

pytestmark = pytest.mark.filterwarnings("default")  # what their libraries say is not ours

SETTINGS = {"training": {"epochs": 3, "learning_rate": 0.1}, "data": {"file": "x.csv"}, "seed": 7}
CONFIG = {"settings": SETTINGS, "versions": {"jax": "0.10"}}
CATEGORIES = ("No Finding", "<b>/é", "..")
SECRET = "s3cret" * 7


class Stopped(BaseException):
    """Whatever ends a process."""


def train(folder, name, first, last, stop=False):
    """Some steps of a training, after which search and report follow, unless it is stopped."""
    with tracking.opened([name], folder, CONFIG) as log:
        with log.curves(folder / "backbone", after=first) as curves:
            for step in range(first + 1, last + 1):
                curves.scalars(step, {"training/loss": 1 / step, "training/learning_rate": None})
            if stop:
                raise Stopped
        scores = np.array([[0.25, 0.5, np.nan], [0.5, np.nan, np.nan]], np.float32)
        log.write(folder / "search", "search/mAP", CATEGORIES, scores)
        (folder / "table.csv").write_text("category,AP\ncat,1\n")
        log.results({"report/mAP_final": 0.75, "report/mAUC_final": None}, [folder / "table.csv"])


def killed_and_resumed(folder, name):
    """Steps 1 to 6, of which the fifth is done again; the run is opened twice."""
    with pytest.raises(Stopped):
        train(folder, name, 0, 5, stop=True)
    train(folder, name, 4, 6)


def test_mlflow_has_one_run_with_every_point_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.chdir(tmp_path)
    killed_and_resumed(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cftjax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name.endswith("/run")
    assert run.data.params["training.learning-rate"] == "0.1"
    assert run.data.params["seed"] == "7"
    assert run.data.tags["version.jax"] == "0.10"

    def curve(name):
        return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]

    assert curve("training/loss") == [(step, 1 / step) for step in range(1, 7)]
    assert curve("search/mAP") == [(0, 0.375), (1, 0.5)]
    assert curve("search/mAP_by_category/No Finding") == [(0, 0.25), (1, 0.5)]
    assert curve("search/mAP_by_category/:3c:b:3e::2f::e9:") == [(0, 0.5)]
    assert curve("report/mAP_final") == [(0, 0.75)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "report")] == ["report/table.csv"]
    assert_no_secret(tmp_path / "run")


def test_mlflow_takes_other_settings_as_another_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.chdir(tmp_path)
    for seed in (7, 7, 8):
        config = CONFIG | {"settings": SETTINGS | {"seed": seed}}
        with tracking.opened(["mlflow"], tmp_path / "run", config):
            pass
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert sorted(run.data.params["seed"] for run in runs) == ["7", "8"]


def test_weights_and_biases_has_one_run_with_every_point_once(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET[:40])
    monkeypatch.chdir(tmp_path)
    killed_and_resumed(tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run" / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # the same run, which `wandb sync` joins
    whole = [read(file) for file in files]
    assert whole[0].config["training"] == {"epochs": 3, "learning_rate": 0.1}
    assert whole[1].steps == {"training/*": "training/step", "search/*": "search/step"}
    lines = [line for log in whole for line in log.lines]
    assert [line["_step"] for line in lines] == list(range(len(lines)))
    losses = [(line["training/step"], line["training/loss"]) for line in lines if "training/loss" in line]
    assert losses == [(step, 1 / step) for step in range(1, 7)]
    name = "search/mAP_by_category/<b>/é"
    assert [(line["search/step"], line[name]) for line in lines if name in line] == [(0, 0.5)]
    assert whole[1].summary["report/mAP_final"] == 0.75
    assert [log.exit_code for log in whole] == [1, 0]
    assert_no_secret(tmp_path / "run")


@dataclasses.dataclass
class Offline:
    """What W&B keeps in a file of its own."""

    config: dict = dataclasses.field(default_factory=dict)
    steps: dict = dataclasses.field(default_factory=dict)
    lines: list = dataclasses.field(default_factory=list)
    summary: dict = dataclasses.field(default_factory=dict)
    exit_code: int | None = None


def records(content):
    """The records of a log in LevelDB's format, behind W&B's own seven bytes."""
    at, begun = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
        _, length, kind = struct.unpack_from("<IHB", content, at)
        begun += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def read(path):
    """The content of a run that was logged offline."""
    from wandb.proto import wandb_internal_pb2

    log = Offline()
    for content in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")

        def items(updates):
            return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}

        if kind in ("run", "config"):
            log.config |= items((record.run.config if kind == "run" else record.config).update)
        elif kind == "metric":
            log.steps[record.metric.glob_name] = record.metric.step_metric
        elif kind == "history":
            log.lines.append(items(record.history.item) | {"_step": record.history.step.num})
        elif kind == "summary":
            log.summary |= items(record.summary.update)
        elif kind == "exit":
            log.exit_code = record.exit.exit_code
    return log


def assert_no_secret(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET[:12].encode() in path.read_bytes()]
