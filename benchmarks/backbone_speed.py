"""How fast are the backbones, beside torch on the same cores?

    python benchmarks/backbone_speed.py --torch torch-env/bin/python [--only resnet50] [-o speed.md]
    python benchmarks/backbone_speed.py --size 224 --batch-size 256 --dtype bfloat16 --peak 197   # on an accelerator

The environment is that of backbone_parity.py. Both sides run in turn, round by round, torch in a process of its own
with channels last; the table holds medians. `embed` is the forward pass by running statistics; `train` the forward pass
with batch statistics and the gradients of all parameters, without the optimizer. FLOP are two per multiply-add of
convolutions and matrix products, three forward passes for `train`; the share is that of the peak, which is measured by
a product of large matrices, or given for an accelerator (--peak, TFLOP/s of all devices). `--products` times every
convolution and matrix product of a call by itself, at its own shape, and adds them up: the throughput if nothing else
took time, which is the floor that XLA's own kernels set. Run it alone on idle cores, or the figures mean nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cftjax import backbones, losses
from cftjax.config import BackboneConfig
from cftjax.runtime import devices

TORCH_SIDE = Path(__file__).with_name("torch_backbones.py")
# One member per family, and what torch's libraries call it.
MEMBERS = {
    "resnet50": ("torchvision", "resnet50"),
    "densenet121": ("torchvision", "densenet121"),
    "efficientnet_lite0": ("timm", "tf_efficientnet_lite0"),
    "efficientnet_b0": ("torchvision", "efficientnet_b0"),
    "convnext_tiny": ("torchvision", "convnext_tiny"),
    "vit_small": ("timm", "vit_small_patch16_224"),
}
CATEGORIES = 10
Call = Callable[[], float]


def flops(jaxpr: Any) -> float:
    """FLOP of the convolutions and matrix products, in the form that accelerators get."""
    total = 0.0
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += 2 * out * math.prod(kernel) / kernel[spec[0]]
        else:
            inner = [flops(sub) for sub in jax.extend.core.jaxprs_in_params(equation.params)]
            # The choice of platform is a branch: the CPU's shifted sums are no products, the others' convolution is.
            total += max(inner, default=0.0) if equation.primitive.name == "cond" else sum(inner)
    return total


PRODUCTS = ("dot_general", "conv_general_dilated")
Products = collections.Counter[str]


def products(jaxpr: Any, times: int = 1, found: Products | None = None, examples: dict[str, Any] | None = None) -> Any:
    """How often each convolution and matrix product occurs in the form that this platform gets, and one of each."""
    found, examples = Products() if found is None else found, {} if examples is None else examples
    platform = jax.default_backend()
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        if name in PRODUCTS:
            shapes = [place.aval.str_short() for place in equation.invars]
            key = f"{name} {shapes} {params}"
            found[key] += times
            examples[key] = equation
        elif name == "cond" and params.get("branches_platforms"):
            platforms = params["branches_platforms"]
            chosen = next((i for i, names in enumerate(platforms) if names and platform in names), None)
            branch = params["branches"][platforms.index(None) if chosen is None else chosen]
            products(branch.jaxpr, times, found, examples)
        else:
            again = times * params["length"] if name == "scan" else times
            for inner in jax.extend.core.jaxprs_in_params(params):
                products(inner, again, found, examples)
    return found, examples


def seconds_of_products(jaxpr: Any, repeats: int = 3) -> float:
    """What the convolutions and matrix products of a function take one by one, each the best of a few times."""
    found, examples = products(jaxpr)
    rng, total = np.random.default_rng(0), 0.0
    for key, count in found.items():
        equation = examples[key]
        given = [jnp.asarray(rng.normal(size=x.aval.shape), x.aval.dtype) for x in equation.invars]
        alone = jax.jit(lambda *xs, e=equation: e.primitive.bind(*xs, **e.params)).lower(*given).compile()
        _seconds(lambda alone=alone, given=given: alone(*given))
        total += count * min(_seconds(lambda alone=alone, given=given: alone(*given)) for _ in range(repeats))
    return total


class Ours(NamedTuple):
    """One backbone, compiled; `products` are the seconds of its products alone, where they were asked for."""

    calls: dict[str, Call]
    compile_seconds: dict[str, float]
    flops: dict[str, float]
    products: dict[str, float]


def ours(name: str, size: int, batch_size: int, dtype: Any, remat: bool, alone: bool) -> Ours:
    """Compile the two calls of a backbone; `alone` times their products as well."""
    net = nnx.jit(lambda: backbones.create(BackboneConfig(name, remat=remat), nnx.Rngs(0), dtype))()
    graphdef, *variables = nnx.split(net, nnx.Param, ...)
    params, rest = map(nnx.as_pure, variables)
    kernel = jnp.full((net.dim, CATEGORIES), 0.01)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch_size, size, size, 3)), jnp.float32)
    labels = jnp.asarray(rng.random((batch_size, CATEGORIES)) < 0.5)

    def embed(params: Any, kernel: Any) -> Any:
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        return model.embed(images) @ kernel

    def loss(params: Any, kernel: Any) -> Any:
        model = nnx.merge(graphdef, params, rest)
        model.train()
        nats = losses.sigmoid_bce(model.embed(images) @ kernel, labels)
        _, _, stats = nnx.split(model, nnx.Param, ...)
        return jnp.mean(nats), nnx.as_pure(stats)

    counted = flops(jax.make_jaxpr(embed)(params, kernel).jaxpr)
    calls, seconds, floors = {}, {}, {}
    for call, function in {"embed": embed, "train": jax.value_and_grad(loss, (0, 1), has_aux=True)}.items():
        if alone:
            floors[call] = seconds_of_products(jax.make_jaxpr(function)(params, kernel).jaxpr)
        lowered = jax.jit(function).lower(params, kernel)
        begin = time.perf_counter()
        compiled = lowered.compile()
        seconds[call] = time.perf_counter() - begin
        calls[call] = lambda compiled=compiled: _seconds(lambda: compiled(params, kernel))
    return Ours(calls, seconds, {"embed": counted, "train": 3 * counted}, floors)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


@contextlib.contextmanager
def theirs(torch: str, library: str, name: str, size: int, batch_size: int) -> Iterator[dict[str, Call]]:
    """The same calls of a torch model, in a process of its own that waits while we run."""
    threads = len(os.sched_getaffinity(0))
    options = {"--size": size, "--batch-size": batch_size, "--threads": threads}
    command = [torch, str(TORCH_SIDE), "speed", library, name, *(str(x) for pair in options.items() for x in pair)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def ask(call: str) -> float:
            print(call, file=questions, flush=True)
            return float(answers.readline())

        if answers.readline() != "ready\n":
            raise ValueError(f"{torch} could not build {library}'s {name}")
        yield {"embed": lambda: ask("embed"), "train": lambda: ask("train")}
        questions.close()


def matmul_peak() -> float:
    """FLOP/s of a product of large float32 matrices."""
    n = 3072
    x = jnp.ones((n, n))
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    return 2 * n**3 / min(_seconds(lambda: product(x)) for _ in range(8))


def main() -> None:
    """Print the table, two rows per backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", help="an interpreter with torch, torchvision and timm; without it we run alone")
    parser.add_argument("--only", nargs="+", default=list(MEMBERS), help="our names")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--products", action="store_true", help="time the products of each call by themselves as well")
    parser.add_argument("--fresh", action="store_true", help="let the C library give freed memory back, as by default")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the devices; measured if not given")
    parser.add_argument("-o", "--output", type=Path, help="the table as Markdown")
    options = parser.parse_args()
    # As the commands do; but no cache of compiled programs, whose compilation is timed here.
    if not options.fresh:
        devices.keep_freed_memory()
    peak = options.peak * 1e12 if options.peak else matmul_peak()
    lines = [
        f"Peak {peak / 1e9:.0f} GFLOP/s; {options.batch_size} images of {options.size} pixels, {options.dtype}.",
        "",
        "| backbone | call | images/s | torch images/s | ratio | products alone | GFLOP/s | of peak | compiled (s) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    for name in options.only:
        mine = ours(name, options.size, options.batch_size, jnp.dtype(options.dtype), options.remat, options.products)
        sides = {"ours": mine.calls}
        with contextlib.ExitStack() as stack:
            if options.torch:
                pair = MEMBERS[name]
                sides["torch"] = stack.enter_context(theirs(options.torch, *pair, options.size, options.batch_size))
            times: dict[tuple[str, str], list[float]] = {}
            for number in range(options.rounds + 1):
                for call in ("embed", "train"):
                    for side, calls in sides.items():
                        seconds = calls[call]()
                        # The first round warms up.
                        if number:
                            times.setdefault((side, call), []).append(seconds)
        for call in ("embed", "train"):
            median = {side: statistics.median(times[side, call]) for side in sides}
            rate = mine.flops[call] / median["ours"]
            other = f"{options.batch_size / median['torch']:.1f}" if "torch" in median else "-"
            ratio = f"{median['torch'] / median['ours']:.2f}" if "torch" in median else "-"
            floor = f"{options.batch_size / mine.products[call]:.1f}" if mine.products else "-"
            lines.append(
                f"| {name} | {call} | {options.batch_size / median['ours']:.1f} | {other} | {ratio} | {floor} | "
                f"{rate / 1e9:.0f} | {rate / peak:.0%} | {mine.compile_seconds[call]:.1f} |"
            )
            print(lines[-1], flush=True)
        jax.clear_caches()
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
