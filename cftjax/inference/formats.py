"""An exported program as a file, and such a file run again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy
from jax import export

from cftjax import extras
from cftjax.inference.flattening import flattened
from cftjax.inference.program import FORMAT, Function, Program
from cftjax.runtime import storage

Format = Literal["stablehlo", "safetensors", "onnx"]
# Those for which StableHLO is lowered; the program runs on whichever of them is there.
PLATFORMS = ("cpu", "cuda", "tpu")
# Under which a file's metadata hold the description.
KEY = "cftjax"
ONNX_EXTRA = f"ONNX needs jax2onnx and onnxruntime: {extras.install('onnx')}"


def abstract_input(program: Program) -> jax.ShapeDtypeStruct:
    """What the program takes, for any number n of images."""
    _, shape, dtype = program.input
    return jax.ShapeDtypeStruct((*export.symbolic_shape("n"), *shape), dtype)


def to_stablehlo(program: Program) -> bytes:
    """A serialised `jax.export.Exported`, which JAX runs without this library."""
    exported = export.export(jax.jit(program.function()), platforms=PLATFORMS)(abstract_input(program))
    return bytes(exported.serialize())


def to_safetensors(program: Program) -> bytes:
    """All arrays, and the description as JSON in the metadata."""
    arrays = {name: np.ascontiguousarray(array) for name, array in program.arrays.items()}
    return safetensors.numpy.save(arrays, {KEY: json.dumps(program.description)})


def to_onnx(program: Program) -> bytes:
    """An ONNX model, and the description as JSON in its metadata.

    Raises:
        ImportError: without the extra.
    """
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
        import onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{ONNX_EXTRA} ({error})") from error
    # They log tracebacks of plugins for libraries that do not concern us, and hundreds of shapes without a type; what
    # cannot be converted is raised.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    inputs = abstract_input(program)
    # Traced before jax2onnx looks at it, which would put operators of its own in the place of Flax's layers.
    flat = flattened(jax.make_jaxpr(program.function())(inputs))
    model: Any = jax2onnx.to_onnx(
        lambda x: flat(x)[0],
        [inputs],
        model_name=KEY,
        input_names=[program.input[0]],
        output_names=[program.description["output"]["name"]],
    )
    onnx.helper.set_model_props(model, {KEY: json.dumps(program.description)})
    return model.SerializeToString()


def read(path: Path) -> Program:
    """The program that a file of `to_safetensors` holds.

    Raises:
        ValueError: for any other file.
    """
    arrays, metadata = storage.read_tensors(path)
    if KEY not in metadata:
        raise ValueError(f"{path} is no exported run: its metadata have no {KEY}")
    try:
        description = json.loads(metadata[KEY])
        newer = description["format"] > FORMAT
    # No JSON, nested deeper than Python goes, or another thing than a description.
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no exported run: its description cannot be read ({error!r})") from error
    if newer:
        raise ValueError(
            f"{path} has format {description['format']}, this version reads up to {FORMAT}: upgrade cftjax"
        )
    return Program(arrays, description)


def run_stablehlo(path: Path) -> Function:
    """The function in a file of `to_stablehlo`."""
    return export.deserialize(bytearray(path.read_bytes())).call


def run_safetensors(path: Path) -> Function:
    """The function in a file of `to_safetensors`."""
    return jax.jit(read(path).function())


def run_onnx(path: Path) -> Function:
    """The function in a file of `to_onnx`, by onnxruntime on the CPU.

    Raises:
        ImportError: without the extra.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{ONNX_EXTRA} ({error})") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {session.get_inputs()[0].name: np.asarray(inputs)})[0]


WRITERS: dict[Format, Callable[[Program], bytes]] = {
    "stablehlo": to_stablehlo,
    "safetensors": to_safetensors,
    "onnx": to_onnx,
}
RUNNERS: dict[Format, Callable[[Path], Function]] = {
    "stablehlo": run_stablehlo,
    "safetensors": run_safetensors,
    "onnx": run_onnx,
}
