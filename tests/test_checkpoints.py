import gc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cftjax.runtime import checkpoints, devices, digests


def tree():
    return devices.replicate(
        {"w": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(7), "flag": jnp.bool(True)}, devices.mesh()
    )


def like():
    return devices.abstract(tree(), devices.replicated(devices.mesh()))


def write(folder, step, content, metadata, keep=1):
    writer = checkpoints.Writer()
    writer.save(folder, step, content, metadata, keep)
    writer.wait()


def test_arrays_and_metadata_come_back_exactly(tmp_path):
    metadata = {"loss": 0.1 + 0.2, "names": ["a", None], "nested": {"n": 3}}
    content = {**tree(), "key": devices.replicate(jax.random.key(3), devices.mesh())}
    write(tmp_path, 5, content, metadata)
    found = checkpoints.restore(tmp_path, 5, devices.abstract(content, devices.replicated(devices.mesh())))
    assert checkpoints.metadata(tmp_path, 5) == metadata
    assert {name: array.dtype for name, array in found.items()} == {
        name: array.dtype for name, array in content.items()
    }
    for name in ("w", "step", "flag"):
        np.testing.assert_array_equal(found[name], content[name])
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(content["key"]))
    assert found["w"].sharding == devices.replicated(devices.mesh())


def test_only_the_latest_stay_and_a_same_step_is_replaced(tmp_path):
    for step in (1, 2, 10):
        write(tmp_path, step, tree(), {"step": step}, keep=2)
    assert checkpoints.steps(tmp_path) == [2, 10]
    write(tmp_path, 10, tree(), {"step": "again"}, keep=2)
    assert checkpoints.metadata(tmp_path, 10) == {"step": "again"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"]


def test_what_is_half_written_is_never_read_and_is_cleared_away(tmp_path):
    write(tmp_path, 1, tree(), {})
    (tmp_path / "9.orbax-checkpoint-tmp-123").mkdir()
    (tmp_path / "8").mkdir()
    (tmp_path / "7.replaced").mkdir()
    assert checkpoints.steps(tmp_path) == [1]
    write(tmp_path, 2, tree(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "8"]


def test_a_folder_that_is_not_there_has_no_checkpoints(tmp_path):
    assert checkpoints.steps(tmp_path / "none") == []


def test_buffers_may_be_donated_while_they_are_written(tmp_path):
    content = devices.replicate({"w": jnp.arange(200_000.0)}, devices.mesh())
    change = jax.jit(lambda x: jax.tree.map(lambda a: a * 0 - 1, x), donate_argnums=0)
    expected = np.arange(200_000, dtype=np.float32)
    like = devices.abstract(content, devices.replicated(devices.mesh()))
    writer = checkpoints.Writer()
    writer.save(tmp_path, 1, content, {})
    for _ in range(3):
        content = change(content)
    writer.wait()
    np.testing.assert_array_equal(checkpoints.restore(tmp_path, 1, like)["w"], expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_in_the_error(tmp_path):
    write(tmp_path, 3, tree(), {})
    for path in (tmp_path / "3").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"")
    with warnings.catch_warnings():
        # orbax leaves unawaited coroutines behind where it fails; they are collected here, not in another test.
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(ValueError, match=r"3/state/.* is damaged .* delete the folder .*3 to go on"):
            checkpoints.restore(tmp_path, 3, like())
        # One made before there were digests.
        (tmp_path / "3" / digests.RECORD).unlink()
        with pytest.raises(ValueError, match=r"3 is damaged, it cannot be read .* delete the folder"):
            checkpoints.restore(tmp_path, 3, like())
        gc.collect()


def eight():
    return devices.mesh()


def test_batches_are_split_evenly_and_come_back_whole():
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    placed = devices.shard(rows, eight())
    assert [shard.data.shape for shard in placed.addressable_shards] == [(1, 2)] * 8
    np.testing.assert_array_equal(devices.gather(placed), rows)


@pytest.mark.parametrize(("size", "mend"), [(30, "24 or 32"), (3, "8"), (0, "8")])
def test_a_batch_that_cannot_be_split_is_refused_with_sizes_that_can(size, mend):
    with pytest.raises(ValueError, match=f"training.batch_size {size} does not divide over 8 devices: use {mend}\\."):
        devices.check_batch_size("training.batch_size", size, eight())
    devices.check_batch_size("training.batch_size", 24, eight())


def test_the_arithmetic_of_a_cpu_is_float32_unless_asked_otherwise():
    assert devices.compute_dtype("auto") == jnp.float32
    assert devices.compute_dtype("bfloat16") == jnp.bfloat16
