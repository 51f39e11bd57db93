"""Weights by the names of DINO's authors, of files that hold more than the network, and what lies beside them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import draw
from flax import nnx
from small_networks import SMALL, golden, same_variables, small

from cftjax import backbones
from cftjax.backbones import densenet, dinov3, pretrained
from cftjax.config import BackboneConfig

RAD_DINO = {
    "crop_size": {"height": 518, "width": 518}, "do_center_crop": True, "size": {"shortest_edge": 518}, "resample": 3,
    "image_mean": [0.5307, 0.5307, 0.5307], "image_std": [0.2583, 0.2583, 0.2583],
}  # fmt: skip
SIGLIP2 = {
    "do_center_crop": None, "size": {"height": 384, "width": 384}, "resample": 2,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip


def drawn(name):
    """The arrays of a small network, by the names of the library whose logits are in tests/golden."""
    return {array: draw(array, shape) for array, shape in golden(name)["shapes"].items()}


def loaded(name, arrays, tmp_path):
    """The small network with the weights of a file of these arrays."""
    np.savez(tmp_path / "weights.npz", **arrays)
    family, config = SMALL[name]
    net = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0)))
    pretrained.load_into(net, tmp_path / "weights.npz", family.weight_tables(config))
    return net


def renamed(arrays, names):
    """The same arrays where each part of a name is replaced."""
    result = {}
    for name, array in arrays.items():
        for now, then in names.items():
            name = name.replace(now, then)
        result[name] = array
    return result


def test_dinov3_is_read_by_its_authors_names_and_the_masked_bias_of_the_keys_is_left_out(tmp_path):
    arrays = renamed(
        drawn("dinov3_gated"),
        {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "fc1_g": "w1", "fc1_x": "w2",
         "fc2": "w3"},
    )  # fmt: skip
    for i in range(2):
        query, value = arrays.pop(f"blocks.{i}.attn.q_bias"), arrays.pop(f"blocks.{i}.attn.v_bias")
        arrays[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([query, 100 + 0 * query, value])
        arrays[f"blocks.{i}.attn.qkv.bias_mask"] = np.repeat(np.array([1, 0, 1], np.float32), len(query))
    arrays |= {"mask_token": np.zeros((1, 16)), "rope_embed.periods": np.zeros(2)}
    same_variables(loaded("dinov3_gated", arrays, tmp_path), small("dinov3_gated")[0])


def test_timms_dinov3_without_biases_has_biases_of_zero(tmp_path):
    arrays = {name: array for name, array in drawn("dinov3_gated").items() if not name.endswith(("q_bias", "v_bias"))}
    net, expected = loaded("dinov3_gated", arrays, tmp_path), small("dinov3_gated")[0]
    for block in expected.blocks:
        for bias in (block.attention.query_bias, block.attention.value_bias):
            assert np.abs(bias.get_value()).max() > 0
            bias.set_value(0 * bias.get_value())
    same_variables(net, expected)


def test_dinov2_with_registers_is_read_by_its_authors_names(tmp_path):
    arrays = drawn("dinov2")
    positions, first = arrays["pos_embed"], draw("first", (1, 1, 16))
    arrays |= {"pos_embed": np.concatenate([first, positions], axis=1), "cls_token": arrays["cls_token"] - first}
    arrays |= {"register_tokens": arrays.pop("reg_token"), "mask_token": np.zeros((1, 16))}
    net, expected = loaded("dinov2", arrays, tmp_path), small("dinov2")[0]
    np.testing.assert_allclose(net.class_token.get_value(), expected.class_token.get_value(), atol=1e-6)
    net.class_token.set_value(expected.class_token.get_value())
    same_variables(net, expected)


def test_convnext_is_read_by_its_authors_names(tmp_path):
    arrays = renamed(
        {f".{name}": array for name, array in drawn("convnext_transformers").items()},
        {"stages.0.downsample_layers": "downsample_layers.0", "stages.1.downsample_layers": "downsample_layers.1",
         "stages.2.downsample_layers": "downsample_layers.2", "stages.3.downsample_layers": "downsample_layers.3",
         ".layers.": ".", "layer_norm": "norm", "depthwise_conv": "dwconv", "pointwise_conv": "pwconv",
         ".classifier": ".head"},
    )  # fmt: skip
    arrays = {name.removeprefix("."): array for name, array in arrays.items()}
    arrays |= {"norms.3.weight": arrays["norm.weight"], "norms.3.bias": arrays["norm.bias"]}
    same_variables(loaded("convnext_transformers", arrays, tmp_path), small("convnext_transformers")[0])


def test_the_network_of_texts_beside_siglips_is_left_out(tmp_path):
    arrays = {f"vision_model.{name.removeprefix('vision_model.')}": x for name, x in drawn("siglip").items()}
    arrays |= {"text_model.encoder.layers.0.layer_norm1.weight": np.ones(3), "logit_scale": np.ones(1)}
    same_variables(loaded("siglip", arrays, tmp_path), small("siglip")[0])


@pytest.mark.parametrize(
    ("beside", "size", "mean", "interpolation"),
    [(RAD_DINO, 518, (0.5307, 0.5307, 0.5307), "bicubic"), (SIGLIP2, 384, (0.5, 0.5, 0.5), "bilinear")],
)
def test_what_lies_beside_weights_of_transformers_says_what_images_go_through(
    beside, size, mean, interpolation, tmp_path
):
    np.savez(tmp_path / "weights.npz", x=np.zeros(1))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Dinov2Model"], "image_size": 518}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(beside))
    config = BackboneConfig("dinov2_base", weights=str(tmp_path / "weights.npz"))
    used = backbones.preprocessing(config)
    assert (used.image_size, used.mean, used.interpolation, used.resize) == (size, mean, interpolation, "squash")


def file_shapes(name):
    """Names and shapes of a published architecture's weights, from our variables."""
    family, shape = backbones.BACKBONES[name]
    net = nnx.eval_shape(lambda: backbones.create(BackboneConfig(name), nnx.Rngs(0)))
    ours = {".".join(map(str, path)): x.get_value().shape for path, x in nnx.to_flat_state(nnx.state(net))}
    turned = {
        pretrained.convolution: lambda s: (s[3], s[2], s[0], s[1]),
        pretrained.linear: lambda s: s[::-1],
        pretrained.first: lambda s: (1, *s),
        pretrained.unchanged: lambda s: s,
    }
    return {row.name: turned[row.layout](ours[row.path]) for row in family.weight_tables(shape)[-1].rows}


@pytest.mark.parametrize("name", ["xrv_densenet121", "vit_base"])
def test_of_architectures_with_the_same_names_the_one_whose_shapes_fit_is_meant(name):
    assert backbones.nearest(file_shapes(name)) == name


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("RAD-DINO", "--backbone.name dinov2_base --backbone.weights hf:microsoft/rad-dino"),
        ("dinov3_convnext_tiny", "--backbone.name convnext_tiny"),
        ("torchxrayvision", "--backbone.name xrv_densenet121"),
    ],
)
def test_weights_with_a_name_of_their_own_are_answered_by_what_to_type(name, option):
    with pytest.raises(ValueError, match=f"no backbone is named '{name}'.*{option}"):
        backbones.preprocessing(BackboneConfig(name))


def test_patches_meet_by_how_far_apart_they_are():
    rows, columns, channels = 5, 7, 16
    turn = dinov3.rotation(rows, columns, channels)
    query, key = (np.float32(np.random.default_rng(i).normal(size=channels)) for i in range(2))
    turned = [
        dinov3.rotated(jnp.tile(x, (1, rows * columns, 1, 1)), turn, 0).reshape(rows, columns, channels)
        for x in (query, key)
    ]
    products = np.einsum("abk,cdk->abcd", *map(np.asarray, turned))
    np.testing.assert_allclose(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], atol=1e-4)
    assert np.abs(products[0, 0] - products[0, 0, 0, 0]).max() > 0.1


def test_a_radiograph_reaches_torchxrayvisions_network_as_one_channel_between_minus_and_plus_1024():
    shape = densenet.DenseNetConfig().xrv()
    ends = shape.preprocessing.normalise(np.array([0, 255], np.uint8).reshape(1, 2, 1).repeat(3, axis=2))
    np.testing.assert_allclose(ends[0, :, 0], [-1024, 1024], rtol=1e-6)
    net, _ = small("densenet_xrv")
    image = np.random.default_rng(0).normal(size=(1, 33, 33, 3)).astype(np.float32)
    grey = image.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    np.testing.assert_allclose(net.embed(jnp.asarray(image)), net.embed(jnp.asarray(grey)), rtol=1e-4, atol=1e-6)
