"""Training, epoch by epoch, so that it can be stopped anywhere and goes on bit for bit.

In its folder, `best/STEP` holds the weights of the best epoch (moving averages, all that inference needs), `state/STEP`
the last two states (all that going on needs), and `history.json` the loss and validation score of every epoch;
`tensorboard` and `tracking` are there where they were asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32

from cftjax.config import check_together
from cftjax.data import labels
from cftjax.input import pipeline
from cftjax.runtime import checkpoints, devices, digests, interruption, storage
from cftjax.runtime.progress import Progress
from cftjax.runtime.tracking import Curves, Tracking
from cftjax.training import state, step
from cftjax.training.history import History
from cftjax.training.optimizer import schedule
from cftjax.training.source import Source
from cftjax.training.state import TrainState

# Steps between two questions of all hosts to each other whether to save or stop.
HOSTS_AGREE_EVERY = 16


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


def fit(source: Source, folder: Path, *, log: Tracking | None = None, mesh: Mesh | None = None) -> History:
    """Train on a source, or go on with the training in the folder; returns at once where that is finished.

    The epoch with the best validation score is kept; without a validation split, or where no category has both labels,
    the last. SIGTERM and Ctrl-C save first.

    Args:
        source: what is trained, on what, and with which settings.
        folder: of checkpoints and history.
        log: where curves go; None for nowhere.
        mesh: of the devices; all of them if None.

    Raises:
        ValueError: for settings that do not fit the data or the devices; and where the loss or gradient is not finite,
            naming step and images.
        KeyboardInterrupt: after a signal, when everything is saved.
    """
    mesh = devices.mesh() if mesh is None else mesh
    _check(source, mesh)
    training = Training(source, folder, mesh)
    if training.history.finished:
        return training.history
    with (
        interruption.deferred() as asked,
        Progress("Train", unit="steps") as shown,
        contextlib.closing(training.iterator),
        contextlib.ExitStack() as stack,
    ):
        if log is not None and devices.is_primary():
            training.log = stack.enter_context(log.curves(folder, after=training.history.step))
        shown.say("compiling its programs")
        while not training.history.finished:
            training.step()
            if training.at_end_of_epoch():
                training.end_epoch()
            elif training.all_agree(time.monotonic() - training.saved_at > source.training.checkpoint_seconds):
                training.save()
            if training.all_agree(asked.requested):
                training.save()
                training.writer.wait()
                asked.stop(f"training is saved at step {training.history.step}")
            shown.update(training.history.step, training.spec.num_steps, training.news())
        training.writer.wait()
    return training.history


def _check(source: Source, mesh: Mesh) -> None:
    """Refuse settings that do not fit each other or the devices."""
    batch_size, parts = source.training.batch_size, source.training.accumulate
    devices.check_batch_size("training.batch_size", batch_size, mesh)
    if batch_size % (parts * mesh.size):
        raise ValueError(
            f"training.batch_size {batch_size} does not divide into training.accumulate {parts} parts "
            f"over {mesh.size} devices: use a multiple of {parts * mesh.size}."
        )
    check_together(source.labels, source.training)


class Training:
    """A training that is under way."""

    def __init__(self, source: Source, folder: Path, mesh: Mesh) -> None:
        """Begin, or take up what the folder holds."""
        self.source, self.records, self.settings, self.folder = source, source.records, source.training, folder
        self.unopened: set[str] = set()
        self.iterator = source.batches(self.unopened)
        self.steps_per_epoch = pipeline.steps_per_epoch(len(self.records), self.settings.batch_size)
        num_steps = self.settings.epochs * self.steps_per_epoch
        num_steps = min(num_steps, self.settings.max_steps or num_steps)
        model = source.abstract()
        self.spec = state.new_spec(
            model,
            self.settings,
            num_steps,
            mesh,
            labels=source.labels,
            steps_per_epoch=self.steps_per_epoch,
            seed=source.seed,
        )
        self.advance = step.compiled(self.spec)
        self.writer = checkpoints.Writer()
        self.log: Curves | None = None
        self.rates = np.asarray(jax.vmap(schedule(self.settings, num_steps))(jnp.arange(num_steps)))
        self.waiting: Step | None = None
        self.loss = math.nan
        self.saved_at = time.monotonic()
        kept = source.labels.mode.new_memory(*self.records.labels.shape), positive_weights(source)
        saved = checkpoints.steps(folder / "state")
        if saved:
            self.history, self.state = self.restored(saved[-1], state.abstract_state(self.spec, model, *kept))
        else:
            self.history, self.state = History(), state.new_state(self.spec, source.create(), *kept)
        # The best weights may not have been written when the state of the same step was.
        history = self.history
        if saved and history.best_step == history.step and history.step not in checkpoints.steps(folder / "best"):
            self.save_best()
            self.writer.wait()

    def restored(self, number: int, like: TrainState) -> tuple[History, TrainState]:
        """History and state as they were saved after so many steps; the iterator goes on from there."""
        metadata = checkpoints.metadata(self.folder / "state", number, needed=("history", "iterator"))
        with digests.describing(self.folder / "state" / str(number) / checkpoints.DESCRIPTION):
            history = History.from_json(metadata["history"])
        self.unopened.update(history.unopened)
        self.iterator.set_state(metadata["iterator"])
        return history, checkpoints.restore(self.folder / "state", number, like)

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
        self.history = self.history.with_step(self.loss)
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
        score, last = self.validate(), self.history.step == self.spec.num_steps
        done = (self.history.step - 1) % self.steps_per_epoch + 1
        self.history = history = self.history.with_epoch(score, done, self.settings.patience, last)
        self.note_unopened()
        if self.log is not None:
            self.log.scalars(history.step, of_epoch(history.loss[-1], score, self.settings.metric))
        self.writer.wait()
        if history.best_epoch == len(history.loss):
            self.save_best()
        if devices.is_primary():
            storage.write_json(self.folder / "history.json", dataclasses.asdict(self.history))
        self.save()

    def validate(self) -> float | None:
        """The mean score of the moving averages on the known validation labels; None where there is none."""
        model = nnx.merge(self.spec.graphdef, *self.state.ema, self.state.rest)
        model.eval()
        judged = self.source.judged(model, self.spec.mesh)
        return None if judged is None else judged.score(self.settings.metric)

    def save_best(self) -> None:
        """Begin to write what inference needs."""
        params, stats = self.state.ema
        params, stats = self.source.classifier(params, stats, self.state.rest)
        history, last_layer = self.history, self.source.last_layer
        metadata = {
            "backbone": dataclasses.asdict(self.source.backbone),
            "num_categories": self.records.labels.shape[1],
            "compute_dtype": self.settings.compute_dtype,
            "epoch": history.best_epoch,
            "score": history.score[history.best_epoch - 1],
        } | ({"classifier": dataclasses.asdict(last_layer)} if last_layer.places else {})
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
            words.append(f"validation m{self.settings.metric} {history.score[-1]:.4f}")
        if self.unopened:
            words.append(f"{len(self.unopened)} images left out")
        return ", ".join(words)


def of_epoch(loss: float, score: float | None, metric: str) -> dict[str, float | None]:
    """The curves of an epoch: its mean loss, and its score on validation."""
    return {"epoch/training_loss": loss, f"epoch/validation_m{metric}": score}


def positive_weights(source: Source) -> Float32[np.ndarray, " c"] | None:
    """Factors of the losses of every category's positives; None where positives are not weighted.

    Negatives per positive, to the power that the settings say; both counted at least as one.
    """
    power = source.training.positive_weight_power
    if power == 0:
        return None
    positive, count = labels.target_sums(source.records.labels, source.labels, source.seed)
    return (np.maximum(count - positive, 1) / np.maximum(positive, 1)).astype(np.float32) ** np.float32(power)
