"""Several hosts: two processes of this machine, each with devices of its own, over the loopback."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from cftjax import checkpoints, devices, hosts
from cftjax.config import HostsConfig

OPTIONS = {
    "--data.num-train": "96",
    "--data.num-validation": "48",
    "--data.num-test": "48",
    "--training.epochs": "1",
    "--training.batch-size": "48",
    "--embed.batch-size": "48",
    "--backbone.name": "small_resnet",
    "--ga.num-generations": "20",
    "--ga.population-size": "8",
    "--ga.dimensions": "4",
    "--polish.num-steps": "10",
    "--polish.dimensions": "4",
    "--report.resamples": "20",
}
SMALL = [word for pair in OPTIONS.items() for word in pair]


def begin(module, *words, num_devices=1):
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", f"cftjax.{module}", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def begin_two(module, *words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = [["--coordinator", address, "--num-processes", 2, "--process-id", i] for i in range(2)]
    return [begin(module, *words, *options) for options in joined]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run by two hosts of a device each, and by one of two."""
    folder = tmp_path_factory.mktemp("hosts")
    processes = begin_two("train", "--workdir", folder / "two", *SMALL)
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "Report:" in said[0]
    assert "Report:" not in said[1]
    return folder


def test_two_hosts_train_embed_and_tune_as_one_with_the_same_devices(runs):
    one = begin("train", "--workdir", runs / "one", *SMALL, num_devices=2)
    said = one.communicate(timeout=120)[0]
    assert one.returncode == 0, said
    two, alone = (json.loads((runs / name / "backbone" / "history.json").read_text()) for name in ("two", "one"))
    np.testing.assert_allclose(two["loss"], alone["loss"], rtol=1e-4)
    for split in ("train", "validation", "test"):
        z = [np.load(runs / name / "embeddings" / split / "z.npy") for name in ("two", "one")]
        np.testing.assert_allclose(*z, rtol=1e-3, atol=1e-3)


def test_two_hosts_tune_given_embeddings_exactly_as_one(runs, tmp_path):
    arrays = {}
    for split in ("train", "validation", "test"):
        z, labels, known = (np.load(runs / "two" / "embeddings" / split / f"{n}.npy") for n in ("z", "labels", "known"))
        arrays |= {f"{split}_z": z, f"{split}_labels": np.where(known, labels.astype(np.float32), np.nan)}
    with np.load(runs / "two" / "heads" / "backbone" / "heads.npz") as heads:
        np.savez(tmp_path / "mine.npz", **arrays, **heads)
    options = [word for word in SMALL if word.startswith(("--ga", "--polish", "--report"))]
    words = [tmp_path / "mine.npz", *(w for name in options for w in (name, OPTIONS[name]))]
    both = [begin("finetune", *words, "--workdir", tmp_path / "one", num_devices=2)]
    both += begin_two("finetune", *words, "--workdir", tmp_path / "two")
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], said
    for stage in ("ga", "polish", "final"):
        one, two = (dict(np.load(tmp_path / name / "heads" / stage / "heads.npz")) for name in ("one", "two"))
        for name in ("kernel", "bias"):
            np.testing.assert_array_equal(one[name], two[name], err_msg=f"{stage} {name}")


def test_a_host_that_dies_ends_the_other_with_a_message_and_the_run_goes_on(tmp_path):
    def words(epochs):
        options = OPTIONS | {"--training.epochs": epochs, "--training.patience": 1000}
        return ["--workdir", tmp_path / "run", *(word for pair in options.items() for word in pair)]

    first, second = begin_two("train", *words(1000))
    state = tmp_path / "run" / "backbone" / "state"
    deadline = time.monotonic() + 60
    while not checkpoints.steps(state) and time.monotonic() < deadline:
        time.sleep(0.1)
    second.kill()
    killed = time.monotonic()
    said = first.communicate(timeout=2 * hosts.HEARTBEAT_SECONDS)[0]
    second.communicate()
    assert first.returncode != 0
    assert hosts.LOST in said or "task died" in said, said
    assert time.monotonic() - killed < hosts.HEARTBEAT_SECONDS + 15
    done = checkpoints.steps(state)[-1]
    # The setting is part of the stage, so that only the same command goes on; it is stopped again, this time kindly.
    again = begin_two("train", *words(1000))
    while checkpoints.steps(state)[-1] == done and time.monotonic() < deadline + 60:
        time.sleep(0.1)
    for process in again:
        process.terminate()
    said = [process.communicate(timeout=120)[0] for process in again]
    assert [process.returncode for process in again] == [130, 130], said
    assert "the same command goes on" in said[0].lower(), said
    assert checkpoints.steps(state)[-1] > done


def test_options_that_do_not_go_together_are_refused():
    for config, words in (
        (HostsConfig(coordinator="a:1"), "--num-processes, --process-id is missing"),
        (HostsConfig("a", 2, 0), "is not HOST:PORT"),
        (HostsConfig("a:1", 2, 2), "is not one of 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            hosts.join(config)


def test_only_launchers_of_several_processes_are_joined_unasked():
    step = {"SLURM_STEP_NODELIST": "n[1-2]"}
    assert hosts.managed(step | {"SLURM_NTASKS": "2"})
    assert not hosts.managed(step | {"SLURM_NTASKS": "1"})
    assert not hosts.managed({"SLURM_NTASKS": "2"})  # a batch script, not started by srun
    assert hosts.managed({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "4"})
    assert not hosts.managed({})


def test_one_host_exchanges_with_itself_and_keeps_its_whole_share():
    (found,) = devices.exchange({"a": np.arange(3)})
    np.testing.assert_array_equal(found["a"], np.arange(3))
    assert devices.share(range(3)) == [0, 1, 2]
    assert devices.local(devices.mesh()) == devices.mesh()
