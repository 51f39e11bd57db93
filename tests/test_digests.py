import hashlib
import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from cftjax import runs, verify
from cftjax.embeddings import embed
from cftjax.runtime import checkpoints, devices, digests, storage
from cftjax.types import Embeddings, Heads

HEADS = Heads(np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2, np.float32))


@pytest.fixture
def run(tmp_path):
    """A run of two stages that are complete."""
    run = runs.create(tmp_path / "run", {"seed": 0}, ("cat", "dog"), "f1f2")
    rng = np.random.default_rng(0)
    known = rng.random((8, 2)) < 0.5
    with run.writing():
        with run.stage("embeddings/test", [], []) as stage:
            embed.save(stage.folder, Embeddings(rng.normal(size=(8, 3)).astype(np.float32), known, known))
        with run.stage("heads/final", [], [stage.key]) as stage:
            storage.write_heads(stage.folder / "heads.npz", HEADS)
        storage.write_heads(run.folder / "heads.npz", HEADS)
    return run


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    digests.forget()


def read(folder):
    """All that the commands read of such a run."""
    run = runs.Run(folder)
    found = run.embeddings("test")
    heads = [run.heads("final"), storage.read_heads(folder / "heads.npz")]
    arrays = (found.z, found.labels, found.known, *(part for each in heads for part in (each.kernel, each.bias)))
    return [np.asarray(array).tobytes() for array in arrays], run.config, run.seconds()


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]


def test_the_digest_of_a_long_file_is_that_of_its_blocks(tmp_path, monkeypatch):
    content = bytes(range(256)) * 3
    (tmp_path / "a").write_bytes(content)
    assert digests.of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(digests, "BLOCK", 100)
    digests.forget()
    blocks = [hashlib.sha256(content[i : i + 100]).digest() for i in range(0, len(content), 100)]
    assert digests.of_file(tmp_path / "a") == hashlib.sha256(b"".join(blocks)).hexdigest()


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(run, tmp_path):
    expected, rng = read(run.folder), np.random.default_rng(0)
    noticed = 0
    for path in files(run.folder):
        size = path.stat().st_size
        for place in rng.choice(size, min(size, 12), replace=False):
            copy = shutil.copytree(run.folder, tmp_path / "copy", dirs_exist_ok=True)
            flip(copy / path.relative_to(run.folder), place, int(rng.integers(8)))
            message = ""
            try:
                assert read(copy) == expected, path
            except ValueError as error:
                message = str(error)
            noticed += bool(message)
            assert not message or str(copy) in message
            # A changed space in JSON says the same.
            assert verify.verify(copy).damages or path.suffix == ".json", path
    assert noticed > 60


def test_what_is_damaged_is_named_with_what_to_delete(run, capsys, monkeypatch):
    heads = run.folder / "heads" / "final" / "heads.npz"
    flip(heads, 200)
    with pytest.raises(ValueError, match=r"heads\.npz is damaged .*: delete the folder .*heads/final, and the command"):
        run.heads("final")
    monkeypatch.setattr(sys, "argv", ["verify", str(run.folder)])
    with pytest.raises(SystemExit) as ended:
        verify.main()
    assert ended.value.code == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{heads} is damaged")
    assert last.endswith("files are what was written, 1 are not")
    shutil.rmtree(heads.parent)
    with run.writing(), run.stage("heads/final", [], []) as stage:
        storage.write_heads(stage.folder / "heads.npz", HEADS)
    verify.main()
    assert capsys.readouterr().out.endswith(", 0 are not\n")


def test_a_missing_file_is_told_by_verify(run):
    (run.folder / "heads" / "final" / "heads.npz").unlink()
    (damage,) = verify.verify(run.folder).damages
    assert "heads.npz is missing" in damage


def test_a_record_of_a_run_that_lost_its_seal_is_damaged_but_an_older_one_is_not(run):
    path = run.folder / "config.json"
    content = json.loads(path.read_bytes())
    seal = content.pop(digests.SEAL)
    path.write_text(json.dumps(content))
    assert runs.Run(run.folder).categories == ("cat", "dog")
    path.write_text(json.dumps(content | {"seam": seal}))
    with pytest.raises(ValueError, match=r"config\.json is damaged .*restore it from a copy"):
        runs.Run(run.folder)


def test_a_run_that_is_written_into_again_is_whole_again(run):
    flip(run.folder / "heads.npz", 200)
    with pytest.raises(ValueError, match=r"heads\.npz is damaged"):
        storage.read_heads(run.folder / "heads.npz")
    with runs.create(run.folder, {"seed": 0}, ("cat", "dog"), "f1f2").writing():
        storage.write_heads(run.folder / "heads.npz", HEADS)
    assert not verify.verify(run.folder).damages


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_damaged_checkpoint_is_read(tmp_path):
    folder = tmp_path / "backbone" / "state"
    tree = devices.replicate({"w": jnp.arange(600.0)}, devices.mesh())
    writer = checkpoints.Writer()
    writer.save(folder, 3, tree, {"history": 1})
    writer.wait()
    like = devices.abstract(tree, devices.replicated(devices.mesh()))
    rng = np.random.default_rng(0)
    for path in files(folder / "3"):
        before = path.read_bytes()
        if not before:
            continue
        flip(path, rng.integers(len(before)))
        for reading in (lambda: checkpoints.restore(folder, 3, like), lambda: checkpoints.metadata(folder, 3)):
            # What stands in JSON may be said in another way, and is compared all the same.
            with pytest.raises(ValueError, match=r"is damaged .*delete the folder .*3 to go on from an earlier one"):
                reading()
        path.write_bytes(before)
        digests.forget()
    assert checkpoints.metadata(folder, 3, needed=("history",)) == {"history": 1}
    with pytest.raises(ValueError, match="does not say what it holds"):
        checkpoints.metadata(folder, 3, needed=("iterator",))


def test_pieces_of_other_settings_are_not_taken_and_damaged_ones_are_refused(tmp_path):
    store = storage.FolderStore(tmp_path, "key of seed 0")
    store["a"] = {"x": np.arange(3), "y": np.array(1.5)}
    assert store["a"]["y"] == 1.5
    assert set(store["a"]) == {"x", "y"}
    assert storage.FolderStore(tmp_path, "key of seed 5").get("a") is None
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    storage.write_arrays(tmp_path / "a.npz", arrays | {"x": np.array([0, 1, 3])})
    with pytest.raises(ValueError, match=r"a\.npz is damaged .*delete it, and it is made anew"):
        store["a"]
    storage.write_arrays(tmp_path / "old.npz", {"x": np.arange(3)})
    assert store.get("old") is None
