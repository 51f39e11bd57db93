"""The same work in torch on the same card: networks, and the authors' library for the search."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

from card.networks import NETWORKS, Network
from card.notes import CATEGORIES, DIM, ROWS, SMALL, alone, guarded, note


def torch_networks(compiled: bool = False) -> None:
    """Torch's networks, channels last, bfloat16 autocast: loss, clipping, AdamW and average a step, as ours."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    for name, network in NETWORKS.items():
        guarded(name, steps, name, network, compiled)
        torch.cuda.empty_cache()


def torch_compiled() -> None:
    """The same through torch.compile."""
    torch_networks(compiled=True)


def built(network: Network) -> Any:
    """Torch's network, with random weights."""
    if network.library == "torchvision":
        import torchvision  # pyright: ignore[reportMissingImports]

        return torchvision.models.get_model(network.theirs, weights=None, num_classes=CATEGORIES)
    import timm  # pyright: ignore[reportMissingImports]

    return timm.create_model(network.theirs, num_classes=CATEGORIES)


def steps(name: str, network: Network, compiled: bool) -> None:
    """Time one network's two steps."""
    import torch  # pyright: ignore[reportMissingImports]

    device, batch, size = "cuda" if torch.cuda.is_available() else "cpu", network.batch, network.size
    model = built(network).to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    known = (torch.rand(batch, CATEGORIES, device=device) < 0.5).float()
    labels = (torch.rand(batch, CATEGORIES, device=device) < 0.1).float()
    parameters = list(model.parameters())
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device == "cuda")
    run = torch.compile(model) if compiled else model

    def train() -> None:
        model.train()
        with torch.autocast(device, torch.bfloat16):
            logits = run(images)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), labels, weight=known, reduction="sum"
        )
        (losses / known.sum()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 0.001)

    def embed() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            run(images)

    for kind, call in (("embed", embed), ("train", train)):
        note(f"{name} {kind}: images/s", batch / seconds(call, device))


def seconds(call: Callable[[], None], device: str) -> float:
    """The least of three means."""
    import torch  # pyright: ignore[reportMissingImports]

    repeats = 2 if SMALL else 8

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(1 if SMALL else 4):
        call()
    taken = []
    with alone():
        for _ in range(3):
            wait()
            begun = time.perf_counter()
            for _ in range(repeats):
                call()
            wait()
            taken.append((time.perf_counter() - begun) / repeats)
    return min(taken)


def mlcpl() -> None:
    """The authors' library: generations of one category, as it comes."""
    import torch  # pyright: ignore[reportMissingImports]
    from mlcpl import cft  # pyright: ignore[reportMissingImports]
    from mlcpl import metrics as theirs  # pyright: ignore[reportMissingImports]
    from mlcpl.cft import core  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    z = torch.relu(torch.randn(2 * ROWS, DIM))
    labels = ((z @ torch.randn(DIM, 1) / DIM**0.5 + 0.5 * torch.randn(2 * ROWS, 1)) > 1.5).float()
    head = torch.nn.Linear(DIM, 1)

    def run(epochs: int) -> float:
        optimizer = cft.GAForLinear(device=device, metric=theirs.partial_multilabel_average_precision)
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            core.finetune_head(
                head,
                training_data=(z[:ROWS], labels[:ROWS]),
                validation_data=(z[ROWS:], labels[ROWS:]),
                optimizer=optimizer,
                epochs=epochs,
                validation_metric=theirs.partial_multilabel_average_precision,
                device=device,
            )
        return time.perf_counter() - begun

    run(2)
    few, many = (2, 4) if SMALL else (5, 25)
    with alone():
        each = (run(many) - run(few)) / (many - few)
    note("ms a generation of one category", 1e3 * each)
    note(f"ms a generation of {CATEGORIES} categories, one after the other", 1e3 * each * CATEGORIES)
