"""Several hosts as one: `jax.distributed`, begun before anything asks JAX for a device.

Every host runs the same command, which is made sure of first. All hold the same devices in one mesh; the first one
(process 0) writes the small files of a run into a folder that all of them see.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np

from cftjax.config import HostsConfig
from cftjax.runtime import devices, rendezvous, settings
from cftjax.runtime.rendezvous import Place

T = TypeVar("T")

# A host that has said nothing for so long is lost, and ends the others; JAX's own default is 100.
HEARTBEAT_SECONDS = 60
# How long a host that has finished waits for the others to say so too.
SHUTDOWN_SECONDS = 60
# With others the same numbers may come out otherwise.
VERSIONS = ("cftjax", "jax", "jaxlib", "numpy", "optax", "evosax", "flax")
GOOGLE = "0x1ae0"
LOST = (
    "another host has stopped or cannot be reached. See what it says; the same command on all hosts goes on from what "
    "is saved. The connection's own words: "
)


def join(config: HostsConfig, command: Any = None) -> None:
    """Become one of several hosts, where the options or the machine's surroundings say that there are several.

    Args:
        config: the options.
        command: all options of the command, which must be the same on all hosts but for `hosts`.

    Raises:
        ValueError: for options that do not go together; on all hosts, where one is missing or was started otherwise.
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
        "initialization_timeout": math.ceil(config.join_seconds),
    }
    if all(value is None for value in given.values()):
        if managed(os.environ) or on_tpu_vm():
            jax.distributed.initialize(**timeouts)
            agree(statement(command))
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
    place = Place(address.strip("[]"), int(port), config.num_processes, config.join_seconds)
    rendezvous.meet(place, config.process_id, statement(command))
    jax.distributed.initialize(
        config.coordinator,
        config.num_processes,
        config.process_id,
        cluster_detection_method="deactivate",
        **timeouts,
    )
    # From here on the loss of one is seen by the others at once.
    devices.barrier("hosts have joined")


def statement(command: Any) -> dict[str, Any]:
    """What all hosts must have in common before they work."""
    options = settings.plain(command) or {}
    return {
        "command": Path(sys.argv[0]).stem,
        # As they are named on the command line.
        **{name: value for name, value in options.items() if name not in ("hosts", "config")},
        **options.get("config", {}),
        "code": code(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }


def code() -> str:
    """A digest of this package's own code."""
    digest, folder = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def agree(said: dict[str, Any]) -> None:
    """Make sure that all hosts say the same.

    Raises:
        ValueError: on all of them, with where they differ.
    """
    if jax.process_count() == 1:
        return
    statements = [json.loads(content) for content in _tell(json.dumps(settings.plain(said)))]
    if wrong := rendezvous.disagreement(statements):
        raise ValueError(wrong)


def together(make: Callable[[], T]) -> T:
    """What every host makes by itself, such as reading the data; an error on one of them is one on all.

    Raises:
        ValueError: on the other hosts, with what the first one says that has an error.
    """
    if jax.process_count() == 1:
        return make()
    made: list[T] = []
    error: Exception | None = None
    try:
        made.append(make())
    except Exception as raised:
        error = raised
    errors = _tell("" if error is None else f"{error}" or type(error).__name__)
    if error is not None:
        raise error
    if wrong := next((f"host {index}: {text}" for index, text in enumerate(errors) if text), ""):
        raise ValueError(wrong)
    return made[0]


def _tell(text: str) -> list[str]:
    """What every host tells all others, in their order."""
    told = devices.exchange({"text": np.frombuffer(text.encode() or b" ", np.uint8)})
    return [each["text"].tobytes().decode().strip() for each in told]


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
    return not devices.says_full(error) and (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error))


def leave(code: int) -> NoReturn:
    """End this process with an exit code; with one that is not 0, without waiting for hosts that may be lost."""
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        # Others may have met the same error, and should say so before the loss of this one ends them.
        time.sleep(1.0)
        os._exit(code)
    sys.exit(code)
