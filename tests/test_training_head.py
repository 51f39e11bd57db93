import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cftjax import backbones, metrics, runs, types
from cftjax.backbones import resnet
from cftjax.config import BackboneConfig, Config, EmbedConfig, InputConfig, LabelsConfig, TrainingConfig
from cftjax.embeddings import embed
from cftjax.runtime import checkpoints, devices, storage
from cftjax.stages import backbone
from cftjax.training import classifier as classifiers
from cftjax.training import head as frozen
from cftjax.training import loop, step
from cftjax.training import state as training_state
from cftjax.training.classifier import Architecture

DIM, SIZE, BATCH = 8, 8, 16
TRAINING = TrainingConfig(freeze_backbone=True, epochs=3, batch_size=BATCH, warmup=0.0, weight_decay=1e-3)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shape = resnet.ResNetConfig(widths=(4,), depths=(1,), small_stem=True)
    monkeypatch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, shape))


@pytest.fixture(scope="module")
def classifier():
    with pytest.MonkeyPatch.context() as patch:
        shape = resnet.ResNetConfig(widths=(4,), depths=(1,), small_stem=True)
        patch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, shape))
        return classifiers.new(Architecture(BackboneConfig("tiny"), 3, jnp.float32), seed=1)


def config(unknown="ignore", **changes):
    return Config(
        data=None,
        labels=LabelsConfig(unknown=unknown, large_loss_share=0.1, likelihood_top=1, prior_threshold=0.5),
        input=InputConfig(augment="none", flip=False, workers=1),
        backbone=BackboneConfig("tiny", image_size=SIZE),
        training=dataclasses.replace(TRAINING, **changes),
        embed=EmbedConfig(batch_size=BATCH // 8),
    )


def problem(n, seed):
    """Embeddings of very unlike scales, labels that they tell of, and images that nobody opens."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, DIM))
    present = z[:, :3] + 0.3 * rng.normal(size=(n, 3)) > 0.4
    z = (10.0 ** np.arange(-3, 5) * (z + 5)).astype(np.float32)
    known = rng.random((n, 3)) < 0.6
    labels = types.Labels(present & known, known, np.zeros_like(known))
    names = [f"image{seed}-{i}" for i in range(n)]
    return types.Records(lambda row: pytest.fail("opened an image"), labels, names), z


@pytest.fixture(scope="module")
def data():
    made = {"train": problem(90, 0), "validation": problem(60, 1)}
    embeddings = {
        split: types.Embeddings(z, records.labels.labels, records.labels.known) for split, (records, z) in made.items()
    }
    unopened = embeddings["train"].z.copy()
    unopened[7] = 1e9
    embeddings["train"] = dataclasses.replace(embeddings["train"], z=unopened, unopened=("image0-7",))
    splits = {split: records for split, (records, _) in made.items()}
    return types.Dataset(("a", "b", "c"), splits, "fingerprint"), embeddings


def fit(data, classifier, folder, settings):
    return loop.fit(frozen.of_experiment(*data, classifier, settings), folder)


def leaves(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_the_head_learns_is_scored_as_stored_and_loads_with_the_backbone_as_it_was(data, classifier, tmp_path):
    history = fit(data, classifier, tmp_path, config())
    backbone, heads = classifiers.load(tmp_path)
    validation = data[1]["validation"]
    ap = metrics.score("AP", np.asarray(heads(validation.z)), validation.labels, validation.known)
    assert float(metrics.mean_defined(ap)) == history.score[history.best_epoch - 1] > 0.8
    assert history.unopened == ("image0-7",)
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    images = jnp.asarray(images)
    classifier.eval()
    np.testing.assert_array_equal(backbone.embed(images), classifier.backbone.embed(images))


def test_a_head_of_plain_embeddings_gives_the_logits_of_the_one_learned(data):
    rng = np.random.default_rng(0)
    z, opened = data[1]["train"].z, np.arange(90) != 7
    constant = np.concatenate([z, np.full((90, 1), 3, np.float32)], axis=1)
    mean, scale = frozen.moments(constant, opened)
    np.testing.assert_allclose(((constant[opened] - mean) * scale).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(((constant[opened] - mean) * scale).var(0), [*[1 / 8] * 8, 0], rtol=1e-4)
    head = frozen.Head(mean, scale, rng.normal(size=3).astype(np.float32))
    assert np.all(np.asarray(head(jnp.asarray(constant)))[:, 0] == np.asarray(head.head.bias)[0])
    head.head.kernel.set_value(jnp.asarray(rng.normal(size=(9, 3)).astype(np.float32)))
    plain = frozen.plain({"kernel": head.head.kernel.get_value(), "bias": head.head.bias.get_value()}, mean, scale)
    expected = head(jnp.asarray(constant[opened]))
    np.testing.assert_allclose(
        constant[opened] @ np.asarray(plain["kernel"]) + np.asarray(plain["bias"]), expected, rtol=1e-3, atol=1e-3
    )


def test_it_begins_with_every_categorys_share_of_positives(data, classifier):
    for unknown in ("ignore", "assume_negative"):
        source = frozen.of_experiment(*data, classifier, config(unknown))
        given, opened = source.records.labels, np.arange(90) != 7
        positive = (given.labels & opened[:, None]).sum(0)
        count = (given.known & opened[:, None]).sum(0) if unknown == "ignore" else opened.sum()
        bias = np.asarray(source.create().head.bias)
        np.testing.assert_allclose(bias, np.log((positive + 1) / (count - positive + 1)), rtol=1e-5)


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


@pytest.mark.parametrize(
    ("unknown", "changes"),
    [("correct_large_loss_permanently", {}), ("selective", {"mixup": 0.3, "positive_weight_power": 0.5})],
)
def test_a_training_killed_within_an_epoch_goes_on_bit_for_bit(
    data, classifier, tmp_path, monkeypatch, unknown, changes
):
    settings = config(unknown, epochs=2, checkpoint_seconds=0.0, **changes)

    def result(folder):
        spec_source = frozen.of_experiment(*data, classifier, settings)
        found = loop.Training(spec_source, folder, devices.mesh())
        found.iterator.close()
        return storage.read_json(folder / "history.json"), leaves(found.state), leaves(classifiers.load(folder)[1])

    whole = fit(data, classifier, tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        settle = loop.Training.settle

        def dying(self):
            if self.history.step == 8:
                self.writer.wait()
                raise Killed
            settle(self)

        patch.setattr(loop.Training, "settle", dying)
        with pytest.raises(Killed):
            fit(data, classifier, tmp_path / "killed", settings)
    # Within the second epoch, when the mode has begun to remember.
    assert checkpoints.steps(tmp_path / "killed" / "state")[-1] in (6, 7)
    assert fit(data, classifier, tmp_path / "killed", settings) == whole
    first, second = result(tmp_path / "whole"), result(tmp_path / "killed")
    assert first == second
    (memory,) = [value for name, value in first[1].items() if "corrected" in name or "probability" in name]
    assert any(memory)


def test_parts_of_a_batch_give_the_step_of_the_whole(data, classifier):
    source = frozen.of_experiment(*data, classifier, config("weak_negative"))
    batches = source.batches(set())
    given = next(batches)
    batches.close()
    # Parts of very unequal numbers of known labels.
    given = given._replace(known=given.known & (np.arange(BATCH) % 2 == 0)[:, None], unknown=given.unknown)
    states = []
    for accumulate in (1, 2):
        settings = dataclasses.replace(source.training, accumulate=accumulate)
        spec = training_state.new_spec(source.abstract(), settings, 10, devices.mesh(), labels=source.labels)
        state = training_state.new_state(spec, source.create())
        for _ in range(2):
            state, loss = step.compiled(spec)(state, devices.shard(given, spec.mesh))
        states.append(
            (float(loss), np.asarray(state.params["head"]["kernel"]), np.asarray(state.ema[0]["head"]["bias"]))
        )
    for whole, parts in zip(*states, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-7)
    assert np.any(states[0][1] != 0)


def test_embeddings_are_made_once_whatever_becomes_of_unknown_labels(data, classifier, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (90, SIZE, SIZE, 3)).astype(np.uint8)
    splits = {s: dataclasses.replace(r, image=lambda row: pixels[row]) for s, r in data[0].splits.items()}
    dataset = dataclasses.replace(data[0], splits={**splits, "test": splits["validation"]})
    monkeypatch.setattr(frozen, "pretrained", lambda *arguments: classifier)
    run = runs.create(tmp_path, config(), dataset.categories, dataset.fingerprint)
    first = backbone.train(run, dataset, config())
    heads = run.heads("backbone")
    assert len(run.embeddings("test")) == 60
    np.testing.assert_array_equal(heads.kernel, classifiers.load(tmp_path / "backbone")[1].kernel)
    monkeypatch.setattr(embed, "embed", lambda *arguments: pytest.fail("embedded again"))
    assert backbone.train(run, dataset, config(frozen_learning_rate=TRAINING.frozen_learning_rate)) == first
    second = backbone.train(run, dataset, config("assume_negative"))
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, True, False]
    assert np.any(run.heads("backbone").kernel != heads.kernel)


def test_random_weights_are_not_worth_freezing():
    with pytest.raises(ValueError, match=r"the backbone has random weights: name some with --backbone\.weights"):
        frozen.pretrained(Architecture(BackboneConfig("tiny"), 3, jnp.float32), seed=0)
