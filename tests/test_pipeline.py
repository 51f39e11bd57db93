import dataclasses
import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from cftjax import config, types
from cftjax.data.reading import images
from cftjax.input import cache, pipeline
from cftjax.input.preprocessing import Preprocessing

N, C, SIZE = 23, 3, 8
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
KNOWN = RNG.random((N, C)) < 0.5
UNCERTAIN = ~KNOWN & (RNG.random((N, C)) < 0.5)
LABELS = types.Labels(KNOWN & (RNG.random((N, C)) < 0.5), KNOWN, UNCERTAIN)
RECORDS = types.Records(PIXELS.__getitem__, LABELS, [f"image{row}" for row in range(N)])
PREPROCESSING = Preprocessing(SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
PLAIN = config.InputConfig(augment="none", flip=False)
MODES = ("none", "shift", "crop", "randaugment")


def train(records=RECORDS, settings=PLAIN, labels_config=None, **options):
    options = {"batch_size": 4, "seed": 0, **options}
    return iter(
        pipeline.train_batches(records, labels_config or config.LabelsConfig(), PREPROCESSING, settings, **options)
    )


def evaluate(records=RECORDS, settings=PLAIN, **options):
    return list(pipeline.eval_batches(records, PREPROCESSING, settings, **{"batch_size": 4, **options}))


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for part, other_part in zip(batch, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


def all_augmentation(mode):
    return config.InputConfig(augment=mode, flip=True, cutout=0.3, crop_min_area=0.5)


def test_a_batch_holds_pixels_targets_and_rows():
    batch = next(train())
    rows = batch.rows
    np.testing.assert_array_equal(batch.image, PIXELS[rows])
    np.testing.assert_array_equal(batch.labels, LABELS.labels[rows])
    np.testing.assert_array_equal(batch.known, ~UNCERTAIN[rows])
    assert [part.dtype for part in batch[:4]] == [np.uint8, np.float32, bool, np.int32]
    assert batch.unknown is None
    assert batch.hidden is None


@pytest.mark.parametrize(("mode", "kind"), [(m, np.float32 if m == "shift" else np.uint8) for m in MODES])
def test_only_grey_levels_between_two_take_four_bytes_and_cutout_is_a_square_beside_the_image(mode, kind):
    batch = next(train(settings=all_augmentation(mode)))
    assert batch.image.dtype == kind
    assert (batch.image != np.rint(batch.image)).any() == (mode == "shift")
    top, bottom, left, right = batch.hidden.T
    assert ((bottom - top) * (right - left) > 0).all()


def test_labels_are_resolved_as_the_labels_config_says():
    ignoring = config.LabelsConfig(unknown="ignore", uncertain="smooth_positive")
    first, second = (take(train(labels_config=ignoring), 10)[start : start + 5] for start in (0, 5))
    soft = {}
    for batch in first + second:
        np.testing.assert_array_equal(batch.known, (KNOWN | UNCERTAIN)[batch.rows])
        for place, row in enumerate(batch.rows):
            # An uncertain label has one soft target, in every epoch the same.
            np.testing.assert_array_equal(soft.setdefault(int(row), batch.labels[place]), batch.labels[place])
    targets = np.concatenate([batch.labels[UNCERTAIN[batch.rows]] for batch in first])
    assert ((targets >= 0.55) & (targets <= 0.85)).all()


def test_every_epoch_shows_each_image_at_most_once_in_an_order_of_its_own():
    batches = take(train(), 15)
    epochs = [np.concatenate([batch.rows for batch in batches[start : start + 5]]) for start in (0, 5, 10)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 20
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    # The images that an epoch drops are not always the same.
    assert len({frozenset(rows.tolist()) for rows in epochs}) > 1


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_same_batches_with_any_number_of_threads(mode):
    settings = all_augmentation(mode)
    reference = take(train(settings=dataclasses.replace(settings, workers=0)), 7)
    equal(take(train(settings=dataclasses.replace(settings, workers=3)), 7), reference)
    other = next(train(settings=settings, seed=1))
    assert not np.array_equal(other.rows, reference[0].rows)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_resumed_within_an_epoch_goes_on_with_the_very_same_batches(mode):
    settings = all_augmentation(mode)
    whole = take(train(settings=settings), 9)
    interrupted = train(settings=settings)
    take(interrupted, 3)
    saved = json.dumps(interrupted.get_state()).encode()
    resumed = train(settings=settings)
    resumed.set_state(json.loads(saved))
    equal(take(resumed, 6), whole[3:])
    # Also one that has already made batches ahead.
    resumed.set_state(json.loads(saved))
    equal(take(resumed, 6), whole[3:])


@pytest.mark.parametrize("mode", MODES[1:])
def test_an_image_is_augmented_anew_every_time_and_only_while_training(mode):
    settings = dataclasses.replace(all_augmentation(mode), flip=False, cutout=0.0)
    seen = {}
    for batch in take(train(settings=settings), 10):
        for row, image in zip(batch.rows, batch.image, strict=True):
            seen.setdefault(int(row), []).append(image)
    twice = [images for images in seen.values() if len(images) == 2]
    changed = [not np.array_equal(first, second) for first, second in twice]
    assert np.mean(changed) > 0.5
    equal(evaluate(settings=settings), evaluate())


def test_flips_mirror_about_half_of_the_images():
    batches = take(train(settings=dataclasses.replace(PLAIN, flip=True)), 20)
    mirrored = []
    for batch in batches:
        plain = PIXELS[batch.rows]
        same = (batch.image == plain).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(batch.image[~same], plain[~same][:, :, ::-1])
        mirrored.extend(~same)
    assert 0.3 < np.mean(mirrored) < 0.7


def together(halves):
    """One batch of the hosts' parts."""
    parts = zip(*halves, strict=True)
    return types.Batch(*(None if part[0] is None else np.concatenate(part) for part in parts))


@pytest.mark.parametrize("mode", MODES)
def test_the_hosts_together_make_the_batches_that_one_host_makes(mode):
    settings = all_augmentation(mode)
    one = take(train(settings=settings), 7)
    two = [take(train(settings=settings, shard=(index, 2)), 7) for index in range(2)]
    equal([together(halves) for halves in zip(*two, strict=True)], one)
    evaluated = [evaluate(shard=(index, 2)) for index in range(2)]
    equal([together(halves) for halves in zip(*evaluated, strict=True)], evaluate())


def test_evaluation_goes_in_file_order_and_fills_the_last_batch():
    batches = evaluate()
    assert [batch.image.shape for batch in batches] == [(4, SIZE, SIZE, 3)] * 6
    rows = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(rows, [*range(N), -1])
    image, labels, known = (np.concatenate(part) for part in list(zip(*batches, strict=True))[:3])
    np.testing.assert_array_equal(image[:N], PIXELS)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(labels[:N], LABELS.labels)
    np.testing.assert_array_equal(known[:N], KNOWN)
    assert not image[N:].any()
    assert not labels[N:].any()
    assert not known[N:].any()


def test_every_host_gets_as_many_evaluation_batches_even_of_nothing_but_padding():
    batches = [evaluate(batch_size=20, shard=(index, 4)) for index in range(4)]
    assert [len(part) for part in batches] == [2, 2, 2, 2]
    assert (batches[3][1].rows == -1).all()
    rows = np.concatenate([batch.rows for part in batches for batch in part])
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(N))


def test_batch_sizes_that_cannot_work_are_refused_with_one_that_can():
    with pytest.raises(ValueError, match="batch_size 30 is larger than the training split of 23 images"):
        train(batch_size=30)
    with pytest.raises(ValueError, match="batch_size 10 does not divide over 4 hosts: use 8"):
        train(batch_size=10, shard=(0, 4))
    with pytest.raises(ValueError, match="0 <= index < count"):
        evaluate(shard=(2, 2))


BAD = frozenset({5, 11})


def open_unless_bad(row):
    if row in BAD:
        raise images.ImageError(f"image{row} cannot be read")
    return PIXELS[row]


DAMAGED = dataclasses.replace(RECORDS, image=open_unless_bad)


@pytest.mark.parametrize("cached", ["none", "memory"])
def test_a_bad_image_stops_the_run_and_is_named(cached):
    settings = dataclasses.replace(PLAIN, cache=cached)
    with pytest.raises(images.ImageError, match=r"image5.* --data.on-bad-image skip"):
        evaluate(DAMAGED, settings)
    with pytest.raises(images.ImageError, match="image"):
        take(train(DAMAGED, settings), 6)


@pytest.mark.parametrize("cached", ["none", "memory", "disk"])
def test_skipped_images_are_grey_without_labels_and_their_names_are_given(cached, tmp_path):
    settings = dataclasses.replace(PLAIN, on_bad_image="skip", cache=cached, cache_dir=str(tmp_path))
    names = set()
    batches = evaluate(DAMAGED, settings, bad_images=names)
    assert names == {"image5", "image11"}
    rows = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(rows, [-1 if row in BAD else row for row in range(N)] + [-1])
    image, known = batches[1].image[1], batches[1].known[1]
    np.testing.assert_allclose(PREPROCESSING.normalise(image), 0, atol=0.02)
    assert not known.any()
    names.clear()
    trained = take(train(DAMAGED, settings, bad_images=names), 20)
    assert names == {"image5", "image11"}
    for batch in trained:
        assert not batch.known[batch.rows < 0].any()
    assert sum((batch.rows < 0).sum() for batch in trained) > 2


@dataclasses.dataclass
class Counted:
    """Images larger than needed, and how often they were opened."""

    opened: list[int]

    def __call__(self, row):
        self.opened.append(row)
        return np.repeat(np.repeat(PIXELS[row], 2, axis=0), 3, axis=1)


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_in_memory_opens_every_image_once_and_changes_no_batch(mode):
    source = Counted([])
    records = dataclasses.replace(RECORDS, image=source)
    settings = dataclasses.replace(all_augmentation(mode), cache="memory", workers=0)
    shared = cache.cached(records, PREPROCESSING, settings)
    batches = take(train(shared, settings), 11)
    evaluated = evaluate(shared, settings)
    assert sorted(source.opened) == list(range(N))
    equal(evaluated, evaluate(records))
    if mode != "crop":  # which cuts from the original where there is no cache
        equal(batches, take(train(records, dataclasses.replace(settings, cache="none")), 11))


def test_a_cache_on_disk_is_made_once_and_not_mistaken_for_that_of_other_images(tmp_path):
    source = Counted([])
    records = dataclasses.replace(RECORDS, image=source)
    settings = dataclasses.replace(PLAIN, cache="disk", cache_dir=str(tmp_path / "folder"))
    equal(evaluate(records, settings), evaluate(records))
    files = sorted(tmp_path.rglob("*"))
    source.opened.clear()
    equal(evaluate(records, settings), evaluate(records, dataclasses.replace(settings, cache="none")))
    assert sorted(tmp_path.rglob("*")) == files
    # The first row is opened a second time only to know the images again, and by the comparison.
    assert source.opened.count(1) <= 2
    other = dataclasses.replace(RECORDS, image=lambda row: 255 - PIXELS[row])
    equal(evaluate(other, settings), evaluate(other))
    assert len(sorted(tmp_path.rglob("*.npy"))) == 4


def test_an_interrupted_cache_leaves_nothing_behind(tmp_path):
    settings = dataclasses.replace(PLAIN, cache="disk", cache_dir=str(tmp_path))
    with pytest.raises(images.ImageError, match="image"):
        evaluate(DAMAGED, settings)
    assert not list(tmp_path.iterdir())


def test_a_cache_on_disk_needs_a_folder():
    with pytest.raises(ValueError, match="cache_dir is not set"):
        evaluate(settings=dataclasses.replace(PLAIN, cache="disk"))


def test_there_are_as_many_threads_as_cores_unless_said_otherwise(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert config.InputConfig().threads == 12
    assert config.InputConfig(workers=3).threads == 3
    assert config.InputConfig(workers=0).threads == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(200)), raising=False)
    assert config.InputConfig().threads == 16
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert config.InputConfig().threads == 2


def test_closing_an_iterator_ends_its_threads():
    before = set(threading.enumerate())
    iterator = train(settings=dataclasses.replace(PLAIN, workers=2))
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:
        thread.join(timeout=20)
        assert not thread.is_alive()


ENDLESS = """
import time, numpy as np
from cftjax import config, types
from cftjax.input import pipeline
def slow(row):
    time.sleep(0.02)
    return np.zeros((8, 8, 3), np.uint8)
labels = types.Labels(*np.zeros((3, 100, 2), bool))
records = types.Records(slow, labels, [str(row) for row in range(100)])
for batch in pipeline.train_batches(
    records, config.LabelsConfig(), pipeline.Preprocessing(8), config.InputConfig(), batch_size=10, seed=0
):
    print("batch", flush=True)
"""


def test_ctrl_c_ends_the_program_soon():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": -1}, "negative"),
        ({"crop_min_area": 0.0}, "crop_min_area"),
        ({"randaugment_magnitude": 31.0}, "randaugment_magnitude"),
        ({"cutout": 1.0}, "cutout"),
    ],
)
def test_input_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        config.InputConfig(**wrong)
