import pickle
import zipfile

import numpy as np
import pytest

from cftjax.backbones import torch_files


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_checkpoint_that_names_a_function_is_refused_and_nothing_runs(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": Evil()}, protocol=2))
        file.writestr("archive/version", "3")
    with pytest.raises(ValueError, match="print"):
        torch_files.read(path)
    assert capsys.readouterr().out == ""


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "half.pth"
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match=r"half\.pth"):
        torch_files.read(path)


def test_a_checkpoint_in_the_zip_container_is_read_strides_included(tmp_path):
    values = np.arange(6, dtype=np.float32)
    # A state dict with one 2 x 3 tensor stored transposed: opcodes as torch 2 writes them.
    body = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x01K\x02\x86\x89ccollections\nOrderedDict\n)Rt"
        b"Rs."
    )
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", body)
        file.writestr("archive/data/0", values.tobytes())
        file.writestr("archive/version", "3")
    np.testing.assert_array_equal(torch_files.read(path)["w"], values.reshape(3, 2).T)
