import dataclasses
import pickle
import zipfile

import numpy as np
import pytest
from flax import nnx

from cftjax import backbones
from cftjax.backbones import pretrained, torch_files
from cftjax.config import BackboneConfig


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


def test_of_raw_and_averaged_weights_the_raw_are_taken_with_a_word_and_a_key_takes_the_others(tmp_path):
    def tensor(storage):
        # The tensor of the test above, in another storage.
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00"
            + storage
            + b"X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x01K\x02\x86\x89ccollections\nOrderedDict\n)Rt"
            b"R"
        )

    def word(text):
        return b"X" + len(text).to_bytes(4, "little") + text.encode()

    def state(name, storage):
        return word(name) + b"}" + word("w") + tensor(storage) + b"s"

    path = tmp_path / "both.pth"
    with zipfile.ZipFile(path, "w") as file:
        parts = state("state_dict", b"0") + b"s" + state("state_dict_ema", b"1") + b"s"
        file.writestr("archive/data.pkl", b"\x80\x02}" + parts + b".")
        for storage in (0, 1):
            file.writestr(f"archive/data/{storage}", np.full(6, storage, np.float32).tobytes())
    with pytest.warns(
        UserWarning, match="state_dict, the raw ones, are taken; --backbone.weights .*#state_dict_ema takes"
    ):
        assert (pretrained.load(path)["w"] == 0).all()
    assert (pretrained.load(f"{path}#state_dict_ema")["w"] == 1).all()
    assert (pretrained.load(f"{path}#state_dict")["w"] == 0).all()
    with pytest.raises(
        ValueError, match=r"both\.pth: holds no weights under 'ema'; there are some under state_dict, state"
    ):
        pretrained.load(f"{path}#ema")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model."])
def test_what_wrappers_put_before_every_name_is_taken_off(tmp_path, prefix):
    np.savez(tmp_path / "a.npz", **{f"{prefix}conv1.weight": np.zeros(2), f"{prefix}fc.bias": np.ones(1)})
    assert set(pretrained.load(tmp_path / "a.npz")) == {"conv1.weight", "fc.bias"}


def test_a_prefix_of_the_network_alone_is_taken_off_where_the_names_then_fit(tmp_path):
    table = pretrained.Table(
        (pretrained.Row("conv1.weight", "a"), pretrained.Row("bn.bias", "b")), ("fc.weight", "fc.bias")
    )
    arrays = {"backbone.conv1.weight": np.zeros(1), "backbone.bn.bias": np.zeros(1), "fc.weight": np.zeros(1)}
    assert set(pretrained.without_some_prefix(arrays, [table])) == {"conv1.weight", "bn.bias", "fc.weight"}
    plain = {"conv1.weight": np.zeros(1), "model.other": np.zeros(1)}
    assert pretrained.without_some_prefix(plain, [table]) == plain


def test_weights_of_another_architecture_are_told_in_ten_lines_with_the_one_that_fits(tmp_path):
    family, shape = backbones.BACKBONES["resnet50"]
    names = [row.name for row in family.weight_tables(shape)[0].rows]
    # Of too few elements, but as many axes.
    kernels = [name for name in names if "conv" in name or name.endswith("downsample.0.weight")]
    arrays = {name: np.zeros((1, 1, 1, 1) if name in kernels else 1, np.float32) for name in names}
    np.savez(tmp_path / "other.npz", **{f"encoder.{name}": array for name, array in arrays.items()})
    np.savez(tmp_path / "fifty.npz", **arrays)
    config = BackboneConfig(name="small_resnet")
    backbone = backbones.create(config, nnx.Rngs(0))
    for file, parts in (
        ("other", ["are left over, all beginning with encoder."]),
        (
            "fifty",
            ["are of another shape", "are left over", "The names are those of resnet50: use --backbone.name resnet50."],
        ),
    ):
        with pytest.raises(ValueError, match="The weights do not fit the architecture") as refused:
            backbones.load_weights(backbone, dataclasses.replace(config, weights=str(tmp_path / f"{file}.npz")))
        assert str(refused.value).count("\n") < 10
        for part in parts:
            assert part in str(refused.value)
