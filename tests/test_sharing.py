import dataclasses
import os

import numpy as np
import pytest

from cftjax import runs, types
from cftjax.config import Config, LabelsConfig
from cftjax.embeddings import embed
from cftjax.runtime import digests, storage
from cftjax.stages import sharing

SETTINGS = [{"backbone": "tiny", "batch_size": 4}]
NAMES = ["a.png", "b.png", "c.png"]
Z = np.arange(6, dtype=np.float32).reshape(3, 2)


def labels(known):
    known = np.array(known, bool)[:, None]
    return types.Labels(known.copy(), known, np.zeros_like(known))


def records(known=(True, True, False), names=NAMES):
    return types.Records(lambda row: pytest.fail("opened an image"), labels(known), list(names), np.array([5, 5, 6]))


def begun(folder, data="photographs", preprocessing="224 pixels", known_proportion=0.1):
    config = Config(data=data, labels=LabelsConfig(hide="uniform", known_proportion=known_proportion))
    # The labels that are hidden are part of a fingerprint.
    return runs.create(folder, config, ("cat",), f"hidden {known_proportion}", preprocessing)


def embedded(folder, unopened=(), **settings):
    """A run whose train split is embedded."""
    run = begun(folder, **settings)
    with run.stage("embeddings/train", SETTINGS, ["hidden"]) as stage:
        embed.describe(stage.folder, records(), np.array(unopened, int))
        np.save(stage.folder / "z.npy", Z)
    return run


def found(tmp_path, other, settings=SETTINGS, skip=False, given=None, **kept):
    run = begun(tmp_path / "own", known_proportion=0.5, **kept)
    return sharing.find(run, "train", settings, given or records((False, True, True)), [tmp_path / "none", other], skip)


def test_a_run_with_other_labels_gives_its_embeddings(tmp_path):
    other = embedded(tmp_path / "other").folder
    assert found(tmp_path, other) == other / "embeddings" / "train"


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": [{"backbone": "tiny", "batch_size": 8}]},
        {"given": records(names=["a.png", "b.png", "d.png"])},
        {"given": records(names=["b.png", "a.png", "c.png"])},
        {"data": "other photographs"},
        {"preprocessing": "96 pixels"},
    ],
)
def test_a_run_of_other_images_or_settings_gives_none(tmp_path, changes):
    assert found(tmp_path, embedded(tmp_path / "other").folder, **changes) is None


def test_a_run_that_is_not_done_gives_none(tmp_path):
    run = embedded(tmp_path / "other")
    record = run.folder / "embeddings" / "train" / "stage.json"
    storage.write_json(record, digests.sealed(runs.stage_record(record) | {"complete": False}))
    assert found(tmp_path, run.folder) is None


def test_blank_rows_are_taken_only_where_images_may_be_left_out(tmp_path):
    other = embedded(tmp_path / "other", unopened=[1]).folder
    assert found(tmp_path, other) is None
    assert found(tmp_path, other, skip=True) is not None


@pytest.mark.parametrize("links", [True, False])
def test_what_is_taken_has_labels_of_its_own_and_outlives_the_other_run(tmp_path, monkeypatch, links, capsys):
    source = embedded(tmp_path / "other", unopened=[1]).folder / "embeddings" / "train"
    folder = tmp_path / "own"
    folder.mkdir()
    # Of an embedding that was under way.
    for name in (embed.PART, embed.MARKER):
        (folder / name).write_text("half")
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("not on this file system")))
    sharing.take(source, records((False, True, True)), folder)
    assert os.path.samefile(source / "z.npy", folder / "z.npy") == links
    assert "b.png" in capsys.readouterr().out
    for file in source.iterdir():
        file.unlink()
    taken = embed.load(folder)
    np.testing.assert_array_equal(taken.z, Z)
    # Nothing is known of an image that could not be opened.
    np.testing.assert_array_equal(taken.known[:, 0], [False, False, True])
    np.testing.assert_array_equal(taken.groups, [5, 5, 6])
    assert taken.unopened == ("b.png",)
    assert embed.load_names(folder) == NAMES
    assert not {embed.PART, embed.MARKER} & {file.name for file in folder.iterdir()}


def test_embedding_anew_leaves_what_was_taken_alone(tmp_path):
    source = embedded(tmp_path / "other").folder / "embeddings" / "train"
    folder = tmp_path / "own"
    folder.mkdir()
    sharing.take(source, records(), folder)
    with embed._append(source / embed.PART, (3, 2), np.dtype(np.float32)) as file:
        file.write(np.zeros((3, 2), np.float32).tobytes())
    (source / embed.PART).replace(source / "z.npy")
    np.testing.assert_array_equal(embed.load(folder).z, Z)


def test_settings_of_a_run_are_dataclasses_or_plain(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        backbone: str = "tiny"
        batch_size: int = 4

    other = embedded(tmp_path / "other").folder
    assert found(tmp_path, other, settings=[Settings()]) is not None
