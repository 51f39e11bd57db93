"""Tests run on virtual CPU devices, or with CFTJAX_TEST_DEVICES=any on what is there; shapes and types are checked."""

import os
import signal

if os.environ.get("CFTJAX_TEST_DEVICES", "cpu") not in ("cpu", "any"):
    raise SystemExit("CFTJAX_TEST_DEVICES is neither cpu nor any: leave it unset for eight virtual CPU devices")
# What a shell starts in the background ignores Ctrl-C, and so does what that starts; tests of interruption send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# XLA has one pool of threads for all eight, as many as there are cores, and an all-reduce holds one until all have
# come: with two, a training's step can wait for itself until XLA ends the process.
os.environ.setdefault("NPROC", "64")
if os.environ.get("CFTJAX_TEST_DEVICES") != "any":
    os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# The same examples in every run: what new ones find is mended on its own, and holds up no change that has nothing to do
# with it. CFTJAX_TEST_EXAMPLES=new draws others.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
if os.environ.get("CFTJAX_TEST_EXAMPLES") != "new":
    hypothesis.settings.load_profile("same")

jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("cftjax", "beartype.beartype")


@pytest.fixture(scope="session")
def image_runs(tmp_path_factory):
    """A folder of images, and by the backbone's name a finished run that has them as its test split."""
    import toy

    from cftjax import backbones
    from cftjax.backbones import resnet

    folder = tmp_path_factory.mktemp("image_runs")
    images = toy.write_images(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        for name, small in toy.BACKBONES.items():
            shape = resnet.ResNetConfig(widths=(4, 6), depths=(1, 1), small_stem=small)
            patch.setitem(backbones.BACKBONES, name, (backbones.RESNET, shape))
        yield images, {name: toy.image_run(folder / name, name, images) for name in toy.BACKBONES}
