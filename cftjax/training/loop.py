"""Training, epoch by epoch, so that it can be stopped anywhere and goes on bit for bit.

`Images` is what a whole classifier is trained on; `frozen.Embedded` takes its place where the head is trained alone.

In its folder, `best/STEP` holds the weights of the best epoch (moving averages, all that inference needs), `state/STEP`
the last two states (all that going on needs), and `history.json` the loss and validation score of every epoch;
`tensorboard` is there where it was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float32, Int

from cftjax import backbones, metrics, types
from cftjax.config import BackboneConfig, Config, TrainingConfig, check_together
from cftjax.data import labels
from cftjax.embeddings import embed
from cftjax.input import pipeline
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import checkpoints, devices, digests, interruption, storage, tensorboard
from cftjax.runtime.progress import Progress
from cftjax.training import step as steps
from cftjax.training import unknowns
from cftjax.training.step import Classifier

# Steps between two questions of all hosts to each other whether to save or stop.
HOSTS_AGREE_EVERY = 16
# Logits of validation computed at a time: 256 MB.
SCORED_ELEMENTS = 2**26


@dataclasses.dataclass(frozen=True)
class History:
    """How training went.

    Attributes:
        step: steps done.
        loss: mean training loss of each epoch, nats per known label.
        score: mean validation AP or AUROC of each epoch's moving averages; None where undefined.
        best_epoch: the epoch kept, counted from 1; 0 before the first.
        best_step: steps done at its end.
        epoch_loss: sum of the losses of the epoch that has begun.
        finished: why training ended; empty while it goes on.
        unopened: names of training images that could not be opened, as this host met them.
    """

    step: int = 0
    loss: tuple[float, ...] = ()
    score: tuple[float | None, ...] = ()
    best_epoch: int = 0
    best_step: int = 0
    epoch_loss: float = 0.0
    finished: str = ""
    unopened: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> History:
        """Read what `dataclasses.asdict` made."""
        # JSON knows no tuples.
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in stored.items()}
        return cls(**given)


class Step(NamedTuple):
    """A step whose loss has not been looked at.

    Attributes:
        number: steps done before it.
        rows: of its batch.
        iterator_state: before its batch.
        loss: on the device.
    """

    number: int
    rows: np.ndarray
    iterator_state: dict[str, Any]
    loss: jax.Array


class Judged(NamedTuple):
    """Validation as a model of the moment sees it.

    Attributes:
        z: embeddings.
        heads: the last layer for them.
        columns: some categories -> labels [n k] and known [n k].
    """

    z: Float[types.Array, "n d"]
    heads: types.Heads
    columns: Callable[[Int[np.ndarray, " k"]], tuple[Bool[np.ndarray, "n k"], Bool[np.ndarray, "n k"]]]


@runtime_checkable
class Source(Protocol):
    """What is trained, and on what."""

    @property
    def records(self) -> types.Records:
        """The training split."""
        ...

    @property
    def settings(self) -> TrainingConfig:
        """Loss, optimizer and schedule."""
        ...

    def batches(self, bad_images: set[str]) -> grain.DatasetIterator[types.Batch]:
        """Endless training batches; names of images that could not be opened are added to the set."""
        ...

    def abstract(self) -> tuple[nnx.GraphDef[Any], Any, Any, Any]:
        """Structure, and shapes of parameters, statistics and other variables, of what is trained."""
        ...

    def create(self) -> nnx.Module:
        """What is trained, as it begins."""
        ...

    def judged(self, model: Any, mesh: Mesh) -> Judged | None:
        """Validation through a model in evaluation mode; None where there is no such split."""
        ...

    def classifier(self, params: Any, stats: Any, rest: Any) -> tuple[Any, Any]:
        """Parameters and statistics of the whole classifier, from those of what is trained."""
        ...


@dataclasses.dataclass(frozen=True)
class Images:
    """A whole classifier, trained on images.

    Attributes:
        dataset: with the split `train`, and `validation` where there is one.
        config: its labels, input, backbone, training, embed.batch_size and seed are read.
    """

    dataset: types.Dataset
    config: Config[Any]

    @property
    def records(self) -> types.Records:
        """The training split."""
        return self.dataset.splits["train"]

    @property
    def settings(self) -> TrainingConfig:
        """As given."""
        return self.config.training

    @property
    def architecture(self) -> tuple[BackboneConfig, int, Any]:
        """What decides the classifier's variables."""
        return architecture(self.config, len(self.dataset.categories))

    def batches(self, bad_images: set[str]) -> grain.DatasetIterator[types.Batch]:
        """Shuffled and augmented."""
        config = self.config
        return iter(
            pipeline.train_batches(
                self.records,
                config.labels,
                preprocessing(config),
                config.input,
                batch_size=config.training.batch_size,
                seed=config.seed,
                shard=devices.host_shard(),
                bad_images=bad_images,
            )
        )

    def abstract(self) -> tuple[nnx.GraphDef[Any], Any, Any, Any]:
        """Of the classifier."""
        return steps.abstract_classifier(*self.architecture)

    def create(self) -> Classifier:
        """With random weights, or the backbone's pretrained ones."""
        return steps.new_classifier(*self.architecture, self.config.seed)

    def judged(self, model: Classifier, mesh: Mesh) -> Judged | None:
        """All validation images, embedded."""
        if "validation" not in self.dataset.splits:
            return None
        records, config = self.dataset.splits["validation"], self.config
        parts = list(
            embed.embed_rows(
                model.backbone, records, preprocessing(config), config.input, config.embed.batch_size, mesh=mesh
            )
        )
        z, opened = np.concatenate([part.z for part in parts]), np.concatenate([part.opened for part in parts])

        def columns(some: Int[np.ndarray, " k"]) -> tuple[np.ndarray, np.ndarray]:
            given = records.labels.columns(some)
            return given.labels, given.known & opened[:, None]

        return Judged(z, heads_of(model), columns)

    def classifier(self, params: Any, stats: Any, rest: Any) -> tuple[Any, Any]:
        """As they are."""
        return params, stats


def architecture(config: Config[Any], num_categories: int) -> tuple[BackboneConfig, int, Any]:
    """What decides the variables of an experiment's classifier: see `train_step.abstract_classifier`."""
    return config.backbone, num_categories, devices.compute_dtype(config.training.compute_dtype)


def preprocessing(config: Config[Any]) -> Preprocessing:
    """What images go through: as the backbone's weights want it, at the size asked for or that the data have."""
    found = backbones.preprocessing(config.backbone)
    own = getattr(config.data, "scene_size", None) if config.backbone.weights is None else None
    return dataclasses.replace(found, image_size=config.backbone.image_size or own or found.image_size)


def fit(dataset: types.Dataset, config: Config[Any], folder: Path, *, mesh: Mesh | None = None) -> History:
    """Train a classifier, or go on with the one in the folder; returns at once where that is finished.

    The epoch with the best validation score is kept; without a validation split, or where no category has both labels,
    the last. SIGTERM and Ctrl-C save first.

    Args:
        dataset: with the split `train`, and `validation` where there is one.
        config: its labels, input, backbone, training, embed.batch_size, seed and tensorboard are read.
        folder: of checkpoints and history.
        mesh: of the devices; all of them if None.

    Raises:
        ValueError: for settings that do not fit the data or the devices; and where the loss or gradient is not finite,
            naming step and images.
        KeyboardInterrupt: after a signal, when everything is saved.
    """
    return follow(Images(dataset, config), config, folder, mesh)


def follow(source: Source, config: Config[Any], folder: Path, mesh: Mesh | None = None) -> History:
    """Train on a source, or go on with the training in the folder, as `fit` does on images."""
    mesh = devices.mesh() if mesh is None else mesh
    devices.check_batch_size("training.batch_size", config.training.batch_size, mesh)
    parts = config.training.accumulate
    if config.training.batch_size % (parts * mesh.size):
        raise ValueError(
            f"training.batch_size {config.training.batch_size} does not divide into training.accumulate {parts} parts "
            f"over {mesh.size} devices: use a multiple of {parts * mesh.size}."
        )
    check_together(config.labels, config.training)
    training = Training(source, config, folder, mesh)
    if training.history.finished:
        return training.history
    with (
        interruption.deferred() as asked,
        Progress("Train", unit="steps") as shown,
        contextlib.closing(training.iterator),
        contextlib.ExitStack() as stack,
    ):
        if config.tensorboard and devices.is_primary():
            log = tensorboard.Log(folder / tensorboard.FOLDER, after=training.history.step)
            training.log = stack.enter_context(log)
        shown.update(training.history.step, training.spec.num_steps, "compiling")
        while not training.history.finished:
            training.step()
            if training.at_end_of_epoch():
                training.end_epoch()
            elif training.all_agree(time.monotonic() - training.saved_at > config.training.checkpoint_seconds):
                training.save()
            if training.all_agree(asked.requested):
                training.save()
                training.writer.wait()
                asked.stop(f"training is saved at step {training.history.step}")
            shown.update(training.history.step, training.spec.num_steps, training.news())
        training.writer.wait()
    return training.history


class Training:
    """A training that is under way."""

    def __init__(self, source: Source, config: Config[Any], folder: Path, mesh: Mesh) -> None:
        """Begin, or take up what the folder holds."""
        self.source, self.config, self.folder = source, config, folder
        self.records = source.records
        self.unopened: set[str] = set()
        settings = source.settings
        self.steps_per_epoch = pipeline.steps_per_epoch(len(self.records), settings.batch_size)
        self.iterator = source.batches(self.unopened)
        num_steps = settings.epochs * self.steps_per_epoch
        num_steps = min(num_steps, settings.max_steps or num_steps)
        graphdef, params, stats, rest = source.abstract()
        self.spec = steps.new_spec(
            graphdef,
            settings,
            num_steps,
            mesh,
            labels=config.labels,
            steps_per_epoch=self.steps_per_epoch,
            seed=config.seed,
        )
        kept = (
            unknowns.new_memory(config.labels, *self.records.labels.shape),
            positive_weights(self.records.labels, config),
        )
        self.advance = steps.compiled(self.spec)
        self.writer = checkpoints.Writer()
        self.log: tensorboard.Log | None = None
        self.rates = np.asarray(jax.vmap(steps.schedule(settings, num_steps))(jnp.arange(num_steps)))
        self.waiting: Step | None = None
        self.loss = math.nan
        self.saved_at = time.monotonic()
        found = checkpoints.steps(folder / "state")
        if not found:
            self.history = History()
            self.state = steps.new_state(self.spec, source.create(), *kept)
            return
        metadata = checkpoints.metadata(folder / "state", found[-1], needed=("history", "iterator"))
        with digests.describing(folder / "state" / str(found[-1]) / checkpoints.DESCRIPTION):
            self.history = History.from_json(metadata["history"])
        self.unopened.update(self.history.unopened)
        like = steps.abstract_state(self.spec, params, stats, rest, *kept)
        self.state = checkpoints.restore(folder / "state", found[-1], like)
        self.iterator.set_state(metadata["iterator"])
        # The best weights may not have been written when the state of the same step was.
        if self.history.best_step == self.history.step and self.history.step not in checkpoints.steps(folder / "best"):
            self.save_best()
            self.writer.wait()

    def step(self) -> None:
        """One step on the device, while the loss of the one before is read."""
        before = self.iterator.get_state()
        batch = next(self.iterator)
        self.state, loss = self.advance(self.state, devices.shard(batch, self.spec.mesh))
        self.settle()
        self.waiting = Step(self.history.step, np.asarray(batch.rows), before, loss)
        self.history = dataclasses.replace(self.history, step=self.history.step + 1)

    def settle(self) -> None:
        """Read the loss of the last step; stop if it is not finite."""
        if self.waiting is None:
            return
        last, self.waiting = self.waiting, None
        self.loss = float(last.loss)
        if not math.isfinite(self.loss):
            self.fail(last)
        self.history = dataclasses.replace(self.history, epoch_loss=self.history.epoch_loss + self.loss)
        if self.log is not None:
            values = {"training/loss": self.loss, "training/learning_rate": float(self.rates[last.number])}
            self.log.scalars(last.number + 1, values)

    def fail(self, last: Step) -> None:
        """Save the state before the step that went wrong, and say what was in it."""
        self.history = dataclasses.replace(self.history, step=last.number)
        # The step changed nothing but this mark.
        self.state = dataclasses.replace(self.state, finite=~self.state.finite)
        self.save(last.iterator_state)
        self.writer.wait()
        names = ", ".join(str(self.records.names[row]) for row in last.rows if row >= 0)
        raise ValueError(
            f"step {last.number}: loss or gradient is not finite. The state before it is saved in "
            f"{self.folder / 'state' / str(last.number)}. Reduce training.learning_rate, or look at its images: {names}"
        )

    def at_end_of_epoch(self) -> bool:
        """Whether an epoch, or the last step of all, is done."""
        return self.history.step % self.steps_per_epoch == 0 or self.history.step == self.spec.num_steps

    def end_epoch(self) -> None:
        """Score the moving averages, keep them if they are the best so far, and save."""
        self.settle()
        history, settings = self.history, self.config.training
        score = self.validate()
        done = (history.step - 1) % self.steps_per_epoch + 1
        epoch = len(history.loss) + 1
        best = history.score[history.best_epoch - 1] if history.best_epoch else None
        better = score is None or best is None or score > best
        self.history = dataclasses.replace(
            history,
            loss=(*history.loss, history.epoch_loss / done),
            score=(*history.score, score),
            best_epoch=epoch if better else history.best_epoch,
            best_step=history.step if better else history.best_step,
            epoch_loss=0.0,
        )
        self.note_unopened()
        history = self.history
        if self.log is not None:
            values = {"epoch/training_loss": history.loss[-1], f"epoch/validation_m{settings.metric}": score}
            self.log.scalars(history.step, values)
        if history.step == self.spec.num_steps:
            self.history = dataclasses.replace(history, finished="all steps are done")
        elif epoch - history.best_epoch >= settings.patience:
            reason = f"no better validation score in {settings.patience} epochs"
            self.history = dataclasses.replace(history, finished=reason)
        self.writer.wait()
        if better:
            self.save_best()
        if devices.is_primary():
            storage.write_json(self.folder / "history.json", dataclasses.asdict(self.history))
        self.save()

    def validate(self) -> float | None:
        """The mean score of the moving averages on the known validation labels; None where there is none."""
        model = nnx.merge(self.spec.graphdef, *self.state.ema, self.state.rest)
        model.eval()
        judged = self.source.judged(model, self.spec.mesh)
        if judged is None:
            return None
        heads, c = judged.heads, len(judged.heads.bias)
        scores = np.empty(c, np.float32)
        # A group of categories at a time: all labels of a large set do not fit into one dense array.
        size = max(SCORED_ELEMENTS // max(len(judged.z), 1), 1)
        for start in range(0, c, size):
            some = slice(start, min(start + size, c))
            present, known = judged.columns(np.arange(c)[some])
            logits = np.asarray(types.Heads(heads.kernel[some], heads.bias[some])(judged.z))
            scores[some] = metrics.score(self.config.training.metric, logits, present, known)
        mean = float(metrics.mean_defined(scores))
        return mean if math.isfinite(mean) else None

    def save_best(self) -> None:
        """Begin to write what inference needs."""
        params, stats = self.state.ema
        params, stats = self.source.classifier(params, stats, self.state.rest)
        history = self.history
        metadata = {
            "backbone": dataclasses.asdict(self.config.backbone),
            "num_categories": self.records.labels.shape[1],
            "compute_dtype": self.config.training.compute_dtype,
            "epoch": history.best_epoch,
            "score": history.score[history.best_epoch - 1],
        }
        self.writer.save(self.folder / "best", history.step, {"params": params, "stats": stats}, metadata)

    def save(self, iterator_state: dict[str, Any] | None = None) -> None:
        """Begin to write what going on needs, with the iterator as it is or was in the state given."""
        self.settle()
        self.note_unopened()
        self.saved_at = time.monotonic()
        self.writer.wait()
        if self.log is not None:
            # Before the state: going on from it must not find a gap.
            self.log.flush()
        if self.history.step in checkpoints.steps(self.folder / "state"):
            return
        metadata = {
            "history": dataclasses.asdict(self.history),
            "iterator": self.iterator.get_state() if iterator_state is None else iterator_state,
        }
        self.writer.save(self.folder / "state", self.history.step, self.state, metadata, keep=2)

    def note_unopened(self) -> None:
        """Keep the names of images that could not be opened so far."""
        # A copy first: threads add to the set at any time.
        self.history = dataclasses.replace(self.history, unopened=tuple(sorted(self.unopened.copy())))

    def all_agree(self, flag: bool) -> bool:
        """The flag, or where there are several hosts, whether any of them has it set; they ask now and then."""
        if jax.process_count() == 1:
            return flag
        return self.history.step % HOSTS_AGREE_EVERY == 0 and devices.any_host(flag)

    def news(self) -> str:
        """The last loss and validation score in words."""
        history = self.history
        # Of the first step it is not read yet.
        words = [] if math.isnan(self.loss) else [f"loss {self.loss:.4f}"]
        if history.score and history.score[-1] is not None:
            words.append(f"validation m{self.config.training.metric} {history.score[-1]:.4f}")
        if self.unopened:
            words.append(f"{len(self.unopened)} images left out")
        return ", ".join(words)


def positive_weights(given: types.Labels, config: Config[Any]) -> Float32[np.ndarray, " c"] | None:
    """Factors of the losses of every category's positives; None where positives are not weighted.

    Negatives per positive, to the power that the settings say; both counted at least as one.
    """
    power = config.training.positive_weight_power
    if power == 0:
        return None
    positive, count = labels.target_sums(given, config.labels, config.seed)
    return (np.maximum(count - positive, 1) / np.maximum(positive, 1)).astype(np.float32) ** np.float32(power)


def heads_of(model: Classifier) -> types.Heads:
    """The last layer of a classifier, kernel [c d] and bias [c]."""
    head: Any = nnx.as_pure(nnx.state(model.head, nnx.Param))
    return types.Heads(head["kernel"].T, head["bias"])


def load(folder: Path, mesh: Mesh | None = None, dtype: Any = None) -> tuple[Any, types.Heads]:
    """The backbone, ready to embed, and the heads of the best epoch.

    Args:
        folder: that `fit` wrote.
        mesh: of the devices to place the weights on; all of them if None.
        dtype: of the backbone's arithmetic; the one it was trained in if None.

    Raises:
        FileNotFoundError: where no epoch is finished.
    """
    found = checkpoints.steps(folder / "best")
    if not found:
        raise FileNotFoundError(f"{folder} holds no trained backbone: run the training command again to finish it.")
    metadata = checkpoints.metadata(folder / "best", found[-1], needed=("backbone", "num_categories", "compute_dtype"))
    with digests.describing(folder / "best" / str(found[-1]) / checkpoints.DESCRIPTION):
        dtype = devices.compute_dtype(metadata["compute_dtype"]) if dtype is None else dtype
        architecture = (BackboneConfig(**metadata["backbone"]), metadata["num_categories"], dtype)
    graphdef, params, stats, _ = steps.abstract_classifier(*architecture)
    whole = devices.replicated(devices.mesh() if mesh is None else mesh)
    like = devices.abstract({"params": params, "stats": stats}, whole)
    weights = checkpoints.restore(folder / "best", found[-1], like)
    model = nnx.merge(graphdef, weights["params"], weights["stats"], steps.other_variables(*architecture))
    model.eval()
    return model.backbone, heads_of(model)
