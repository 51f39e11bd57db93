"""Several hosts as one: `jax.distributed`, begun before anything asks JAX for a device.

Every host runs the same command. All hold the same devices in one mesh; the first one (process 0) writes the small
files of a run into a folder that all of them see.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax

from cftjax.config import HostsConfig

# A host that has said nothing for so long is lost, and ends the others; JAX's own default is 100.
HEARTBEAT_SECONDS = 60
# How long a host that has finished waits for the others to say so too.
SHUTDOWN_SECONDS = 60
GOOGLE = "0x1ae0"
LOST = (
    "another host has stopped or cannot be reached. See what it says; the same command on all hosts goes on from what "
    "is saved. The connection's own words: "
)


def join(config: HostsConfig) -> None:
    """Become one of several hosts, where the options or the machine's surroundings say that there are several.

    Raises:
        ValueError: for options that do not go together.
    """
    given = {
        "--coordinator": config.coordinator,
        "--num-processes": config.num_processes,
        "--process-id": config.process_id,
    }
    if jax.distributed.is_initialized():
        return
    timeouts: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    if all(value is None for value in given.values()):
        if managed(os.environ) or on_tpu_vm():
            jax.distributed.initialize(**timeouts)
        return
    if config.coordinator is None or config.num_processes is None or config.process_id is None:
        missing = [name for name, value in given.items() if value is None]
        raise ValueError(
            f"--coordinator, --num-processes and --process-id go together: {', '.join(missing)} is missing"
        )
    address, _, port = config.coordinator.rpartition(":")
    if not address or not port.isdecimal():
        raise ValueError(f"--coordinator {config.coordinator} is not HOST:PORT, such as 10.0.0.1:8476")
    if not 0 <= config.process_id < config.num_processes:
        raise ValueError(
            f"--process-id {config.process_id} is not one of 0 to {config.num_processes - 1}, as --num-processes says"
        )
    jax.distributed.initialize(
        config.coordinator,
        config.num_processes,
        config.process_id,
        cluster_detection_method="deactivate",
        **timeouts,
    )


def managed(environment: Mapping[str, str]) -> bool:
    """Whether SLURM's srun or Open MPI's mpirun has started more than one process; JAX reads the rest from there."""
    slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
    open_mpi = "OMPI_MCA_orte_hnp_uri" in environment and int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    return slurm or open_mpi


def on_tpu_vm(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether this is a TPU VM with JAX for TPUs: there, JAX asks the surroundings how many hosts the slice has."""
    if importlib.util.find_spec("libtpu") is None or not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")):
        return False
    return any(path.read_text().strip() == GOOGLE for path in devices.glob("*/vendor"))


def says_lost(error: Exception) -> bool:
    """Whether an error is what a collective raises when another host is gone."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def leave(code: int) -> NoReturn:
    """End this process with an exit code; with one that is not 0, without waiting for hosts that may be lost."""
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        # Others may have met the same error, and should say so before the loss of this one ends them.
        time.sleep(1.0)
        os._exit(code)
    sys.exit(code)
