import errno
import os
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cftjax import cli
from cftjax.backbones import torch_files
from cftjax.data.reading.problems import DataError
from cftjax.data.table import TableData
from cftjax.embeddings import embed
from cftjax.runtime import checkpoints, storage


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_to_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "heads.npz"
    storage.write_arrays(path, {"a": np.arange(3)})
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*heads\.npz") as caught:
            storage.write_arrays(path, {"a": np.arange(4)})
    assert caught.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["heads.npz"]
    np.testing.assert_array_equal(storage.read_arrays(path)["a"], np.arange(3))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
@pytest.mark.parametrize("name", ["l" * 255, "é" * 127, "🧑" * 63])
def test_a_name_as_long_as_file_systems_take_is_written(tmp_path, name):
    storage.write_bytes(tmp_path / name, b"all of it")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"all of it")]


def test_names_are_cut_only_where_there_is_no_room_and_stay_apart():
    assert storage.fitting("l" * 251, 4) == "l" * 251
    names = [storage.fitting("é" * 127 + ending, 4) for ending in ("a", "b")]
    assert names[0] != names[1]
    assert all(len(os.fsencode(name)) <= 251 for name in names)


def test_embeddings_written_to_a_full_disk_name_the_file():
    with (
        pytest.raises(OSError, match="No space left on device: '/dev/full'"),
        embed._append(storage.Path("/dev/full"), (4, 2), np.dtype(np.float32)) as file,
    ):
        file.flush()


def test_a_checkpoint_whose_writer_met_a_full_disk_says_so_with_the_folder(tmp_path):
    class Response:
        def result(self):
            raise ValueError("UNKNOWN: Error writing local file: No space left on device [source locations='…']")

    writer = checkpoints.Writer()
    writer._pending.append((Response(), tmp_path / "state", 1))
    with pytest.raises(OSError, match=r"No space left on device: .*state") as caught:
        writer.wait()
    assert caught.value.errno == errno.ENOSPC
    assert cli.words(caught.value) == (
        f"{tmp_path / 'state'}: No space left on device. Make room and give the same command again: it keeps what is "
        "complete."
    )


@pytest.mark.parametrize("dtype", [np.float32, bool, "<U5"])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3)])
def test_arrays_of_a_run_are_npy_files(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    embed._write(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), array)


def npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def header(shape):
    described = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\x01\x00v\x00" + described.ljust(117).encode()


def test_an_archive_that_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    bomb = npz(tmp_path / "bomb.npz", kernel=header((250_000,)) + b"\n" + bytes(1_000_000))
    assert storage.read_arrays(bomb)["kernel"].shape == (250_000,)
    assert bomb.stat().st_size < 2000
    monkeypatch.setattr(storage.os, "sysconf", lambda name: 900)
    for read in (storage.read_arrays, torch_files.read):
        with pytest.raises(ValueError, match=r"bomb\.npz.*unpacks to 0\.0 GB, more than this machine's memory"):
            read(bomb)


def test_a_table_of_more_cells_than_the_memory_has_bytes_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "labels.parquet"
    pyarrow.parquet.write_table(pa.table({"path": ["a.png"] * 100_000, "cat": [1] * 100_000}), file)
    assert file.stat().st_size < 3000
    monkeypatch.setattr(storage.os, "sysconf", lambda name: 400)
    with pytest.raises(DataError, match=r"labels\.parquet: cannot be read as a table \(unpacks to .* more than"):
        TableData(file=str(file)).load()


def test_an_array_that_says_it_is_larger_than_its_file_is_refused(tmp_path):
    for size in (100_000_000_000, 10**30):
        with pytest.raises(ValueError, match=r"lies\.npz is not a readable \.npz"):
            storage.read_arrays(npz(tmp_path / "lies.npz", kernel=header((size,)) + b"\n" + bytes(100)))


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_pickle_in_an_archive_is_refused_and_does_not_run(tmp_path, capsys):
    np.savez(tmp_path / "evil.npz", kernel=np.array([Evil()], object))
    with pytest.raises(ValueError, match=r"evil\.npz is not a readable \.npz of plain arrays"):
        storage.read_arrays(tmp_path / "evil.npz")
    raw = npz(tmp_path / "raw.npz", bias=pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"raw\.npz (lacks|is not)"):
        storage.read_arrays(raw, ("bias",))
    assert capsys.readouterr().out == ""
