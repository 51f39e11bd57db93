import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cftjax import backbones
from cftjax.backbones import resnet
from cftjax.config import BackboneConfig

BOTTLENECK = resnet.ResNetConfig(widths=(4, 8), depths=(1, 2), bottleneck=True)
BASIC = resnet.ResNetConfig(widths=(4, 8), depths=(2, 1), small_stem=True)


def randomised(config, **options):
    """A network whose every variable is drawn by NumPy, running variances above zero."""
    # Shapes only: drawing real ones layer by layer would take most of the tests' time.
    net = nnx.eval_shape(lambda: resnet.ResNet(config, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(1)
    state = nnx.state(net, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        value = rng.normal(0, 0.4, variable.get_value().shape).astype(np.float32)
        variable.set_value(jnp.asarray(np.abs(value) + 0.5 if path[-1] in ("var", "scale") else value))
    nnx.update(net, state)
    net.eval()
    return net


def images(n=2, size=17):
    return np.random.default_rng(2).normal(size=(n, size, size, 3)).astype(np.float32)


def convolve(x, layer, stride):
    """Convolution and normalisation as their definitions say, padded by half the kernel."""
    kernel = np.asarray(layer.conv.kernel.get_value())
    k = kernel.shape[0]
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    y = np.einsum("nyxcij,ijcd->nyxd", windows, kernel)
    mean, var, scale, bias = (
        np.asarray(getattr(layer.norm, name).get_value()) for name in ("mean", "var", "scale", "bias")
    )
    return (y - mean) / np.sqrt(var + 1e-5) * scale + bias


def reference(net, config, x):
    relu = lambda y: np.maximum(y, 0)  # noqa: E731
    x = relu(convolve(x, net.stem, 2))
    if not config.small_stem:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-1, -2))
    strides = [2 if stage and not index else 1 for stage, depth in enumerate(config.depths) for index in range(depth)]
    for block, stride in zip(net.blocks, strides, strict=True):
        # v1.5: a bottleneck's stride is in its 3x3 convolution.
        per_layer = (1, stride, 1) if config.bottleneck else (stride, 1)
        y = x
        for number, (layer, by) in enumerate(zip(block.layers, per_layer, strict=True)):
            y = convolve(y, layer, by)
            y = relu(y) if number < len(per_layer) - 1 else y
        x = relu(y + (x if block.shortcut is None else convolve(x, block.shortcut, stride)))
    return x


@pytest.mark.parametrize("config", [BOTTLENECK, BASIC])
def test_the_forward_pass_is_that_of_the_definition(config):
    net = randomised(config)
    expected = reference(net, config, images())
    np.testing.assert_allclose(net.features(jnp.asarray(images())), expected, rtol=2e-4, atol=2e-4)
    means, maxima = expected.mean((1, 2)), expected.max((1, 2))
    pooled = np.concatenate([means, maxima], 1) if config.small_stem else means
    np.testing.assert_allclose(net.embed(jnp.asarray(images())), pooled, rtol=2e-4, atol=2e-4)
    assert net.dim == pooled.shape[-1]


def abstract(name):
    return nnx.eval_shape(lambda: backbones.create(BackboneConfig(name), nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [("resnet18", 11_176_512, 512), ("resnet34", 21_284_672, 512), ("resnet50", 23_508_032, 2048)],
)
def test_parameters_are_as_many_as_published(name, parameters, dim):
    net = abstract(name)
    assert sum(x.size for x in jax.tree.leaves(nnx.as_pure(nnx.state(net, nnx.Param)))) == parameters
    assert net.dim == dim


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_the_table_of_weights_covers_every_variable_once(name):
    family, shape = backbones.BACKBONES[name]
    variables = [
        ".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract(name), (nnx.Param, nnx.BatchStat)))
    ]
    for table in family.weight_tables(shape):
        assert sorted(row.path for row in table.rows) == sorted(variables)
        assert len(table.names) == len(table.rows) + 2


def test_names_of_weights_are_those_of_torchvision():
    names = resnet.weight_tables(resnet.ResNetConfig.resnet50())[0].names
    # torchvision's state_dict has 320 entries, 53 of them num_batches_tracked.
    assert len(names) == 267
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer4.2.bn3.bias",
        "fc.weight",
    } <= names
    assert "layer1.1.downsample.0.weight" not in names


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"no backbone is named 'resnet51': did you mean .*resnet50"):
        backbones.create(BackboneConfig("resnet51"), nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"there are small_resnet, .*resnet152"):
        backbones.preprocessing(BackboneConfig("qqqq"))


def test_images_see_each_other_in_training_only():
    net = randomised(BASIC)
    x = jnp.asarray(images(4))
    alone = net.embed(x[:2])
    np.testing.assert_allclose(net.embed(x)[:2], alone, rtol=1e-5, atol=1e-5)
    net.train()
    assert not np.allclose(net.embed(x)[:2], net.embed(x[:2]), atol=1e-2)


def test_rematerialisation_changes_no_value_and_no_gradient():
    def loss_and_gradient(net):
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)
        params, rest = nnx.as_pure(params), nnx.as_pure(rest)
        loss = lambda params: jnp.sum(nnx.merge(graphdef, params, rest).embed(jnp.asarray(images())) ** 2)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    loss, gradient = loss_and_gradient(randomised(BASIC))
    again, gradient_again = loss_and_gradient(randomised(BASIC, remat=True))
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


def test_bfloat16_keeps_parameters_and_embeddings_in_float32():
    net, exact = randomised(BASIC, dtype=jnp.bfloat16), randomised(BASIC)
    assert {x.dtype for x in jax.tree.leaves(nnx.as_pure(nnx.state(net)))} == {jnp.dtype("float32")}
    x = jnp.asarray(images())
    assert net.features(x).dtype == jnp.bfloat16
    z, expected = net.embed(x), exact.embed(x)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, expected, atol=0.03 * float(jnp.abs(expected).max()))
