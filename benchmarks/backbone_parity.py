r"""Do other libraries' weights give these libraries' logits? All backbones, with random weights.

    python -m venv torch-env && torch-env/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 \
        transformers==5.24.0 torchxrayvision==1.5.7
    python benchmarks/backbone_parity.py --torch torch-env/bin/python [--only vit dinov2] [--library timm]

For every member and each library that has it, torch draws all parameters and running statistics, and writes state
dict, images and logits; we read the state dict by its table of names and compute the same in float32 at both image
sizes. The table holds the largest difference as a share of the largest logit; above 1e-4 the script exits with 1.
`--golden FOLDER` has torch write the small files of tests/golden instead. `--images` compares what images go through
before the networks instead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from cftjax import backbones
from cftjax.config import BackboneConfig
from cftjax.embeddings import embed
from cftjax.input.preprocessing import Preprocessing

LIMIT = 1e-4
TORCH_SIDE = Path(__file__).with_name("torch_backbones.py")
# An odd size as well: it tells TensorFlow's padding from torch's.
CONVOLUTIONAL = ("128", "97")
# Not square: rows and columns of patches must not be taken for one another.
PATCHES_OF_16 = ("224", "160x96")
# Whose images are compared, with those of RAD-DINO.
PREPARED = ("dinov3_base", "siglip2_base_patch16_224", "xrv_densenet121")


class Comparison(NamedTuple):
    """One of our backbones beside one of a library's models."""

    ours: str
    library: str
    theirs: str
    sizes: tuple[str, ...]


def comparisons() -> Iterator[Comparison]:
    """Every backbone with published weights, by every library that has it."""
    for name in backbones.BACKBONES:
        family, _, rest = name.partition("_")
        if name.startswith("timm_"):
            yield Comparison(name, "timm", rest, CONVOLUTIONAL)
        elif name.startswith(("efficientnet_lite", "tf_efficientnet")):
            port = name if name.startswith("tf_") else f"tf_{name}"
            yield Comparison(name, "timm", port.replace("_v2_s", "v2_s"), CONVOLUTIONAL)
        elif name.startswith(("resnet", "densenet", "convnext", "efficientnet")):
            yield Comparison(name, "torchvision", name, CONVOLUTIONAL)
            # timm has an EfficientNetV2-S of its own, but no weights for it.
            if rest != "v2_s":
                yield Comparison(name, "timm", name, CONVOLUTIONAL)
            if family == "convnext":
                yield Comparison(name, "transformers", f"dinov3-convnext-{rest}", CONVOLUTIONAL)
        elif name == "xrv_densenet121":
            yield Comparison(name, "torchxrayvision", rest, CONVOLUTIONAL)
        elif family == "vit":
            if rest in ("base", "large"):
                # torchvision's transformers take images of one size.
                yield Comparison(name, "torchvision", f"vit_{rest[0]}_16", ("224",))
            yield Comparison(name, "timm", f"vit_{rest}_patch16_224", ("224", "160"))
        elif family == "dinov2":
            size, _, registers = rest.partition("_")
            patch = "patch14_reg4" if registers else "patch14"
            yield Comparison(name, "timm", f"vit_{size}_{patch}_dinov2", ("518", "224"))
            # transformers interpolates positions in another way, and takes 518 pixels as they are.
            hub = f"dinov2-{size}-registers" if registers else f"dinov2-{size}"
            yield Comparison(name, "transformers", hub, ("518",))
        elif family == "dinov3":
            for biases in ("", "_qkvb"):
                yield Comparison(name, "timm", f"vit_{rest}_patch16_dinov3{biases}", PATCHES_OF_16)
            size, _, plus = rest.partition("_")
            yield Comparison(name, "transformers", f"dinov3-vit{size[0]}16{plus}", PATCHES_OF_16)
        elif family == "siglip2":
            size, patch, pixels = rest.split("_")
            other = int(patch.removeprefix("patch")) * 10
            yield Comparison(name, "timm", f"vit_{size}_{patch}_siglip_{pixels}", (pixels, f"{other}x{2 * other}"))
            yield Comparison(name, "transformers", name.replace("_", "-"), (pixels,))


def compare(torch: str, comparison: Comparison, folder: Path) -> tuple[list[float], int]:
    """Largest difference / largest logit at each size, and the number of parameters."""
    ours, library, theirs, sizes = comparison
    command = [torch, str(TORCH_SIDE), "parity", library, theirs, str(folder), "--sizes", *sizes]
    subprocess.run(command, check=True)
    config = BackboneConfig(ours, weights=str(folder / "weights.safetensors"))
    # Only shapes: all values come from the file.
    net = nnx.eval_shape(lambda: backbones.create(config, nnx.Rngs(0)))
    heads = backbones.load_weights(net, config)
    if heads is None:
        raise ValueError(f"the state dict of {library}'s {theirs} has no classifier")
    variables = nnx.split(net)
    parameters = sum(x.size for x in jax.tree.leaves(nnx.as_pure(nnx.state(net, nnx.Param))))
    differences = []
    with np.load(folder / "logits.npz", allow_pickle=False) as arrays:
        for size in sizes:
            expected = arrays[f"logits_{size}"]
            largest = np.abs(expected).max()
            if np.abs(expected[0] - expected[1]).max() < 0.01 * largest:
                raise ValueError(f"{theirs}: the logits hardly depend on the image, and so show nothing")
            z = embed.forward(variables[0], nnx.as_pure(variables[1]), jnp.asarray(arrays[f"images_{size}"]))
            differences.append(float(np.abs(np.asarray(heads(z)) - expected).max() / largest))
    return differences, parameters


def compare_images(torch: str) -> None:
    """Print by how many grey levels our images differ from those that other libraries show their networks."""
    mean, std = (0.5307, 0.5307, 0.5307), (0.2583, 0.2583, 0.2583)
    beside = {"dinov2_base": Preprocessing(518, mean, std, interpolation="bicubic")}
    beside |= {name: backbones.BACKBONES[name][1].preprocessing for name in PREPARED}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        given = {}
        for name in beside:
            # Those that crop agree where nothing is cut.
            width, height = (600, 600) if name == "dinov2_base" else (560, 420)
            smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((width, height))
            given[name] = np.asarray(smooth)
        np.savez(f"{folder}/images.npz", allow_pickle=False, **given)
        subprocess.run([torch, str(TORCH_SIDE), "prepare", folder], check=True)
        with np.load(f"{folder}/prepared.npz", allow_pickle=False) as prepared:
            for name, preprocessing in beside.items():
                ours, theirs = preprocessing.apply(given[name]), prepared[name]
                # torchxrayvision's have one channel.
                ours = ours.mean(axis=2, keepdims=True) if theirs.shape[2] == 1 else ours
                levels = np.abs(ours - theirs) * 255 * np.array(preprocessing.std)[: theirs.shape[2]]
                print(f"| {name} | {theirs.shape[0]} | {levels.mean():.2f} | {levels.max():.2f} |")


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch", required=True, help="an interpreter with torch, torchvision, timm, transformers and torchxrayvision"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of our names")
    parser.add_argument("--library", nargs="+", default=[""], help="beginnings of names of other libraries")
    parser.add_argument("--golden", help="write the files of tests/golden here, and stop")
    parser.add_argument("-o", "--output", type=Path, help="the table as Markdown")
    parser.add_argument("--images", action="store_true", help="compare images before the networks, and stop")
    options = parser.parse_args()
    if options.images:
        compare_images(options.torch)
        return
    if options.golden:
        subprocess.run([options.torch, str(TORCH_SIDE), "golden", options.golden], check=True)
        return
    lines = [
        "| backbone | names of | image sizes | largest difference / largest logit | parameters (M) |",
        "|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    worst = 0.0
    for comparison in comparisons():
        wanted = comparison.library.startswith(tuple(options.library))
        if not comparison.ours.startswith(tuple(options.only)) or not wanted:
            continue
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            differences, parameters = compare(options.torch, comparison, Path(folder))
        sizes, shares = ", ".join(comparison.sizes), ", ".join(f"{d:.1e}" for d in differences)
        source = f"{comparison.library} `{comparison.theirs}`"
        lines.append(f"| {comparison.ours} | {source} | {sizes} | {shares} | {parameters / 1e6:.1f} |")
        print(lines[-1], f"{time.perf_counter() - begin:.0f} s", flush=True)
        worst = float(np.max([worst, *differences]))
        jax.clear_caches()
    print(f"worst {worst:.1e}, limit {LIMIT:.0e}")
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")
    # Not >, which NaN would pass.
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
