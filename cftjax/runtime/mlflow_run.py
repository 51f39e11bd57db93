"""A run as MLflow keeps it. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME work as MLflow says."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cftjax.runtime.settings import flat

EXPERIMENT = "cftjax"
# Where nothing else is said: MLflow's own patience with a server that is not there is four minutes and more.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# What MLflow takes at once, and at most of a parameter.
METRICS_AT_ONCE, PARAMS_AT_ONCE, VALUE_LENGTH, NAME_LENGTH = 1000, 100, 6000, 250


class MlflowRun:
    """A run of MLflow."""

    title = "MLflow"
    position = 0

    def __init__(self, folder: Path, name: str, past: str | None, position: int) -> None:
        """Begin a run, or go on with one.

        Args:
            folder: of no use here: MLflow has places of its own.
            name: as people see it.
            past: id of the run to go on with.
            position: of no use here.
        """
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        import mlflow  # pyright: ignore[reportMissingImports]  (an extra)

        # A line for each try to reach a server, of which one is said in the end.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.mlflow: Any = mlflow
        self.client: Any = mlflow.MlflowClient()
        if past and self.is_there(past):
            self.id = past
            self.client.update_run(past, status="RUNNING")
        else:
            self.id = self.client.create_run(self.experiment(), run_name=name).info.run_id
        self.where = f"run {self.id} of experiment {self.client.get_run(self.id).info.experiment_id}"

    def is_there(self, past: str) -> bool:
        """Whether a run is where MLflow writes now, and was not deleted."""
        try:
            return self.client.get_run(past).info.lifecycle_stage == "active"
        except self.mlflow.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def experiment(self) -> str:
        """The id of the experiment that the environment names, or of our own."""
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        existing = self.client.get_experiment_by_name(name)
        return existing.experiment_id if existing else self.client.create_experiment(name)

    def settings(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Keep all settings as parameters, once, for MLflow lets none of them change."""
        from mlflow.entities import Param, RunTag  # pyright: ignore[reportMissingImports]

        there = self.client.get_run(self.id).data.params
        values = {key: item if isinstance(item, str) else json.dumps(item) for key, item in flat(settings).items()}
        new = [Param(key, value[:VALUE_LENGTH]) for key, value in values.items() if key not in there]
        for start in range(0, len(new), PARAMS_AT_ONCE):
            self.client.log_batch(self.id, params=new[start : start + PARAMS_AT_ONCE])
        self.client.log_batch(self.id, tags=[RunTag(f"version.{key}", value) for key, value in versions.items()])

    def points(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Add points to curves."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(1000 * time.time())
        metrics = [Metric(allowed(name), value, now, step) for step, values in points for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self.client.log_batch(self.id, metrics=metrics[start : start + METRICS_AT_ONCE])

    def results(self, scores: Mapping[str, float], files: Sequence[Path]) -> None:
        """Keep the last scores as metrics, and all files as artifacts."""
        self.points([(0, scores)])
        for file in files:
            self.client.log_artifact(self.id, str(file), "report")

    def close(self, ended: BaseException | None) -> None:
        """The run has ended, perhaps by an error or a signal."""
        status = "FINISHED" if ended is None else "KILLED" if isinstance(ended, KeyboardInterrupt) else "FAILED"
        self.client.set_terminated(self.id, status)


def allowed(name: str) -> str:
    """A curve's name in letters that MLflow takes: others are written as their number, so that no two become one."""
    groups = name.split("/", 2)
    last = groups[-1] if len(groups) > 1 else name
    escaped = re.sub(r"[^A-Za-z0-9_\- .]|^[. ]|[. ]$", lambda letter: f":{ord(letter[0]):x}:", last) or ":"
    if len(escaped) > NAME_LENGTH - 100:
        escaped = f"{escaped[:80]}:{hashlib.sha256(last.encode()).hexdigest()[:16]}"
    return "/".join([*groups[:-1], escaped])
