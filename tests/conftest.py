"""Every test runs on virtual CPU devices, with shapes and types checked at each call."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from jaxtyping import install_import_hook

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
