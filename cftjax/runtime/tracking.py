"""Where a run's curves, settings and results go beside its own files: `--log tensorboard wandb mlflow`.

TensorBoard's logs lie in the folders of the stages and are gone with them. Weights & Biases and MLflow have one run of
theirs for each of ours: `RUN/tracking/NAME.json` says which, so that a run that was killed goes on in it, and
`STAGE/tracking/NAME.json` what it has of a stage's curves, so that no point is sent twice. With other settings a new
one begins.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from cftjax import extras
from cftjax.config import Log
from cftjax.runtime import mlflow_run, storage, tensorboard, wandb_run
from cftjax.runtime.sending import FOLDER, Sender, Sent, Service, in_words
from cftjax.runtime.settings import differences

PACKAGES: dict[Log, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
SERVICES: dict[Log, Callable[..., Service]] = {"wandb": wandb_run.WandbRun, "mlflow": mlflow_run.MlflowRun}
# Of all categories together; of more, services get the mean alone, each point of which is a row of a data base.
MOST_POINTS = 20_000


def check(names: Sequence[Log]) -> None:
    """Refuse to begin without what the names need.

    Raises:
        ImportError: with the command that installs it.
    """
    for name in names:
        package = PACKAGES[name]
        spec = importlib.util.find_spec(package)
        # A folder of that name, such as W&B leaves behind, is found as well, and is no package.
        if spec is None or spec.origin is None:
            raise ImportError(f"--log {name} needs {package}: {extras.install(name)}")


@runtime_checkable
class Curve(Protocol):
    """What takes the points of a stage's curves."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        ...

    def flush(self) -> None:
        """Hand over what was added."""
        ...

    def close(self) -> None:
        """Nothing more is added."""
        ...


class Curves:
    """The curves of a stage, wherever they go; as a context manager they are closed at the end."""

    def __init__(self, places: Sequence[Curve]) -> None:
        """Go to these places."""
        self.places = places

    def __enter__(self) -> Curves:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close them."""
        for place in self.places:
            place.close()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve; None and what is no number are left out."""
        points = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        for place in self.places if points else ():
            place.scalars(step, points)

    def flush(self) -> None:
        """Hand over what was added."""
        for place in self.places:
            place.flush()


class Tracking:
    """Where the curves of a run go: nowhere unless it was asked for."""

    def __init__(self, tensorboard: bool = False, senders: Sequence[Sender] = ()) -> None:
        """To TensorBoard's logs in the stages' folders, and to services."""
        self.tensorboard, self.senders = tensorboard, senders

    def curves(self, folder: Path, after: int = 0) -> Curves:
        """Begin the curves of a stage, or go on with them.

        Args:
            folder: of the stage.
            after: what is there of later steps is void, for they are done again.
        """
        logs = [tensorboard.Log(folder / tensorboard.FOLDER, after)] if self.tensorboard else []
        return Curves([*logs, *(Sent(sender, folder) for sender in self.senders)])

    def again(self, folder: Path) -> Curves:
        """The curves of a stage that is done, for services that do not have them yet."""
        return Curves([Sent(sender, folder) for sender in self.senders])

    def write(self, folder: Path, name: str, categories: Sequence[str], scores: Float[np.ndarray, "g c"]) -> None:
        """The curves of a stage that is done: the mean over categories and, unless they are too many, each of them.

        Args:
            folder: of the stage; what has its curves already is left alone.
            name: of the mean, such as `search/mAP`; those of categories begin with it.
            categories: names, length c.
            scores: [g c] by generation or pull; NaN where there is no point. In the mean a category that has stopped
                keeps its last score.
        """
        own = folder / tensorboard.FOLDER
        if self.tensorboard and not own.is_dir():
            with Curves([tensorboard.Log(own)]) as curves:
                add(curves, name, categories, scores, most=tensorboard.MOST_POINTS)
        with self.again(folder) as curves:
            add(curves, name, categories, scores, most=MOST_POINTS)

    def results(self, scores: Mapping[str, float | None], files: Sequence[Path]) -> None:
        """What the run has come to, for the services.

        Args:
            scores: by name, such as `report/mAP_final`.
            files: tables and figures.
        """
        known = {name: score for name, score in scores.items() if score is not None}
        for sender in self.senders:
            sender.do(lambda service: service.results(known, files))

    def close(self, ended: BaseException | None) -> None:
        """Say how the run ended, and wait until everything has arrived, but not for ever."""
        for sender in self.senders:
            sender.close(ended)


def add(curves: Curves, name: str, categories: Sequence[str], scores: Float[np.ndarray, "g c"], most: int) -> None:
    """Add the mean over categories and, of no more than so many points, each of them."""
    kept = np.array(scores, np.float32)
    for row in range(1, len(kept)):
        kept[row] = np.where(np.isnan(kept[row]), kept[row - 1], kept[row])
    defined = ~np.isnan(kept)
    sums, counts = np.where(defined, kept, 0).sum(axis=1), defined.sum(axis=1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    for step, (mean, row) in enumerate(zip(means, scores, strict=True)):
        each = zip(categories, row, strict=True) if scores.size <= most else ()
        curves.scalars(
            step, {name: float(mean), **{f"{name}_by_category/{category}": float(score) for category, score in each}}
        )


@contextlib.contextmanager
def opened(names: Sequence[Log], folder: Path, config: Mapping[str, Any]) -> Iterator[Tracking]:
    """Where the curves of a run go until the block ends.

    Args:
        names: of the option --log.
        folder: of the run.
        config: what its config.json holds.

    Raises:
        ValueError: where a service cannot be had and the run has nothing there yet; else that is said and the run goes
            on without.
    """
    check(names)
    tracking = Tracking("tensorboard" in names)
    ended: BaseException | None = None
    try:
        opening = (begin(name, folder, config) for name in dict.fromkeys(names) if name in SERVICES)
        tracking.senders = [sender for sender in opening if sender is not None]
        yield tracking
    except BaseException as error:
        ended = error
        raise
    finally:
        tracking.close(ended)


def begin(name: Log, folder: Path, config: Mapping[str, Any]) -> Sender | None:
    """A service's run for this one: the one that it had with the same settings, or a new one."""
    path = folder / FOLDER / f"{name}.json"
    settings = json.loads(json.dumps({key: value for key, value in config["settings"].items() if key != "log"}))
    kept = storage.read_json(path) if path.is_file() else {}
    past = kept if kept and not differences(kept.get("settings"), settings) else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    title = "/".join(folder.resolve().parts[-2:])
    try:
        service = SERVICES[name](path.parent, title, past.get("run"), past.get("position", 0))
        service.settings(settings, config["versions"])
    except Exception as error:
        if past:
            warnings.warn(f"--log {name}: {in_words(error)}. The run goes on without.", stacklevel=2)
            return None
        raise ValueError(f"--log {name}: {in_words(error)}. {MENDS[name]}") from error
    print(f"{service.title}: {service.where}", flush=True)
    return Sender(name, service, functools.partial(note, path, settings, service))


MENDS = {
    "wandb": "Log in (wandb login, or WANDB_API_KEY), or keep everything here with WANDB_MODE=offline",
    "mlflow": "MLFLOW_TRACKING_URI says where MLflow writes, such as sqlite:///mlflow.db",
}


def note(path: Path, settings: Any, service: Service) -> None:
    """Keep which run of a service is this run's, and how far it is: neither keys nor addresses, which may hold one."""
    storage.write_json(path, {"run": service.id, "position": service.position, "settings": settings})
