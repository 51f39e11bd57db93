"""A small finished run of every format there has been stays readable.

`python tests/test_run_formats.py FOLDER` makes such a run with the code of the day: do so before FORMAT grows, into
tests/data/run-format-N.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cftjax
from cftjax import backbones, cli, evaluate, predict, runs
from cftjax.backbones import resnet
from cftjax.data.digits import DigitsData
from cftjax.runtime import storage
from cftjax.types import STAGES

DATA = DigitsData(num_train=64, num_validation=48, num_test=48)
FOLDERS = sorted((Path(__file__).parent / "data").glob("run-format-*"))
# What a reader does without, such as figures and states to go on from.
LEFT_OUT = ("*.png", "report/index.html", "backbone/state", "heads/*/categories", ".lock")
SMALL = resnet.ResNetConfig(widths=(4, 6), depths=(1, 1), small_stem=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "tiny", (backbones.RESNET, SMALL))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request, tmp_path):
    return Path(shutil.copytree(request.param, tmp_path / "run"))


def call(monkeypatch, main, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    main()


def test_there_is_a_run_of_every_format():
    assert [path.name for path in FOLDERS] == [f"run-format-{i + 1}" for i in range(runs.FORMAT)]


def test_everything_in_an_old_run_is_read_and_fits_together(folder):
    run, model = cftjax.open_run(folder), cftjax.load(folder)
    assert run.categories == tuple("0123456789")
    assert run.splits == ("train", "validation", "test")
    assert set(runs.LIBRARIES) < set(run.config["versions"])
    test = run.embeddings("test")
    logits = {stage: np.asarray(run.heads(stage)(test.z)) for stage in STAGES}
    reported = storage.read_json(folder / "report" / "metrics.json")["test"]
    for stage, own in logits.items():
        ap = cftjax.metrics.average_precision(own, test.labels, where=test.known)
        np.testing.assert_allclose(ap, [np.nan if x is None else x for x in reported[stage]["AP"]], atol=1e-6)
    # The weights are those that made the embeddings, and the images are still drawn as they were.
    images = DATA.load().splits["test"]
    assert run.names("test") == images.names
    seen = model(np.stack([images.image(row) for row in range(DATA.num_test)]))
    np.testing.assert_allclose(seen, run.decisions().probabilities(logits["final"]), atol=1e-5)


def test_the_commands_take_an_old_run(folder, tmp_path, monkeypatch, capsys):
    call(monkeypatch, evaluate.main, folder, "-o", tmp_path / "scores", "--resamples", 20)
    assert "mAP" in capsys.readouterr().out
    image = DATA.load().splits["test"].image(0)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    call(monkeypatch, predict.main, folder, tmp_path / "images", "-o", tmp_path / "out.csv", "--workers", 0)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


def test_a_newer_format_is_refused_with_what_to_do(folder):
    config = json.loads((folder / "config.json").read_text())
    # A newer format may have other fields altogether.
    newer = {"format": runs.FORMAT + 1, "labels": config["categories"]}
    (folder / "config.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=rf"format {runs.FORMAT + 1}, this version reads up to .*: upgrade cftjax"):
        cftjax.open_run(folder)


# Later runs have digests, which tell damage first: see test_digests.py.
@pytest.mark.parametrize("folder", FOLDERS[:1], indirect=True, ids=["run-format-1"])
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{}", r"config\.json is damaged \(format missing .*restore it"),
        ("config.json", '{"format": 1, "categories": "cat"}', r"damaged \(settings, categories, fingerprint, versions"),
        ("heads/ga/stage.json", "[]", r"ga/stage\.json is damaged \(key, .*delete the folder .*makes that stage anew"),
        ("heads/ga/stage.json", "[" * 10_000, r"stage\.json is damaged, it is not JSON .*delete the folder"),
        ("heads/ga/heads.npz", "half", r"heads\.npz is not a readable \.npz"),
        ("embeddings/test/z.npy", "half", r"z\.npy cannot be read .*delete the folder"),
    ],
)
def test_a_damaged_file_is_named_with_the_mend(folder, file, content, message):
    (folder / file).write_text(content)

    def read():
        run = cftjax.open_run(folder)
        run.seconds()
        run.heads("ga")
        run.embeddings("test")

    with pytest.raises(ValueError, match=message):
        read()


def test_other_categories_and_other_data_are_refused_with_what_differs(folder):
    config = storage.read_json(folder / "config.json")
    with pytest.raises(ValueError, match=r"begun with other categories \(0, 1, 2, 3, 4, …; now cat"):
        runs.create(folder, {}, ("cat", "dog"), config["fingerprint"])
    with pytest.raises(ValueError, match=r"other data \(labels or names in its files\): use another --workdir"):
        runs.create(folder, config["settings"], config["categories"], "another")


def test_what_a_killed_write_left_is_cleared_away_by_the_next_process_that_writes(folder):
    left = [folder / "heads" / "ga" / f".heads.npz.0123abcd{storage.PART}", folder / f".config.json.01{storage.PART}"]
    growing = folder / "embeddings" / "train" / "z.npy.part"
    for path in (*left, growing):
        path.write_bytes(b"half")
    run = cftjax.open_run(folder)
    assert all(path.exists() for path in left)
    with run.writing():
        assert not any(path.exists() for path in left)
    assert growing.exists()


def make(folder):
    """A finished run of this code's format."""
    from cftjax import train

    backbones.BACKBONES["tiny"] = (backbones.RESNET, SMALL)
    data = [f"--data.num-{name}={getattr(DATA, f'num_{name}')}" for name in ("train", "validation", "test")]
    training = ["--training.epochs=2", "--training.batch-size=32", "--backbone.name=tiny", "--embed.batch-size=48"]
    tuning = ["--ga.num-generations=50", "--ga.population-size=10", "--polish.num-steps=20", "--report.resamples=50"]
    sys.argv = ["cftjax", "--workdir", str(folder), *data, *training, *tuning]
    cli.run(train.main)
    for pattern in LEFT_OUT:
        for path in sorted(folder.rglob(pattern) if pattern.startswith("*") else folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
