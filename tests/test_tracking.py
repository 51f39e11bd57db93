"""Curves on their way to services outside: nothing twice, nothing that a failure takes with it."""

import dataclasses
import sys
import threading
from typing import ClassVar

import numpy as np
import pytest
from test_training_loop import STEPS_PER_EPOCH, config, dataset, tiny  # noqa: F401

from cftjax.runtime import mlflow_run, sending, storage, tracking
from cftjax.training import images, loop

CONFIG = {"settings": {"seed": 3, "log": ["mlflow"]}, "versions": {"jax": "1"}}


class Service:
    """A service that keeps everything in memory, by the ids of its runs."""

    title, where, position = "Service", "here", 0
    runs: ClassVar[dict] = {}
    error: Exception | None = None
    hang: threading.Event | None = None

    def __init__(self, folder, name, past, position):
        if Service.error is not None:
            raise Service.error
        self.id = past or f"run-{len(Service.runs)}"
        self.position = position
        self.kept = Service.runs.setdefault(self.id, {"name": name, "points": [], "ended": []})

    def settings(self, settings, versions):
        self.kept["settings"] = settings

    def points(self, points):
        if Service.hang is not None:
            Service.hang.wait(20)
        if Service.error is not None:
            raise Service.error
        self.position += len(points)
        self.kept["points"] += [(step, name, value) for step, values in points for name, value in values.items()]

    def results(self, scores, files):
        self.kept["results"] = scores, [file.name for file in files]

    def close(self, ended):
        self.kept["ended"].append(type(ended).__name__)


@pytest.fixture(autouse=True)
def service(monkeypatch):
    monkeypatch.setattr(Service, "runs", {})
    monkeypatch.setattr(Service, "error", None)
    monkeypatch.setattr(Service, "hang", None)
    monkeypatch.setattr(sending, "BATCH_SECONDS", 0.01)
    monkeypatch.setitem(tracking.SERVICES, "mlflow", Service)
    monkeypatch.setattr(tracking, "check", lambda names: None)
    return Service


def opened(folder, **settings):
    return tracking.opened(["mlflow"], folder, CONFIG | {"settings": CONFIG["settings"] | settings})


def write(folder, categories=("a",)):
    with opened(folder) as log:
        log.write(folder / "stage", "search/mAP", categories, np.ones((3, len(categories)), np.float32))


def fit(folder, change=None):
    with opened(folder) as log:
        source = images.of_experiment(dataset(change=change), dataclasses.replace(config(), log=("mlflow",)))
        return loop.fit(source, folder / "backbone", log=log)


@pytest.mark.usefixtures("tiny")
def test_a_killed_training_goes_on_in_the_same_run_and_sends_every_point_once(tmp_path, service, monkeypatch):
    history = fit(tmp_path / "whole")
    ((_, whole),) = service.runs.items()
    assert [step for step, name, _ in whole["points"] if name == "training/loss"] == list(
        range(1, 2 * STEPS_PER_EPOCH + 1)
    )
    real = loop.Training.save

    def killed(self, *args):
        real(self, *args)
        self.step()  # sent, and lost with the process
        self.settle()
        self.log.flush()
        self.writer.wait()
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path / "killed")
    assert fit(tmp_path / "killed") == history
    assert len(service.runs) == 2
    _, again = service.runs.values()
    assert again["points"] == whole["points"]
    assert again["ended"] == ["RuntimeError", "NoneType"]


def test_other_settings_begin_another_run_and_another_log_does_not(tmp_path, service):
    for settings in ({}, {"log": ["tensorboard", "mlflow"]}, {"seed": 4}):
        with opened(tmp_path, **settings) as log:
            log.write(tmp_path / "stage", "search/mAP", ["a"], np.array([[0.5], [0.75]], np.float32))
    points = [(0, "search/mAP", 0.5), (0, "search/mAP_by_category/a", 0.5)]
    points += [(1, "search/mAP", 0.75), (1, "search/mAP_by_category/a", 0.75)]
    assert [run["points"] for run in service.runs.values()] == [points, points]


@pytest.mark.usefixtures("tiny")
def test_a_service_that_fails_is_said_once_and_the_training_ends_as_without_it(tmp_path, service):
    def failing(row):
        service.error = ConnectionError("no route\nto host \x1b[31m")

    plain = loop.fit(images.of_experiment(dataset(), config()), tmp_path / "plain")
    with pytest.warns(UserWarning, match=r"Service has failed \(ConnectionError: no route\)") as said:
        history = fit(tmp_path / "run", change=failing)
    assert len(said) == 1
    assert history == plain


def test_a_service_that_hangs_holds_nothing_up(tmp_path, service, monkeypatch):
    monkeypatch.setattr(sending, "DRAIN_SECONDS", 0.05)
    monkeypatch.setattr(sending, "CLOSE_SECONDS", 0.1)
    service.hang = threading.Event()
    with pytest.warns(UserWarning, match="has not taken everything") as said:
        write(tmp_path)
    service.hang.set()
    assert len(said) == 1


def test_what_cannot_be_had_is_refused_at_the_beginning_and_only_said_later(tmp_path, service):
    service.error = ValueError("no key")
    with pytest.raises(ValueError, match=r"--log mlflow: ValueError: no key\. MLFLOW_TRACKING_URI"), opened(tmp_path):
        pass
    service.error = None
    with opened(tmp_path):
        pass
    service.error = ValueError("no key")
    with pytest.warns(UserWarning, match=r"no key\. The run goes on without"):
        write(tmp_path)


def test_of_too_many_categories_services_get_the_mean_alone(tmp_path, service, monkeypatch):
    monkeypatch.setattr(tracking, "MOST_POINTS", 5)
    write(tmp_path, ["a", "b"])
    assert {name for _, name, _ in service.runs["run-0"]["points"]} == {"search/mAP"}


def test_the_folder_holds_ids_and_settings_and_no_more(tmp_path):
    with opened(tmp_path):
        pass
    assert storage.read_json(tmp_path / "tracking" / "mlflow.json") == {
        "run": "run-0",
        "position": 0,
        "settings": {"seed": 3},
    }


def test_a_folder_that_is_called_like_a_package_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ImportError, match=r"--log wandb needs wandb: pip install"):
        tracking.check(["wandb"])


@pytest.mark.parametrize(
    ("category", "name"),
    [
        ("No Finding", "No Finding"),
        ("a/b", "a:2f:b"),
        ("<b>", ":3c:b:3e:"),
        ("..", ":2e::2e:"),
        ("a:2f:", "a:3a:2f:3a:"),
    ],
)
def test_names_of_categories_stay_apart_in_letters_that_mlflow_takes(category, name):
    assert mlflow_run.allowed(f"search/mAP_by_category/{category}") == f"search/mAP_by_category/{name}"


def test_long_names_stay_apart():
    names = {mlflow_run.allowed("x/y/" + "a" * 300 + end) for end in "bc"}
    assert len(names) == 2
    assert max(map(len, names)) <= 250
