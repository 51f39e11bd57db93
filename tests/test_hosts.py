"""Several hosts: two processes of this machine, each with devices of its own, over the loopback."""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import cftjax
from cftjax import cli, default
from cftjax.config import HostsConfig
from cftjax.data import splits
from cftjax.embeddings import embed
from cftjax.runtime import checkpoints, devices, hosts
from cftjax.training import classifier, images, loop

OPTIONS = {
    "--data.num-train": "96",
    "--data.num-validation": "48",
    "--data.num-test": "48",
    "--training.epochs": "6",
    "--training.patience": "40",
    "--training.batch-size": "48",
    "--embed.batch-size": "24",
    "--ga.num-generations": "20",
    "--ga.population-size": "8",
    "--ga.dimensions": "4",
    "--polish.num-steps": "10",
    "--polish.dimensions": "4",
    "--report.resamples": "20",
}
SMALL = [word for pair in OPTIONS.items() for word in pair]


def begin_two(folder, *words):
    """The same command on two hosts of one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = []
    for i in range(2):
        options = ["--coordinator", address, "--num-processes", "2", "--process-id", str(i)]
        command = [sys.executable, "-m", "cftjax.train", *words, *options]
        with (folder / f"host{i}").open("w") as said:
            processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
    return processes


def said(folder):
    return [(folder / f"host{i}").read_text() for i in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of `run`: begun by two hosts, one of which was killed, and gone on with by the same command."""
    folder = tmp_path_factory.mktemp("hosts")
    words = ["--workdir", str(folder / "run"), *SMALL]
    state = folder / "run" / "backbone" / "state"
    first, second = begin_two(folder, *words)
    while not checkpoints.steps(state) and first.poll() is None and second.poll() is None:
        time.sleep(0.05)
    second.kill()
    second.wait()
    code = first.wait(timeout=hosts.HEARTBEAT_SECONDS + 15)
    (folder / "after_the_kill").write_text(f"{code} {said(folder)[0]}")
    again = begin_two(folder, *words)
    codes = [process.wait(timeout=120) for process in again]
    assert codes == [0, 0], said(folder)
    return folder


@pytest.mark.hosts
def test_a_host_that_dies_ends_the_other_with_a_message(folder):
    code, words = (folder / "after_the_kill").read_text().split(" ", 1)
    assert code != "0"
    # Ours where a collective fails, JAX's where heartbeats stop.
    assert hosts.LOST in words or "task died" in words, words


@pytest.mark.hosts
def test_two_hosts_train_as_one_with_the_same_devices(folder, tmp_path):
    experiment = cli.parse("", default.get_config, SMALL)
    config = experiment.config
    dataset = splits.prepare(config.data.load(), config.labels, config.split).dataset
    alone = loop.Training(images.of_experiment(dataset, config), tmp_path, devices.mesh(jax.devices()[:2]))
    epochs = 2
    for _ in range(epochs * alone.steps_per_epoch):
        alone.step()
    alone.settle()
    alone.iterator.close()
    history = json.loads((folder / "run" / "backbone" / "history.json").read_text())
    assert history["step"] == 6 * alone.steps_per_epoch
    sums = alone.steps_per_epoch * sum(history["loss"][:epochs])
    np.testing.assert_allclose(sums, alone.history.epoch_loss, rtol=1e-4)


@pytest.mark.hosts
def test_two_hosts_embed_exactly_as_one_device(folder):
    run = cftjax.open_run(folder / "run")
    backbone, _ = classifier.load(run.folder / "backbone", devices.mesh(jax.devices()[:1]))
    config = cli.parse("", default.get_config, SMALL).config
    dataset = splits.prepare(config.data.load(), config.labels, config.split).dataset
    records, preprocessing = dataset.splits["test"], images.of_experiment(dataset, config).preprocessing
    mesh = devices.mesh(jax.devices()[:1])
    parts = embed.embed_rows(backbone, records, preprocessing, config.input, 24, mesh=mesh)
    np.testing.assert_array_equal(run.embeddings("test").z, np.concatenate([part.z for part in parts]))


@pytest.mark.hosts
def test_two_hosts_search_and_polish_exactly_as_one_with_the_same_devices(folder):
    run = cftjax.open_run(folder / "run")
    train, validation, start = run.embeddings("train"), run.embeddings("validation"), run.heads("backbone")
    config = cli.parse("", default.get_config, SMALL).config
    mesh = devices.mesh(jax.devices()[:2])
    polished = cftjax.polish(start, train, validation, config=config.polish, mesh=mesh)
    found = cftjax.search(
        polished.heads, train, validation, key=jax.random.key(config.seed), config=config.ga, seeds=[start], mesh=mesh
    )
    for stage, heads in (("polish", polished.heads), ("ga", found.heads)):
        np.testing.assert_array_equal(run.heads(stage).kernel, heads.kernel)
        np.testing.assert_array_equal(run.heads(stage).bias, heads.bias)


@pytest.mark.hosts
def test_only_the_first_host_writes_and_prints(folder):
    first, second = said(folder)
    assert "Report:" in first
    assert "Report:" not in second
    assert "Train:" not in second


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
