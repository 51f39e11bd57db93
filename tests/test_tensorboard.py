import dataclasses
import signal
import struct

import made_run
import numpy as np
import pytest
from test_training_loop import BATCH, STEPS_PER_EPOCH, config, dataset, fit, send_after, tiny  # noqa: F401

from cftjax.runtime import storage, tensorboard, tracking
from cftjax.stages import heads
from cftjax.training import loop
from cftjax.training.optimizer import schedule


def events(folder):
    """What a reader of TensorBoard sees of a log: curve -> [(step, value)], voided points left out."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    curves = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            if event.session_log.status == SessionLog.START:
                curves = {name: [p for p in points if p[0] < event.step] for name, points in curves.items()}
            for value in event.summary.value:
                curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


def test_an_interrupted_training_logs_every_step_once_and_what_it_did(tmp_path, tiny, monkeypatch):  # noqa: F811
    pytest.importorskip("tensorboardX")
    logged = dataclasses.replace(config(), log=("tensorboard",))
    history = fit(dataset(), logged, tmp_path / "whole")
    whole = events(tmp_path / "whole" / "tensorboard")

    real, flushed = loop.Training.save, []

    def killed(self, *args):
        real(self, *args)
        flushed.append(self.history.step)
        if len(flushed) == 1:
            for _ in range(2):  # steps that are logged, and lost with the process
                self.step()
            self.settle()
            self.log.flush()
            self.writer.wait()  # a process that dies leaves no thread behind that writes on
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(dataset(), logged, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        fit(dataset(change=send_after(2 * BATCH, signal.SIGTERM)), logged, tmp_path / "killed")
    assert fit(dataset(), logged, tmp_path / "killed") == history
    found = events(tmp_path / "killed" / "tensorboard")
    assert found == whole
    assert [step for step, _ in found["training/loss"]] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    rate = schedule(logged.training, 2 * STEPS_PER_EPOCH)
    np.testing.assert_allclose(
        [value for _, value in found["training/learning_rate"]],
        [rate(i) for i in range(2 * STEPS_PER_EPOCH)],
        rtol=1e-6,
    )
    ends = [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    for name, values in (("epoch/training_loss", history.loss), ("epoch/validation_mAP", history.score)):
        assert [step for step, _ in found[name]] == ends
        np.testing.assert_allclose([value for _, value in found[name]], values, rtol=1e-6)


def test_curves_hold_the_mean_in_which_a_stopped_category_keeps_its_score(tmp_path):
    pytest.importorskip("tensorboardX")
    scores = np.array([[0.1, 0.5, np.nan], [0.2, np.nan, np.nan], [0.3, np.nan, np.nan]], np.float32)
    for _ in range(2):  # anew, and not twice
        tracking.Tracking(tensorboard=True).write(tmp_path, "search/mAP", ["a", "<b>", "c"], scores)
    found = events(tmp_path / tensorboard.FOLDER)
    assert set(found) == {"search/mAP", "search/mAP_by_category/a", "search/mAP_by_category/<b>"}
    np.testing.assert_allclose(found["search/mAP"], [(0, 0.3), (1, 0.35), (2, 0.4)], rtol=1e-6)
    assert len(found["search/mAP_by_category/<b>"]) == 1


def test_of_too_many_categories_only_the_mean_is_logged(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(tensorboard, "MOST_POINTS", 5)
    tracking.Tracking(tensorboard=True).write(tmp_path, "search/mAP", ["a", "b"], np.ones((3, 2), np.float32))
    assert set(events(tmp_path / tensorboard.FOLDER)) == {"search/mAP"}


def test_without_the_writer_the_option_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"--log tensorboard needs tensorboardX: pip install .*tensorboardX"):
        tracking.check(["tensorboard"])


def test_a_polish_of_an_older_version_without_scores_is_left_out_with_what_to_do(tmp_path):
    storage.write_arrays(tmp_path / "kept.npz", {"pull": np.zeros((1, 2)), "step": np.zeros((1, 2))})
    with pytest.warns(UserWarning, match=r"older version, which kept no scores .*delete the folder"):
        heads._log("polish", tmp_path, made_run.make(tmp_path / "run"), config())
    assert not (tmp_path / tensorboard.FOLDER).exists()
