import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cftjax import backbones, metrics, types
from cftjax.backbones import resnet
from cftjax.config import BackboneConfig, Config, EmbedConfig, InputConfig, LabelsConfig, TrainingConfig
from cftjax.data import sparse
from cftjax.data.reading.images import ImageError
from cftjax.embeddings import embed
from cftjax.input import augment
from cftjax.runtime import checkpoints, devices, storage
from cftjax.runtime.tracking import Tracking
from cftjax.training import classifier, images, loop, mixing, source
from cftjax.training import state as states
from cftjax.training import step as train_step
from cftjax.training.classifier import Architecture
from cftjax.training.history import History

SIZE = 8
BATCH = 8
STEPS_PER_EPOCH = 5
TRAINING = TrainingConfig(epochs=2, batch_size=BATCH, learning_rate=0.02, warmup=0.0, weight_decay=0.01)


@dataclasses.dataclass(frozen=True)
class Data:
    scene_size: int = SIZE


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shape = resnet.ResNetConfig(widths=(4,), depths=(1,), small_stem=True)
    monkeypatch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, shape))


def config(**changes):
    return Config(
        data=Data(),
        labels=LabelsConfig(unknown="ignore"),
        input=InputConfig(augment="shift", flip=False, workers=1),
        backbone=BackboneConfig("tiny"),
        training=dataclasses.replace(TRAINING, **changes),
        embed=EmbedConfig(batch_size=BATCH // 8),
    )


def records(n, seed=0, change=None):
    """Bright or dark images with or without a red tinge."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, 2)) < 0.5
    shade = 90 + 60 * labels[:, :1] + np.stack([40 * labels[:, 1], 0 * labels[:, 1], 0 * labels[:, 1]], 1)
    pixels = np.clip(shade[:, None, None] + rng.normal(0, 30, (n, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    known = rng.random((n, 2)) < 0.8

    def image(row):
        if change is not None:
            change(row)
        return pixels[row]

    return types.Records(
        image, types.Labels(labels & known, known, np.zeros_like(known)), [f"image{i}" for i in range(n)]
    )


def dataset(change=None, validation=True, steps_per_epoch=STEPS_PER_EPOCH):
    splits = {"train": records(BATCH * steps_per_epoch + 3, change=change)}
    if validation:
        splits["validation"] = records(21, seed=1)
    return types.Dataset(("bright", "red"), splits, "fingerprint")


def fit(content, settings, folder):
    log = Tracking(tensorboard="tensorboard" in settings.log)
    return loop.fit(images.of_experiment(content, settings), folder, log=log)


def spec_and_state(mesh=None, dtype=jnp.float32, **changes):
    mesh = devices.mesh() if mesh is None else mesh
    settings = dataclasses.replace(TRAINING, **changes)
    architecture = Architecture(BackboneConfig("tiny"), 2, dtype)
    spec = states.new_spec(classifier.abstract(architecture), settings, 10, mesh)
    return spec, states.new_state(spec, classifier.new(architecture, seed=0))


def batch(known=True, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = (rng.random((BATCH, 2)) < 0.5).astype(np.float32)
    return types.Batch(image, labels, np.full((BATCH, 2), known), np.arange(BATCH, dtype=np.int32))


def step(spec, state, content):
    return train_step.compiled(spec)(state, devices.shard(content, spec.mesh))


def arrays(tree):
    """Copies, for the state's own buffers are donated."""
    return {jax.tree_util.keystr(path): np.array(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_moving_average_of_weights_and_statistics_is_that_computed_by_hand():
    spec, state = spec_and_state(ema_decay=0.25)
    expected = arrays((state.params, state.stats))
    for number in range(3):
        state, _ = step(spec, state, batch(seed=number))
        # The first decays are smaller: 1/10, 2/11, then min(0.25, 3/12).
        decay = (1 + number) / (10 + number)
        new = arrays((state.params, state.stats))
        expected = {name: decay * old + (1 - decay) * new[name] for name, old in expected.items()}
    found = arrays(state.ema)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_unknown_labels_give_no_gradient_and_weight_decay_spares_parameters_of_one_dimension():
    spec, state = spec_and_state()
    before = arrays(state.params)
    content = batch(known=False)._replace(labels=np.full((BATCH, 2), np.nan, np.float32))
    state, loss = step(spec, state, content)
    assert float(loss) == 0
    # Adam moves by nothing where the gradient is nothing, so that what is left is the decay.
    shrunk = 1 - TRAINING.learning_rate * TRAINING.weight_decay
    for name, value in arrays(state.params).items():
        if value.ndim > 1:
            np.testing.assert_allclose(value, before[name] * shrunk, rtol=1e-6)
            assert np.any(value != before[name])
        else:
            np.testing.assert_array_equal(value, before[name])


def test_running_statistics_move_in_training_and_not_when_embedding():
    spec, state = spec_and_state()
    before = arrays(state.stats)
    state, _ = step(spec, state, batch())
    after = arrays(state.stats)
    assert all(np.any(after[name] != before[name]) for name in before)
    model = nnx.merge(spec.graphdef, state.params, state.stats, state.rest)
    graphdef, variables = nnx.split(model.backbone)
    images = jnp.asarray(batch().image)
    z = embed.forward(graphdef, nnx.as_pure(variables), images)
    np.testing.assert_allclose(embed.forward(graphdef, nnx.as_pure(variables), images[:1]), z[:1], rtol=1e-5, atol=1e-5)
    for name, value in arrays(nnx.as_pure(nnx.state(model, nnx.BatchStat))).items():
        np.testing.assert_array_equal(value, after[name])


def test_eight_devices_and_one_take_the_same_step():
    results = []
    for mesh in (devices.mesh(), devices.mesh(jax.devices()[:1])):
        # SGD, for Adam's first step is the sign of the gradient, whatever rounding leaves of a zero.
        spec, state = spec_and_state(mesh, optimizer="sgd")
        state, loss = step(spec, state, batch())
        results.append((float(loss), arrays((state.params, state.stats))))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, value in results[0][1].items():
        np.testing.assert_allclose(value, results[1][1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_step_and_embeddings_in_bfloat16_stay_near_those_in_float32():
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        # SGD moves by the gradient, which is what is compared.
        spec, state = spec_and_state(dtype=dtype, optimizer="sgd", weight_decay=0.0)
        before = arrays(state.params)
        state, loss = step(spec, state, batch())
        after = arrays(state.params)
        assert all(value.dtype == np.float32 for value in after.values())
        model = nnx.merge(spec.graphdef, state.params, state.stats, state.rest)
        graphdef, variables = nnx.split(model.backbone)
        z = embed.forward(graphdef, nnx.as_pure(variables), jnp.asarray(batch().image))
        moved = np.concatenate([(after[name] - before[name]).ravel() for name in before])
        found[dtype] = float(loss), moved, np.asarray(z)
    # bfloat16 keeps 8 bits: each rounding is off by up to 2^-9 of the value, and a few of them add up.
    for exact, rounded, bound in zip(found[jnp.float32], found[jnp.bfloat16], (2**-8, 2**-5, 2**-6), strict=True):
        off = np.linalg.norm(np.subtract(exact, rounded)) / np.linalg.norm(exact)
        assert 0 < off < bound


def test_a_loss_that_is_not_finite_changes_nothing_from_then_on():
    spec, state = spec_and_state()
    before = arrays((state.params, state.stats, state.ema, state.opt_state, state.step))
    bad = batch()
    bad.image[2, 0, 0, 0] = np.nan
    for content in (bad, batch()):
        state, loss = step(spec, state, content)
        assert np.isnan(float(loss))
    assert not state.finite
    after = arrays((state.params, state.stats, state.ema, state.opt_state, state.step))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_positives_weigh_by_the_negatives_of_their_category():
    known = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]], bool)
    positive = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]], bool)
    given = types.Labels(positive, known, np.zeros_like(known))
    images_of = types.Records(pytest.fail, given, [f"image{i}" for i in range(5)])
    labelled = types.Dataset(("a", "b", "c"), {"train": images_of}, "fingerprint")
    assert loop.positive_weights(images.of_experiment(labelled, config())) is None
    half = config(positive_weight_power=0.5)
    negative = dataclasses.replace(half, labels=LabelsConfig())
    for settings, ratio in ((half, [4, 1 / 2, 1]), (negative, [4, 3 / 2, 5])):
        weights = loop.positive_weights(images.of_experiment(labelled, settings))
        np.testing.assert_allclose(weights, np.sqrt(ratio), rtol=1e-6)


def test_mixed_labels_cost_what_each_image_says_by_its_share():
    spec, _ = spec_and_mixing()
    rng = np.random.default_rng(0)
    given = batch(known=True)._replace(known=rng.random((BATCH, 2)) < 0.6)
    # A target that does not count may be anything.
    given = given._replace(labels=np.where(given.known, given.labels, np.nan).astype(np.float32))
    given = given._replace(unknown=~given.known & (rng.random((BATCH, 2)) < 0.7))
    mix, weights = mixing.mixed(spec, jnp.int32(5), given)
    key = jax.random.fold_in(jax.random.key(spec.seed), 5)
    shares = np.asarray(jax.random.beta(key, 0.4, 0.4, (BATCH, 1)))[:, 0]
    logits = rng.normal(size=(BATCH, 2)).astype(np.float32)
    cost = weights * train_step.losses.sigmoid_bce(logits, mix.labels, where=mix.known)
    for i in range(BATCH):
        pair = ((i, shares[i]), (BATCH - 1 - i, 1 - shares[i]))
        image = sum(share * given.image[row] for row, share in pair)
        np.testing.assert_allclose(mix.image[i], image, rtol=1e-4, atol=1e-6)
        for j in range(2):
            saying = [(share, given.labels[row, j]) for row, share in pair if given.known[row, j]]
            assert mix.known[i, j] == bool(saying)
            x = logits[i, j]
            expected = sum(share * np.log1p(np.exp(-x if label else x)) for share, label in saying)
            assert float(cost[i, j]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
            if not saying:
                left = sum(share for row, share in pair if given.unknown[row, j])
                assert mix.unknown[i, j] == (left > 0)
                assert float(weights[i, j]) == pytest.approx(float(left), abs=1e-6)


def spec_and_mixing():
    model = classifier.abstract(Architecture(BackboneConfig("tiny"), 2, jnp.float32))
    settings = dataclasses.replace(TRAINING, mixup=0.4)
    return states.new_spec(model, settings, 10, devices.mesh(), seed=3), model


def results(folder):
    """Everything a finished training leaves, arrays as bytes."""
    found = checkpoints.steps(folder / "state")
    architecture = Architecture(BackboneConfig("tiny"), 2, jnp.float32)
    model = classifier.abstract(architecture)
    spec = states.new_spec(model, TRAINING, 10, devices.mesh())
    state = checkpoints.restore(folder / "state", found[-1], states.abstract_state(spec, model))
    backbone, heads = classifier.load(folder)
    return (
        storage.read_json(folder / "history.json"),
        checkpoints.steps(folder / "best"),
        {name: value.tobytes() for name, value in arrays((state, nnx.as_pure(nnx.state(backbone)), heads)).items()},
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        shape = resnet.ResNetConfig(widths=(4,), depths=(1,), small_stem=True)
        patch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, shape))
        folder = tmp_path_factory.mktemp("uninterrupted")
        history = fit(dataset(), config(), folder)
        return folder, history, results(folder)


def test_training_learns_and_describes_how(uninterrupted):
    folder, history, _ = uninterrupted
    assert history.step == 2 * STEPS_PER_EPOCH
    assert history.finished == "all steps are done"
    assert len(history.loss) == len(history.score) == 2
    assert history.loss[1] < history.loss[0]
    assert history.best_step == history.best_epoch * STEPS_PER_EPOCH
    assert History.from_json(storage.read_json(folder / "history.json")) == history


def test_the_stored_score_is_that_of_the_stored_weights(uninterrupted, tmp_path):
    folder, history, _ = uninterrupted
    backbone, heads = classifier.load(folder)
    validation = dataset().splits["validation"]
    preprocessing = images.of_experiment(dataset(), config()).preprocessing
    embed.embed(backbone, validation, preprocessing, config().input, BATCH, tmp_path)
    found = embed.load(tmp_path)
    ap = metrics.average_precision(np.asarray(heads(found.z)), found.labels, where=found.known)
    assert float(metrics.mean_defined(ap)) == history.score[history.best_epoch - 1]


def test_labels_stored_sparse_train_and_validate_as_the_dense_ones_a_group_of_categories_at_a_time(
    uninterrupted, tmp_path, monkeypatch
):
    monkeypatch.setattr(source, "SCORED_ELEMENTS", 21)
    given = dataset()
    stored = {name: dataclasses.replace(split, labels=sparse.of(split.labels)) for name, split in given.splits.items()}
    assert fit(dataclasses.replace(given, splits=stored), config(), tmp_path) == uninterrupted[1]


def test_images_left_out_are_remembered_over_an_interruption(tmp_path):
    skipping = dataclasses.replace(config(), input=dataclasses.replace(config().input, on_bad_image="skip"))
    stop = send_after(3 * BATCH, signal.SIGTERM)

    def change(row):
        stop(row)
        if row in (2, 7):
            raise ImageError(f"image{row} is damaged")

    with pytest.raises(KeyboardInterrupt):
        fit(dataset(change), skipping, tmp_path)
    first = loop.Training(images.of_experiment(dataset(), skipping), tmp_path, devices.mesh()).history.unopened
    history = fit(dataset(change), skipping, tmp_path)
    assert set(first) <= set(history.unopened) == {"image2", "image7"}
    assert History.from_json(storage.read_json(tmp_path / "history.json")) == history


def test_a_finished_training_is_not_touched(uninterrupted):
    folder, history, _ = uninterrupted
    again = fit(dataset(change=lambda row: pytest.fail("opened an image")), config(), folder)
    assert again == history


def send_after(count, number):
    """Opens of images after which this process gets a signal."""
    opened = []

    def change(row):
        opened.append(row)
        if len(opened) == count:
            os.kill(os.getpid(), number)

    return change


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_stopped_by_a_signal_within_an_epoch_goes_on_bit_for_bit(uninterrupted, tmp_path, number):
    with pytest.raises(KeyboardInterrupt, match=r"training is saved at step .* goes on from there"):
        fit(dataset(change=send_after(3 * BATCH, number)), config(), tmp_path)
    (stopped,) = checkpoints.steps(tmp_path / "state")
    assert 0 < stopped < 2 * STEPS_PER_EPOCH
    assert stopped % STEPS_PER_EPOCH != 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    history = fit(dataset(), config(), tmp_path)
    assert history == uninterrupted[1]
    assert results(tmp_path) == uninterrupted[2]


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


@pytest.mark.parametrize("died_in", ["save_best", "save"])
def test_training_killed_between_its_writes_goes_on_bit_for_bit(uninterrupted, tmp_path, monkeypatch, died_in):
    with monkeypatch.context() as patch:
        write, calls = getattr(loop.Training, died_in), []

        def write_or_die(self, *arguments):
            calls.append(died_in)
            if len(calls) == 2:
                # What is under way before may or may not have been finished: here it was.
                self.writer.wait()
                raise Killed
            write(self, *arguments)

        patch.setattr(loop.Training, died_in, write_or_die)
        with pytest.raises(Killed):
            fit(dataset(), config(), tmp_path)
    (tmp_path / "state" / "7.orbax-checkpoint-tmp-1").mkdir()
    assert fit(dataset(), config(), tmp_path) == uninterrupted[1]
    assert results(tmp_path) == uninterrupted[2]


def test_best_weights_lost_with_the_process_are_written_again(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save_best", lambda self: None)
        patch.setattr(loop.Training, "settle", dying_settle(loop.Training.settle, STEPS_PER_EPOCH + 2))
        with pytest.raises(Killed):
            fit(dataset(), config(), tmp_path)
    for leftover in (tmp_path / "state").iterdir():
        assert leftover.name.startswith(str(STEPS_PER_EPOCH))
    fit(dataset(), config(), tmp_path)
    assert results(tmp_path) == uninterrupted[2]


def dying_settle(settle, step):
    def settle_or_die(self):
        if self.history.step == step:
            self.writer.wait()
            raise Killed
        settle(self)

    return settle_or_die


def test_states_are_saved_by_the_clock_as_well(uninterrupted, tmp_path, monkeypatch):
    saved = []
    save = loop.Training.save
    monkeypatch.setattr(loop.Training, "save", lambda self, *a: (saved.append(self.history.step), save(self, *a))[1])
    history = fit(dataset(), config(checkpoint_seconds=0.0), tmp_path)
    assert saved == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    assert history == uninterrupted[1]
    assert checkpoints.steps(tmp_path / "state") == [9, 10]


def test_a_loss_that_is_not_finite_stops_training_and_names_step_and_images(tmp_path, monkeypatch):
    def poisoned(pixels, _):
        return np.where((pixels == 255).all((1, 2, 3), keepdims=True), np.nan, pixels.astype(np.float32))

    monkeypatch.setattr(augment, "shift", poisoned)
    source = dataset()
    white = dataclasses.replace(source.splits["train"], image=lambda row: white_at(source.splits["train"], row, 11))
    poisoned_set = dataclasses.replace(source, splits={**source.splits, "train": white})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"step \d+: .* is not finite.*image11\b") as caught:
            fit(poisoned_set, config(), tmp_path)
        stopped = int(str(caught.value).split(":")[0].removeprefix("step "))
        # Going on meets the same batch again: the state saved is the one before it, and sound.
        assert checkpoints.steps(tmp_path / "state")[-1] == stopped


def white_at(source, row, white):
    return np.full((SIZE, SIZE, 3), 255, np.uint8) if row == white else source.image(row)


def test_without_validation_the_last_epoch_is_kept_be_it_cut_short(tmp_path):
    short = dataset(validation=False, steps_per_epoch=4)
    history = fit(short, config(epochs=3, max_steps=10, patience=1), tmp_path)
    assert (history.step, history.best_step, len(history.loss)) == (10, 10, 3)
    assert history.score == (None, None, None)
    assert checkpoints.steps(tmp_path / "best") == [10]


def test_training_stops_early_and_keeps_the_best_epoch(tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    monkeypatch.setattr(loop.Training, "validate", lambda self: next(scores))
    history = fit(dataset(steps_per_epoch=2), config(epochs=5, patience=2), tmp_path)
    assert history.finished == "no better validation score in 2 epochs"
    assert history.score == (0.5, 0.7, 0.7, 0.6)
    assert (history.best_epoch, checkpoints.steps(tmp_path / "best")) == (2, [4])


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"training.batch_size 12 does not divide over 8 devices: use 8 or 16"):
        fit(dataset(), config(batch_size=12), tmp_path)
    with pytest.raises(ValueError, match="batch_size 64 is larger than the training split of 43 images"):
        fit(dataset(), config(batch_size=64), tmp_path)
    with pytest.raises(
        ValueError, match=r"batch_size 8 does not divide into training.accumulate 2 parts over 8 devices"
    ):
        fit(dataset(), config(accumulate=2), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no trained backbone: run the training command again"):
        classifier.load(tmp_path)


def test_the_size_of_the_input_is_the_one_asked_for_or_that_of_the_data():
    assert images.of_experiment(dataset(), config()).preprocessing.image_size == SIZE
    asked = dataclasses.replace(config(), backbone=BackboneConfig("tiny", image_size=24))
    assert images.of_experiment(dataset(), asked).preprocessing.image_size == 24
    photographs = dataclasses.replace(config(), backbone=BackboneConfig("resnet50"), data=None)
    assert images.of_experiment(dataset(), photographs).preprocessing.image_size == 224
