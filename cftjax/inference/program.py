"""A run as one function, from images or embeddings to calibrated probabilities, in float32 wherever it runs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from cftjax import backbones
from cftjax.backbones import Backbone, Embedder
from cftjax.backbones.places import LikeliestPlaces
from cftjax.config import BackboneConfig, ClassifierConfig
from cftjax.decisions import UNFITTED, Decisions
from cftjax.input.preprocessing import Preprocessing
from cftjax.runs import Run
from cftjax.runtime import devices
from cftjax.training import classifier

# Of files whose likeliest places count twice 2, and 1 of all others, which older versions read.
FORMAT = 2

# Images or embeddings [n ...] to probabilities [n c].
Function = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything between images and probabilities.

    Attributes:
        arrays: by flat name: `backbone.` and its variables, head.kernel [c d], head.bias [c], and the calibration;
            where likeliest places count twice, places.kernel [c d] that tells which they are.
        description: of JSON values: input, output, categories, thresholds, preprocessing, architecture, versions.
    """

    arrays: dict[str, np.ndarray]
    description: dict[str, Any]

    @property
    def input(self) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
        """Name, shape without the leading n, and dtype of what it takes."""
        expected = self.description["input"]
        return expected["name"], tuple(expected["shape"][1:]), np.dtype(expected["dtype"])

    def function(self) -> Function:
        """Images uint8 [n s s 3], or embeddings float32 [n d] or [n c d], to probabilities float32 [n c].

        It may be jitted and exported: weights are constants of it.
        """
        arrays = self.arrays
        embed = _embedding(self.description, arrays) if self.description["architecture"] else None

        def probabilities(inputs: jax.Array) -> jax.Array:
            z = inputs if embed is None else embed(inputs)
            axes, highest = "ncd,cd->nc" if z.ndim == 3 else "nd,cd->nc", jax.lax.Precision.HIGHEST
            product = jnp.einsum(axes, z, arrays["head.kernel"], precision=highest)
            return calibrated(product + arrays["head.bias"][None, :], arrays)

        return probabilities


def of_run(run: Run) -> Program:
    """The program of a finished run: backbone where it has one, final heads, calibration.

    Raises:
        FileNotFoundError: where the run is not finished.
    """
    decisions = run.decisions()
    heads = run.heads("final")
    arrays = {"head.kernel": np.asarray(heads.kernel, np.float32), "head.bias": np.asarray(heads.bias, np.float32)}
    arrays |= calibration_arrays(decisions)
    preprocessing, settings, places = run.config["preprocessing"], run.config["settings"], None
    if preprocessing is None:
        name, dtype, shape = "embeddings", "float32", list(run.embeddings("train").z.shape[1:])
    else:
        size = preprocessing["image_size"]
        name, dtype, shape = "images", "uint8", [size, size, 3]
        backbone = load_backbone(run)
        if isinstance(backbone, LikeliestPlaces):
            arrays["places.kernel"] = np.asarray(backbone.kernel.get_value())
            places, backbone = dataclasses.asdict(backbone.config), backbone.backbone
        arrays |= {f"backbone.{path}": np.asarray(value) for path, value in _variables(backbone).items()}
    thresholds = np.where(np.isnan(decisions.thresholds), UNFITTED, decisions.thresholds)
    description = {
        "format": 2 if places else 1,
        "made_by": f"cftjax {importlib.metadata.version('cftjax')}",
        "data": run.config["fingerprint"],
        "input": {"name": name, "dtype": dtype, "shape": ["n", *shape]},
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["n", len(run.categories)]},
        "preprocessing": preprocessing,
        "categories": list(run.categories),
        "thresholds": thresholds.tolist(),
        "thresholds_rule": decisions.rule if decisions.target is None else f"{decisions.rule} {decisions.target:g}",
        "calibration": decisions.calibration,
        "fitted_on": decisions.fitted_on.split,
        "notes": dict(decisions.notes),
        "architecture": None if preprocessing is None else settings["backbone"]["name"],
        "pooling": None if preprocessing is None else settings["backbone"].get("pooling", "published"),
    } | ({"classifier": places} if places else {})
    return Program(arrays, description)


def load_backbone(run: Run) -> Any:
    """The backbone of a run on the CPU, computing in float32 whatever it was trained in."""
    return classifier.load(run.folder / "backbone", devices.mesh(cpu()), dtype=jnp.float32)[0]


def cpu() -> list[Any]:
    """The CPU, on which files are made and checked, so that they do not depend on the machine.

    Raises:
        ValueError: where JAX has been told to leave it out.
    """
    try:
        return jax.local_devices(backend="cpu")[:1]
    except RuntimeError as error:
        raise ValueError("exports are made on the CPU, which JAX_PLATFORMS leaves out: add cpu to it") from error


def _variables(module: Any) -> dict[str, Any]:
    """Parameters and running statistics by their path, joined by dots."""
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _embedding(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> Function:
    """Images uint8 [n s s 3] to embeddings [n d] or [n c d], by the architecture's name and the arrays alone."""
    graphdef, variables = _split(description, arrays)
    normalisation = Preprocessing.from_json(description["preprocessing"]).normalisation

    def embed(images: jax.Array) -> jax.Array:
        return _with_places(nnx.merge(graphdef, variables), description, arrays).embed(normalisation(images))

    return embed


def _with_places(backbone: Backbone, description: dict[str, Any], arrays: dict[str, np.ndarray]) -> Embedder:
    """What embeds: the backbone or, where likeliest places count twice, the backbone and the head that picks them."""
    if "classifier" not in description:
        return backbone
    settings = ClassifierConfig(**description["classifier"])
    return LikeliestPlaces(backbone, jnp.asarray(arrays["places.kernel"]), settings)


def _split(
    description: dict[str, Any], arrays: dict[str, np.ndarray], dtype: DTypeLike = jnp.float32
) -> tuple[Any, Any]:
    """Structure and values of the backbone.

    Raises:
        ValueError: for an array of another shape than the architecture has there.
    """
    config = BackboneConfig(name=description["architecture"], pooling=description["pooling"])
    module = nnx.eval_shape(lambda: backbones.create(config, nnx.Rngs(0), dtype))
    module.eval()
    graphdef, state = nnx.split(module, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        name = f"backbone.{'.'.join(map(str, path))}"
        array, wanted = arrays[name], variable.get_value()
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise ValueError(
                f"{name} is {array.dtype} {array.shape}: {config.name} has {wanted.dtype} {wanted.shape} there"
            )
        variable.set_value(jnp.asarray(array))
    return graphdef, nnx.as_pure(state)


def module(description: dict[str, Any], arrays: dict[str, np.ndarray], dtype: DTypeLike) -> Embedder:
    """The backbone that a program's arrays hold, ready to embed, on all devices."""
    whole = devices.replicated(devices.mesh())
    graphdef, variables = _split(description, arrays, dtype)
    return _with_places(nnx.merge(graphdef, jax.device_put(variables, whole)), description, arrays)


def calibration_arrays(decisions: Decisions) -> dict[str, np.ndarray]:
    """Scale and offset [c]; of isotonic also knots, the last one repeated, and where they count."""
    arrays = {"scale": decisions.scale, "offset": decisions.offset}
    if any(knots.size for knots in decisions.knots):
        most = max(knots.shape[1] for knots in decisions.knots)
        padded = [
            np.pad(knots, ((0, 0), (0, most - knots.shape[1])), mode="edge" if knots.size else "constant")
            for knots in decisions.knots
        ]
        logits, probs = np.stack(padded, axis=1)
        arrays |= {"knot_logits": logits, "knot_probabilities": probs}
        arrays |= {"isotonic": np.array([knots.size > 0 for knots in decisions.knots])}
    return {
        f"calibration.{name}": array.astype(np.float32) if array.dtype != bool else array
        for name, array in arrays.items()
    }


def calibrated(logits: Float[jax.Array, "n c"], arrays: dict[str, np.ndarray]) -> Float[jax.Array, "n c"]:
    """What `Decisions.probabilities` computes."""
    scale, offset = arrays["calibration.scale"][None, :], arrays["calibration.offset"][None, :]
    probs = jax.nn.sigmoid(logits * scale + offset)
    if "calibration.isotonic" not in arrays:
        return probs
    x, y = arrays["calibration.knot_logits"], arrays["calibration.knot_probabilities"]
    # The sum of all steps passed so far, each as far as it has been passed: linear between knots, level outside.
    width = np.diff(x, axis=1)
    passed = (logits[:, :, None] - x[None, :, :-1]) / np.where(width > 0, width, np.float32(1))[None]
    between = y[None, :, 0] + jnp.sum(np.diff(y, axis=1)[None] * jnp.clip(passed, 0.0, 1.0), axis=2)
    return jnp.where(arrays["calibration.isotonic"][None, :], between, probs)
