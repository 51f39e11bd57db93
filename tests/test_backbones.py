"""One network of reduced size per family: torch's logits, options and tables."""

import collections
import json
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import draw, images
from flax import nnx
from scipy import special
from small_networks import SMALL, golden, same_variables, small

from cftjax import backbones
from cftjax.backbones import layers, pretrained, transformer
from cftjax.config import BackboneConfig

LAYERS = "encoder.layers.encoder_layer_"
# Arrays of which several variables are made.
CUT = ("qkv.bias", "in_proj_weight", "in_proj_bias", "pos_embed", "position_embeddings")


@pytest.mark.parametrize("name", SMALL)
def test_the_logits_are_those_of_torch(name):
    net, heads = small(name)
    content = golden(name)
    expected = np.asarray(content["logits"])
    x = jnp.asarray(images(content["size"]))
    features, z = nnx.jit(lambda net, x: (net.features(x), net.embed(x)))(net, x)
    np.testing.assert_allclose(heads(z), expected, atol=1e-5 * np.abs(expected).max())
    assert z.shape == (2, net.dim)
    assert features.ndim == 4
    if net.pool is not None:
        # What a heat map shows adds up to what the head sees.
        np.testing.assert_allclose(np.mean(features, (1, 2)), z, atol=1e-5 * float(jnp.abs(z).max()))


@pytest.mark.parametrize("name", SMALL)
def test_programs_for_any_number_of_images_can_be_exported(name):
    family, config = SMALL[name]
    net = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0)))
    net.eval()
    n, size = jax.export.symbolic_shape("n")[0], golden(name)["size"]
    z = nnx.eval_shape(lambda net, x: net.embed(x), net, jax.ShapeDtypeStruct((n, size, size, 3), jnp.float32))
    assert z.shape == (n, net.dim)


@pytest.mark.parametrize("name", ["densenet", "dinov3"])
def test_rematerialisation_changes_no_gradient(name):
    def gradient(net):
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)
        params, rest = nnx.as_pure(params), nnx.as_pure(rest)
        x = jnp.asarray(images(golden(name)["size"]))
        return jax.grad(lambda params: jnp.mean(nnx.merge(graphdef, params, rest).embed(x) ** 2)), params

    plain, params = gradient(small(name)[0])
    again, _ = gradient(small(name, remat=True)[0])
    both = jax.jit(lambda params: (plain(params), again(params)))(params)
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))
        assert np.abs(a).max() > 0


@pytest.mark.parametrize("name", SMALL)
def test_every_table_of_names_covers_every_variable_once(name):
    family, config = SMALL[name]
    net = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0)))
    variables = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(net))]
    for table in family.weight_tables(config):
        assert sorted([*(row.path for row in table.rows), *table.zeros]) == sorted(variables)
        uses = collections.Counter(name for row in table.rows for name in (row.name, *row.more))
        assert all(name.endswith(CUT) for name, times in uses.items() if times > 1)
        assert len(table.names) == len(uses) + 2


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [
        ("densenet121", 6_953_856, 1024),
        ("efficientnet_b0", 4_007_548, 1280),
        ("convnext_tiny", 27_820_128, 768),
        ("vit_base", 85_798_656, 768),
        ("dinov3_small", 21_596_160, 384),
        ("siglip2_base_patch16_224", 92_884_224, 768),
    ],
)
def test_parameters_are_as_many_as_published(name, parameters, dim):
    net = nnx.eval_shape(lambda: backbones.create(BackboneConfig(name), nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.as_pure(nnx.state(net, nnx.Param)))) == parameters
    assert net.dim == dim


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("densenet", [(".norm1.", ".norm.1."), (".conv1.", ".conv.1."), (".norm2.", ".norm.2."),
                      (".conv2.", ".conv.2.")]),
        ("vit", [("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"), ("blocks.", LAYERS),
                 ("patch_embed.proj", "conv_proj"), (".norm1", ".ln_1"), (".norm2", ".ln_2"),
                 ("attn.qkv.weight", "self_attention.in_proj_weight"), ("attn.qkv.bias", "self_attention.in_proj_bias"),
                 ("attn.proj", "self_attention.out_proj"), ("mlp.fc1", "mlp.linear_1"), ("mlp.fc2", "mlp.linear_2")]),
    ],
)  # fmt: skip
def test_names_that_torchvision_changes_while_loading_its_files_are_known(name, renamed):
    family, config = SMALL[name]
    arrays = {array: draw(array, shape) for array, shape in golden(name)["shapes"].items()}
    old = {}
    for array, value in arrays.items():
        array = {"norm.weight": "encoder.ln.weight", "norm.bias": "encoder.ln.bias"}.get(array, array)
        array = f"heads.{array}" if array.startswith("head.") else array
        for now, before in renamed:
            array = array.replace(now, before)
        old[array] = value
    net = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0)))
    assert pretrained.apply(net, old, pretrained.fitting(old, family.weight_tables(config))) is not None
    same_variables(net, small(name)[0])


def test_attention_over_padded_tokens_is_attention_over_the_tokens():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 13, 3, 8))
    padded = transformer.padded_attention(query, key, value, implementation="xla")
    np.testing.assert_allclose(padded, jax.nn.dot_product_attention(query, key, value), atol=1e-6)


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "served"),
    [
        ("gpu", "9.0", jnp.bfloat16, True),
        ("gpu", "9.0", jnp.float32, False),
        ("gpu", "7.5", jnp.bfloat16, False),
        ("gpu", "gfx942", jnp.bfloat16, False),
        ("cpu", "9.0", jnp.bfloat16, False),
    ],
)
def test_flash_attention_is_for_half_precision_on_cards_that_have_it(backend, capability, dtype, served, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    assert transformer.has_flash_attention(jnp.dtype(dtype)) is served


@pytest.mark.parametrize("name", ["vit", "dinov3", "siglip"])
def test_images_that_are_not_whole_patches_are_refused_with_a_size_that_is(name):
    net, _ = small(name)
    with pytest.raises(ValueError, match=r"30 x 40 pixels are not whole patches of 8 x 8: use --data\.image-size 32"):
        net.embed(jnp.zeros((1, 30, 40, 3)))


@pytest.mark.parametrize("name", ["vit", "dinov3", "siglip"])
def test_a_vision_transformer_takes_images_that_are_not_square(name):
    net, _ = small(name)
    features = nnx.eval_shape(lambda net, x: net.features(x), net, jnp.zeros((1, 32, 48, 3)))
    assert features.shape == (1, 4, 6, 16)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 5e-3)])
def test_gelu_is_the_value_times_the_share_of_the_normal_distribution_below_it(dtype, tolerance):
    x = jnp.linspace(-12, 12, 4001).astype(dtype)
    y = layers.gelu(x)
    assert y.dtype == dtype
    exact = np.asarray(x, np.float64) * special.ndtr(np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=tolerance, atol=tolerance)


def test_pooling_means_what_it_says():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32))
    mean, maximum = np.mean(x, (1, 2)), np.max(x, (1, 2))
    np.testing.assert_allclose(layers.Pool("mean", 4)(x), mean, atol=1e-6)
    np.testing.assert_array_equal(layers.Pool("max", 4)(x), maximum)
    np.testing.assert_allclose(layers.Pool("mean_max", 4)(x), np.concatenate([mean, maximum], 1), atol=1e-6)
    attention = layers.Pool("attention", 4)
    np.testing.assert_allclose(attention(x), mean, atol=1e-6)
    attention.query.set_value(jnp.asarray([0.0, 1e3, 0.0, 0.0]))
    # All attention on the position whose second channel is largest.
    where = np.asarray(x)[..., 1].reshape(2, -1).argmax(1)
    np.testing.assert_allclose(attention(x), np.asarray(x).reshape(2, -1, 4)[[0, 1], where], atol=1e-6)


@pytest.mark.parametrize("name", ["densenet", "vit", "dinov3", "siglip"])
def test_weights_fit_whatever_the_pooling(name):
    net, heads = small(name, pooling="attention")
    assert heads is not None
    assert net.pool.query.get_value().shape == (net.dim,)
    assert small(name, pooling="mean_max")[0].dim == 2 * net.dim


def test_preprocessing_is_that_of_the_library_whose_names_the_weights_have(tmp_path):
    for library, key in {"timm": "cls_token", "torchvision": "class_token"}.items():
        np.savez(tmp_path / f"{library}.npz", **{key: np.zeros((1, 1, 384))})
    of = lambda library: backbones.preprocessing(  # noqa: E731
        BackboneConfig("vit_small", weights=str(tmp_path / f"{library}.npz"))
    )
    assert of("timm").mean == (0.5, 0.5, 0.5)
    assert of("torchvision") == backbones.preprocessing(BackboneConfig("vit_small"))
    assert of("torchvision").mean == (0.485, 0.456, 0.406)
    (tmp_path / "config.json").write_text(
        '{"pretrained_cfg": {"input_size": [3, 288, 288], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}}'
    )
    assert of("timm").image_size == 288
    assert of("torchvision").mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("name", "architecture", "mend"),
    [
        ("efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnet_b0"),
        ("tf_efficientnet_v2_s", "efficientnet_v2_s", "efficientnet_v2_s"),
        ("efficientnet_lite0", "efficientnet_lite0", "timm_efficientnet_lite0"),
    ],
)
def test_weights_trained_with_another_padding_are_refused(name, architecture, mend, tmp_path):
    np.savez(tmp_path / "weights.npz", x=np.zeros(1))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    network = nnx.eval_shape(lambda: backbones.create(BackboneConfig("small_resnet"), nnx.Rngs(0)))
    with pytest.raises(ValueError, match=f"weights of {architecture}: use --backbone.name {mend}"):
        backbones.load_weights(network, BackboneConfig(name, weights=str(tmp_path / "weights.npz")))


@pytest.mark.parametrize("name", ["convnext", "vit", "dinov3", "siglip"])
def test_bfloat16_keeps_parameters_and_embeddings_in_float32(name):
    net, heads = small(name, dtype=jnp.bfloat16)
    expected = np.asarray(golden(name)["logits"])
    x = jnp.asarray(images(golden(name)["size"]))
    features, z = nnx.jit(lambda net, x: (net.features(x), net.embed(x)))(net, x)
    assert features.dtype == jnp.bfloat16
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(heads(z), expected, atol=0.05 * np.abs(expected).max())
