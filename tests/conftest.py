"""Every test runs on virtual CPU devices, with shapes and types checked at each call."""

import os

# Compiling is most of what the tests wait for, so that LLVM is told to hurry.
FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("cftjax", "beartype.beartype")
