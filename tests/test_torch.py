"""The adapter of PyTorch; run in an environment with torch, torchvision and timm."""

import numpy as np
import pytest

import cftjax
from cftjax.config import GAConfig, PolishConfig, TuningConfig

torch = pytest.importorskip("torch")
CONFIG = TuningConfig(
    ga=GAConfig(num_generations=4, population_size=6, dimensions=2, restarts=1), polish=PolishConfig(num_steps=20)
)
CATEGORIES = 3


def loader(n, seed, size=32):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, CATEGORIES)) < 0.4).astype(np.float32)
    images = rng.normal(size=(n, 3, size, size)).astype(np.float32) + 2 * labels[:, :, None, None]
    labels[rng.random(labels.shape) < 0.3] = np.nan
    data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)


TRAIN, VALIDATION = loader(64, 0), loader(48, 1)


def small(bias=True):
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.BatchNorm1d(12))
    return torch.nn.Sequential(body, torch.nn.Dropout(0.5), torch.nn.Linear(12, CATEGORIES, bias=bias))


def check(model, layer, tuned):
    """The model's logits are the new layer's, everything else is as it was."""
    images, _ = next(iter(VALIDATION))
    own = model.module if hasattr(model, "module") else model
    given = []
    hook = own.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        logits = own.eval()(images).numpy()
    hook.remove()
    np.testing.assert_allclose(logits, np.asarray(tuned.chosen.heads(given[0].numpy())), atol=1e-4)
    assert ((tuned.decisions.probabilities(logits) >= 0) & (tuned.decisions.probabilities(logits) <= 1)).all()


def test_the_new_layer_is_in_the_model_and_the_rest_is_as_it_was():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = cftjax.torch.fine_tune(model, TRAIN, VALIDATION, layer="2", config=CONFIG)
    assert model.training
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"2.weight", "2.bias"}
    assert set(tuned.chosen.names) != {"backbone"}
    check(model, "2", tuned)


def test_a_wrapped_model_is_tuned_by_either_name_of_its_layer():
    plain = small()
    expected = cftjax.torch.fine_tune(plain, TRAIN, VALIDATION, layer="2", config=CONFIG)
    for layer in ("2", "module.2"):
        wrapped = torch.nn.DataParallel(small())
        tuned = cftjax.torch.fine_tune(wrapped, TRAIN, VALIDATION, layer=layer, config=CONFIG)
        np.testing.assert_allclose(tuned.chosen.heads.kernel, expected.chosen.heads.kernel, atol=1e-4)
        check(wrapped, "2", tuned)


def test_a_layer_without_a_bias_gets_one():
    model = small(bias=False)
    check(model, "2", cftjax.torch.fine_tune(model, TRAIN, VALIDATION, config=CONFIG))


def test_models_of_torchvision_are_tuned():
    torchvision = pytest.importorskip("torchvision")
    for name, layer in (("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")):
        model = torchvision.models.get_model(name, num_classes=CATEGORIES)
        check(model, layer, cftjax.torch.fine_tune(model, TRAIN, VALIDATION, layer=layer, config=CONFIG))


def test_models_of_timm_say_themselves_which_layer_is_the_last():
    timm = pytest.importorskip("timm")
    for name, layer, options in (
        ("resnet18", "fc", {}),
        ("vit_tiny_patch16_224", "head", {"img_size": 32, "depth": 2}),
        ("convnext_atto", "head.fc", {}),
        # The published start of the layer scale, 1e-5, would leave an untrained class token blind to the image.
        ("vit_small_patch16_dinov3", "head", {"img_size": 32, "depth": 2, "global_pool": "token", "init_values": 1.0}),
        ("vit_base_patch16_siglip_224", "head", {"img_size": 32, "depth": 2}),
    ):
        model = timm.create_model(name, num_classes=CATEGORIES, **options)
        check(model, layer, cftjax.torch.fine_tune(model, TRAIN, VALIDATION, config=CONFIG))


def unlabelled(batches):
    return [images for images, _ in batches]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "fc"}, "no torch.nn.Linear 'fc' in the model; it has 2"),
        ({"train_loader": []}, "train: the loader is empty"),
        ({"train_loader": [(torch.zeros(4, 3, 8, 8), -torch.ones(4, 3))]}, "a label is -1: use 1, 0, and NaN"),
        ({"train_loader": [(torch.zeros(4, 3, 8, 8), torch.ones(4, 5))]}, "labels have 5 categories, and the layer 3"),
        ({"train_loader": [torch.zeros(4, 3, 8, 8)]}, r"the loader gives Tensor: give \(images, labels\)"),
        ({"model": torch.nn.Sequential(small(), torch.nn.Linear(3, 3))}, "which layer is the last"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_mend(change, message):
    arguments = {"model": small(), "train_loader": TRAIN, "validation_loader": None, "config": CONFIG} | change
    model, train, validation = (arguments.pop(name) for name in ("model", "train_loader", "validation_loader"))
    with pytest.raises(ValueError, match=message):
        cftjax.torch.fine_tune(model, train, validation, **arguments)
