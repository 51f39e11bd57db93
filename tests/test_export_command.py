import json
import subprocess
import sys

import jax.numpy as jnp
import made_run
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export as jax_export

import cftjax
from cftjax import cli, decisions, export, extras
from cftjax.config import DecideConfig
from cftjax.inference import formats
from cftjax.inference import program as programs
from cftjax.runtime import storage

FORMATS = ("stablehlo", "safetensors", "onnx")


def need(format):
    if format == "onnx":
        pytest.importorskip("jax2onnx")
        pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run.make(tmp_path_factory.mktemp("runs") / "images")


@pytest.fixture(scope="module")
def without_backbone(tmp_path_factory):
    return made_run.make(tmp_path_factory.mktemp("runs") / "embeddings", backbone=False, calibration="isotonic")


@pytest.mark.filterwarnings("default")  # what converters say is not ours
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_every_format_says_what_the_run_says(run, tmp_path, format):
    need(format)
    path, difference = export.write(run, format, tmp_path)
    assert difference < 1e-5
    images = np.random.default_rng(1).integers(0, 256, (3, made_run.SIZE, made_run.SIZE, 3), np.uint8)
    images //= np.array([1, 2, 8], np.uint8)[:, None, None, None]
    probabilities = np.asarray(formats.RUNNERS[format](path)(images))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, cftjax.load(run.folder)(images), atol=1e-5)
    assert np.ptp(probabilities, axis=0).min() > 1e-3  # else the images would not have been looked at
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["categories"] == list(made_run.CATEGORIES)
    assert described["input"] == {"name": "images", "dtype": "uint8", "shape": ["n", 16, 16, 3]}
    np.testing.assert_array_equal(described["thresholds"], run.decisions().thresholds)
    assert (tmp_path / "README.md").read_text().startswith("---\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["README.md", f"model.{format}", "model.json"])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("format", FORMATS)
def test_a_run_without_a_backbone_is_exported_from_embeddings_on(without_backbone, tmp_path, format):
    need(format)
    path, difference = export.write(without_backbone, format, tmp_path)
    assert difference < 1e-4  # its isotonic calibration has steps, beside which a logit's last bit counts
    z = without_backbone.embeddings("validation").z[:7]
    expected = without_backbone.decisions().probabilities(np.asarray(without_backbone.heads("final")(z)))
    np.testing.assert_allclose(np.asarray(formats.RUNNERS[format](path)(np.asarray(z))), expected, atol=1e-4)


ALONE = """
import json, sys
sys.modules["cftjax"] = sys.modules["flax"] = None  # importing either fails
import jax, numpy as np
with open("model.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
described = json.load(open("model.json"))
images = np.load("images.npy")
probabilities = np.asarray(program.call(images))
one = np.asarray(program.call(images[:1]))
np.testing.assert_allclose(one, probabilities[:1], atol=1e-6)
np.savez("out.npz", probabilities=probabilities, present=probabilities >= np.array(described["thresholds"]))
"""


def test_stablehlo_runs_with_jax_alone_for_any_number_of_images(run, tmp_path):
    path, _ = export.write(run, "stablehlo", tmp_path)
    images = np.random.default_rng(2).integers(0, 256, (5, made_run.SIZE, made_run.SIZE, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, check=True)
    model = cftjax.load(run.folder)
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["probabilities"], model(images), atol=1e-5)
        np.testing.assert_array_equal(out["present"], model.decide(model(images)))
    assert jax_export.deserialize(bytearray(path.read_bytes())).platforms == ("cpu", "cuda", "tpu")


def test_safetensors_hold_every_weight_by_name(run, tmp_path):
    path, _ = export.write(run, "safetensors", tmp_path)
    program = formats.read(path)
    np.testing.assert_array_equal(program.arrays["head.kernel"], run.heads("final").kernel)
    assert {name.split(".")[0] for name in program.arrays} == {"backbone", "head", "calibration"}
    assert program.arrays["backbone.stem.norm.mean"].shape == program.arrays["backbone.stem.norm.var"].shape
    assert program.description == programs.of_run(run).description


def test_a_file_that_says_something_else_is_not_kept(run, tmp_path, monkeypatch):
    def changed(program):
        arrays = program.arrays | {"head.bias": program.arrays["head.bias"] + np.float32(1e-3)}
        return formats.to_safetensors(programs.Program(arrays, program.description))

    monkeypatch.setitem(formats.WRITERS, "safetensors", changed)
    with pytest.raises(ValueError, match=r"probabilities of the exported program differ .* nothing was written"):
        export.write(run, "safetensors", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_probability_that_is_not_a_number_is_a_difference(without_backbone):
    expected = export.expectation(without_backbone)
    found = expected.decisions.probabilities(expected.logits)
    assert export.largest_difference(found, expected) == 0
    found[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 120 probabilities"):
        export.largest_difference(found, expected)


@settings(max_examples=30, deadline=None)  # the first one compiles
@given(
    seed=st.integers(0, 10**6),
    calibration=st.sampled_from(["none", "platt", "temperature", "isotonic"]),
    negative_only=st.booleans(),
)
def test_calibration_in_the_program_is_that_of_the_run(seed, calibration, negative_only):
    rng = np.random.default_rng(seed)
    logits = (4 * rng.normal(size=(60, 3))).astype(np.float32)
    labels = logits + 4 * rng.normal(size=logits.shape) > 0
    if negative_only:
        labels[:, 1] = False  # cannot be calibrated
    config = DecideConfig(calibration=calibration)
    fitted = decisions.fit(
        logits, labels, np.ones_like(labels), config, categories=made_run.CATEGORIES, split="validation"
    )
    # Among the knots, between them, and far outside.
    asked = np.concatenate([logits, logits[:5] + np.float32(0.3), np.full((1, 3), -90, np.float32)])
    found = np.asarray(programs.calibrated(jnp.asarray(asked), programs.calibration_arrays(fitted)))
    export.largest_difference(found.astype(np.float64), export.Expectation(asked, asked, fitted))


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_that_is_not_finished_is_refused(run, tmp_path, format):
    made_run.make(tmp_path / "begun", backbone=False)
    (tmp_path / "begun" / "decisions" / "decisions.json").unlink()
    with pytest.raises(FileNotFoundError, match="no thresholds and calibration yet: run the command"):
        export.write(cftjax.open_run(tmp_path / "begun"), format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_calls_are_refused_in_one_line(run, tmp_path, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["cftjax.export", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.run(export.main)
        return stopped.value.code, capsys.readouterr().err

    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    code, said = call(tmp_path / "nothing")
    assert code == 1
    assert said == (
        f"cftjax: error: {tmp_path / 'nothing'} is not a run (it has no config.json); "
        "give the --workdir of a training\n"
    )
    (tmp_path / "file").write_text("")
    code, said = call(run.folder, "--output", tmp_path / "file")
    assert (code, said.count("\n")) == (1, 1)
    assert "--output" in said
    assert "is a file; give a folder" in said
    code, said = call(run.folder, "--format", "pickle")
    assert code == 2
    assert "stablehlo" in said
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    code, said = call(run.folder, "--format", "onnx", "--output", tmp_path / "onnx")
    assert (code, said.count("\n")) == (1, 1)
    assert extras.install("onnx") in said
    assert not (tmp_path / "onnx" / "model.onnx").exists()


def test_other_safetensors_are_no_exported_run(tmp_path):
    storage.write_tensors(tmp_path / "other.safetensors", {"weight": np.zeros(2)})
    with pytest.raises(ValueError, match=r"other\.safetensors is no exported run"):
        formats.read(tmp_path / "other.safetensors")
