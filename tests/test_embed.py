import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cftjax import types
from cftjax.backbones import resnet
from cftjax.config import EmbedConfig, InputConfig
from cftjax.data import sparse
from cftjax.data.reading.images import ImageError
from cftjax.embeddings import embed
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import devices

N = 37
SIZE = 8
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
INPUT = InputConfig(augment="none", workers=1)


class Projection(nnx.Module):
    """A backbone whose embeddings are easily computed by hand, and compile in no time."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)))
        self.dim = 5

    def features(self, images):
        return images @ self.kernel.get_value()

    def embed(self, images):
        return jnp.mean(self.features(images), axis=(1, 2))

    def depth_groups(self):
        return (("kernel",), ())


def pixels():
    return np.random.default_rng(1).integers(0, 256, (N, SIZE, SIZE, 3)).astype(np.uint8)


def records(image=None, groups=None):
    rng = np.random.default_rng(2)
    known = rng.random((N, 4)) < 0.6
    uncertain = ~known & (rng.random((N, 4)) < 0.3)
    labels = types.Labels((rng.random((N, 4)) < 0.5) & known, known, uncertain)
    return types.Records(image or pixels().__getitem__, labels, [f"image{row}" for row in range(N)], groups)


def run(folder, source=None, batch_size=1, **options):
    embed.embed(Projection(), source or records(), PREPROCESSING, INPUT, batch_size, folder, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_embeddings_are_those_of_each_image_in_file_order(tmp_path):
    run(tmp_path / "train", records(groups=np.arange(N) // 2))
    found = embed.load(tmp_path / "train")
    x = (pixels().astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found.z, (x @ np.asarray(Projection().kernel.get_value())).mean((1, 2)), atol=1e-4)
    for name in ("labels", "known", "uncertain"):
        np.testing.assert_array_equal(getattr(found, name), getattr(records().labels, name))
    np.testing.assert_array_equal(found.groups, np.arange(N) // 2)
    assert isinstance(found.z, np.memmap)
    assert not isinstance(embed.load(tmp_path / "train", mmap=False).z, np.memmap)
    assert sorted(content(tmp_path / "train")) == [*["groups.npy", "labels.npz", "names.json", "z.npy"]]
    assert embed.load_names(tmp_path / "train") == [f"image{row}" for row in range(N)]


def test_one_device_two_and_eight_embed_the_same_to_the_bit(tmp_path, monkeypatch):
    shape = resnet.ResNetConfig(widths=(4, 6), depths=(1, 1))
    backbone = resnet.ResNet(shape, rngs=nnx.Rngs(0))
    monkeypatch.setattr(f"{__name__}.Projection", lambda: backbone)
    for num in (1, 2, 8):
        run(tmp_path / f"{num}", batch_size=3, mesh=devices.mesh(jax.devices()[:num]))
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "8")
    assert np.ptp(embed.load(tmp_path / "1").z, axis=0).max() > 0.01


def interrupted_after(folder, batches, monkeypatch):
    """Let the process die, so to speak, right after a marker was written."""
    write, calls = embed.storage.write_json, []

    def write_then_die(path, value):
        write(path, value)
        calls.append(path)
        if len(calls) == batches:
            raise ConnectionAbortedError

    with monkeypatch.context() as patch:
        patch.setattr(embed.storage, "write_json", write_then_die)
        with pytest.raises(ConnectionAbortedError):
            run(folder)


def test_an_interrupted_embedding_goes_on_where_it_stood(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    opened = []

    def image(row):
        opened.append(row)
        return pixels()[row]

    folder = tmp_path / "resumed"
    interrupted_after(folder, 3, monkeypatch)
    with pytest.raises(FileNotFoundError, match="no complete embeddings: run the training command again"):
        embed.load(folder)
    # With another number of devices than before.
    run(folder, records(image), mesh=devices.mesh(jax.devices()[:2]))
    assert content(folder) == content(tmp_path / "whole")
    assert sorted(opened) == list(range(24, N))


def test_rows_written_after_the_last_marker_are_written_again(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    folder = tmp_path / "resumed"
    interrupted_after(folder, 2, monkeypatch)
    with (folder / "z.npy.part").open("ab") as file:
        file.write(b"half a row")
    run(folder)
    assert content(folder) == content(tmp_path / "whole")


def test_data_that_the_marker_says_are_there_and_are_not_are_refused(tmp_path, monkeypatch):
    interrupted_after(tmp_path, 2, monkeypatch)
    with (tmp_path / "z.npy.part").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"z.npy.part is not what progress.json .* delete the folder"):
        run(tmp_path)


def test_an_embedding_does_not_go_on_from_rows_that_are_damaged(tmp_path, monkeypatch):
    interrupted_after(tmp_path, 2, monkeypatch)
    content = bytearray((tmp_path / "z.npy.part").read_bytes())
    content[140] ^= 1
    (tmp_path / "z.npy.part").write_bytes(content)
    with pytest.raises(ValueError, match=r"z\.npy\.part is damaged"):
        run(tmp_path)


def test_rows_of_other_settings_are_embedded_again(tmp_path, monkeypatch):
    interrupted_after(tmp_path, 2, monkeypatch)
    opened = []

    def image(row):
        opened.append(row)
        return pixels()[row]

    embed.embed(Projection(), records(image), PREPROCESSING, INPUT, 1, tmp_path, key="another")
    assert sorted(opened) == list(range(N))


def test_complete_embeddings_are_left_alone(tmp_path):
    run(tmp_path)
    run(tmp_path, records(image=lambda row: pytest.fail("opened an image")))


def test_an_image_that_cannot_be_opened_keeps_its_row_and_loses_its_labels(tmp_path, capsys):
    def image(row):
        if row in (3, 20):
            raise ImageError(f"image{row} is damaged")
        return pixels()[row]

    given = InputConfig(augment="none", workers=1, on_bad_image="skip")
    embed.embed(Projection(), records(image), PREPROCESSING, given, 1, tmp_path)
    run(tmp_path / "whole")
    found, whole = embed.load(tmp_path), embed.load(tmp_path / "whole")
    others = np.setdiff1d(np.arange(N), (3, 20))
    np.testing.assert_array_equal(found.z[others], whole.z[others])
    np.testing.assert_array_equal(found.known[others], whole.known[others])
    assert not found.known[[3, 20]].any()
    assert not found.uncertain[[3, 20]].any()
    assert found.unopened == ("image3", "image20")
    assert whole.unopened == ()
    assert "image3, image20" in capsys.readouterr().out


def test_names_of_images_left_out_before_an_interruption_are_kept(tmp_path, monkeypatch):
    def image(row):
        if row in (3, 20, 30):
            raise ImageError(f"image{row} is damaged")
        return pixels()[row]

    monkeypatch.setattr(f"{__name__}.INPUT", InputConfig(augment="none", workers=1, on_bad_image="skip"))
    monkeypatch.setattr(f"{__name__}.records", lambda whole=records: whole(image))
    interrupted_after(tmp_path, 3, monkeypatch)
    run(tmp_path)
    assert embed.load(tmp_path).unopened == ("image3", "image20", "image30")
    again = embed.load(tmp_path)
    embed.save(tmp_path / "copy", again)
    assert embed.load(tmp_path / "copy").unopened == again.unopened


def test_labels_stored_sparse_are_written_as_the_dense_ones(tmp_path):
    given = records()
    run(tmp_path / "dense", given)
    run(tmp_path / "sparse", dataclasses.replace(given, labels=sparse.of(given.labels)))
    assert content(tmp_path / "sparse") == content(tmp_path / "dense")


def test_embeddings_made_elsewhere_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    known = rng.random((6, 2)) < 0.5
    z = rng.normal(size=(6, 2, 3)).astype(np.float32)
    groups = np.array(["a", "a", "bb", "c", "c", "c"], object)
    embed.save(tmp_path / "x", types.Embeddings(z, known, known, None, groups))
    found = embed.load(tmp_path / "x")
    np.testing.assert_array_equal(found.z, z)
    np.testing.assert_array_equal(found.known, known)
    assert not np.any(found.uncertain)
    assert found.groups.tolist() == groups.tolist()


def test_files_with_pickled_objects_are_refused(tmp_path):
    run(tmp_path)
    np.save(tmp_path / "z.npy", np.array([{}], object), allow_pickle=True)
    for mmap in (True, False):
        with pytest.raises(ValueError, match=r"Object arrays|Python objects"):
            embed.load(tmp_path, mmap)


def test_a_batch_of_no_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"embed.batch-size 0 must be at least 1"):
        EmbedConfig(batch_size=0)
    with pytest.raises(ValueError, match=r"embed.batch_size 0 must be at least 1"):
        run(tmp_path, batch_size=0)
