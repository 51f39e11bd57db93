import json
import sys

import fake_hub
import made_run
import numpy as np
import pytest
import safetensors.numpy
import yaml
from PIL import Image

import cftjax
from cftjax import cli, predict, push
from cftjax.inference import packed
from cftjax.report import card
from cftjax.runtime import digests, storage

pytest.importorskip("huggingface_hub")
# The hub's library opens connections that it closes when it is collected.
pytestmark = pytest.mark.filterwarnings("default")

NAME = "someone/digits"
UPLOADED = {".digests.json", "README.md", "decisions.json", "model.json", "model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run.make(tmp_path_factory.mktemp("runs") / "my secret run")


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(1).integers(0, 256, (5, 20, 24, 3), np.uint8))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and an environment that knows no other one: its library reads that when it is imported."""
    with fake_hub.served() as (hub, address):
        environment = {"HF_ENDPOINT": address, "HF_HOME": tmp_path / "home", "HF_TOKEN": fake_hub.TOKEN}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": 1, "HF_HUB_DISABLE_TELEMETRY": 1}
        for key, value in environment.items():
            monkeypatch.setenv(key, str(value))
        imported_anew(monkeypatch)
        yield hub


def imported_anew(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)


def call(monkeypatch, main, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    main()


def message(monkeypatch, capsys, main, *words):
    """What a command that refuses says on its one line."""
    monkeypatch.setattr(sys, "argv", ["cftjax", *map(str, words)])
    with pytest.raises(SystemExit):
        cli.run(main)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cftjax")]
    (line,) = said
    assert len(line) < 400
    return line


def test_what_is_pushed_comes_back_and_says_the_same_to_the_bit(run, images, hub, monkeypatch, capsys):
    call(monkeypatch, push.main, run.folder, NAME)
    assert set(hub.files(NAME, "main")) == UPLOADED
    assert f"cftjax predict hf:{NAME} IMAGES" in capsys.readouterr().out
    model, own = cftjax.load(f"hf:{NAME}"), cftjax.load(run.folder)
    np.testing.assert_array_equal(model(images), own(images))
    np.testing.assert_array_equal(model.decide(model(images)), own.decide(own(images)))
    np.testing.assert_array_equal(model.heatmaps(images), own.heatmaps(images))
    assert (model.categories, model.preprocessing, model.batch_size) == (
        own.categories,
        own.preprocessing,
        own.batch_size,
    )
    looking = (each.looking(["mirror", "shift"]) for each in (model, own))
    np.testing.assert_array_equal(*(each(images) for each in looking))


def test_predict_takes_a_repository_in_the_place_of_a_run(run, images, hub, tmp_path, monkeypatch):
    call(monkeypatch, push.main, run.folder, NAME, "--revision", "second")
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    tables = []
    for where in (run.folder, f"hf:{NAME}@second"):
        call(monkeypatch, predict.main, where, tmp_path / "*.png", "-o", tmp_path / "out.csv", "--overwrite")
        tables.append((tmp_path / "out.csv").read_bytes())
    assert tables[0] == tables[1]
    assert hub.files(NAME, "main") == {}


def test_nothing_of_the_data_is_pushed(run, hub, monkeypatch):
    call(monkeypatch, push.main, run.folder, NAME)
    files = hub.files(NAME, "main")
    whole = b"".join(files.values())
    for word in (str(run.folder.parent), "my secret run", "f1f2f3"):
        assert word.encode() not in whole
    weights = safetensors.numpy.load(files["model.safetensors"])
    assert {name.partition(".")[0] for name in weights} == {"backbone", "head", "calibration"}
    assert not any(content.startswith((b"\x80", b"PK")) for content in files.values())  # no pickle, no archive


def test_the_card_on_the_hub_says_how_it_is_used_there(run, hub, monkeypatch):
    import huggingface_hub

    call(monkeypatch, push.main, run.folder, NAME)
    text = hub.files(NAME, "main")["README.md"].decode()
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("cftjax", "image-classification")
    assert yaml.safe_load(text.split("---\n")[1])["tags"][0] == "jax"
    assert f'model = cftjax.load("hf:{NAME}")' in text
    assert "\n# digits\n" in text
    assert "RUN" not in text.replace("The run's", "")


def test_a_dry_run_shows_the_files_and_asks_nobody(run, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    call(monkeypatch, push.main, run.folder, NAME, "--dry-run")
    shown = capsys.readouterr().out
    assert all(name in shown for name in UPLOADED)
    assert "Nothing was uploaded" in shown
    assert hub.asked == []


def test_a_run_without_a_backbone_is_pushed_as_a_last_layer(hub, tmp_path, monkeypatch):
    made = made_run.make(tmp_path / "heads", backbone=False)
    heads = made.heads("final")
    storage.write_tensors(made.folder / "heads.safetensors", {"weight": heads.kernel, "bias": heads.bias})
    call(monkeypatch, push.main, made.folder, NAME)
    files = hub.files(NAME, "main")
    assert set(files) == {*UPLOADED, "heads.safetensors"}
    np.testing.assert_array_equal(safetensors.numpy.load(files["heads.safetensors"])["weight"], heads.kernel)
    assert f'hf_hub_download("{NAME}", "heads.safetensors")' in card.text(made, f"hf:{NAME}")
    with pytest.raises(ValueError, match="no backbone to see images with"):
        cftjax.load(f"hf:{NAME}")


def test_private_means_private(run, images, hub, tmp_path, monkeypatch, capsys):
    hub.add("someone/public", {})
    told = message(monkeypatch, capsys, push.main, run.folder, "someone/public", "--private")
    assert "hf:someone/public is there already, and public: nothing was uploaded" in told
    assert hub.files("someone/public", "main") == {}
    call(monkeypatch, push.main, run.folder, NAME, "--private")
    assert hub.repositories[NAME]["private"]
    assert cftjax.load(f"hf:{NAME}")(images).shape == (5, 3)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "of somebody else"))
    imported_anew(monkeypatch)
    with pytest.raises(ValueError, match=r"the hub has no hf:someone/digits, or shows it to its owner alone: log in"):
        cftjax.load(f"hf:{NAME}")


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("", "the hub takes nothing without a token: log in first (hf auth login), or set HF_TOKEN"),
        ("wrong", "the hub does not know the token"),
        (fake_hub.READ_ONLY, "the token may not write there"),
    ],
)
def test_a_token_that_will_not_do_is_said(run, hub, monkeypatch, capsys, token, told):
    monkeypatch.setenv("HF_TOKEN", token)
    imported_anew(monkeypatch)
    assert told in message(monkeypatch, capsys, push.main, run.folder, NAME)
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["digits", "a/b/c", "a/..", "../a", "a b/c", "a/b.git", "", "a/\x1b[31m"])
def test_what_is_no_name_of_a_repository_is_refused(run, hub, monkeypatch, capsys, name):
    told = message(monkeypatch, capsys, push.main, run.folder, name)
    assert "is no name of a repository: give USER/NAME" in told
    assert "\x1b" not in told


def test_what_is_no_run_or_unfinished_is_refused(hub, tmp_path, monkeypatch, capsys):
    assert "is not a run" in message(monkeypatch, capsys, push.main, tmp_path, NAME)
    made = made_run.make(tmp_path / "begun")
    (made.folder / "decisions" / "decisions.json").unlink()
    assert "no thresholds and calibration yet" in message(monkeypatch, capsys, push.main, made.folder, NAME)
    assert "this needs a whole run" in message(monkeypatch, capsys, push.main, "hf:a/b", NAME)
    assert hub.repositories == {}


def test_what_is_not_there_is_said(run, hub):
    hub.add("someone/else", {"README.md": b"hello", "config.json": b"{}"})
    with pytest.raises(ValueError, match=r"the hub has no hf:someone/nothing"):
        cftjax.load("hf:someone/nothing")
    with pytest.raises(ValueError, match=r"hf:someone/else@later: there is no such branch, tag or commit"):
        cftjax.load("hf:someone/else@later")
    with pytest.raises(ValueError, match=r"hf:someone/else is no run of cftjax: it has no \.digests\.json"):
        cftjax.load("hf:someone/else")


def test_what_was_downloaded_once_is_there_without_the_hub(run, images, hub, monkeypatch):
    call(monkeypatch, push.main, run.folder, NAME)
    there = cftjax.load(f"hf:{NAME}")(images)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    imported_anew(monkeypatch)
    np.testing.assert_array_equal(cftjax.load(f"hf:{NAME}")(images), there)
    with pytest.raises(ValueError, match=r"hf:someone/other was not downloaded before, and the hub cannot be reached"):
        cftjax.load("hf:someone/other")


def test_a_hub_that_is_not_there_is_said(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    imported_anew(monkeypatch)
    assert "cannot be reached" in message(monkeypatch, capsys, push.main, run.folder, NAME)
    with pytest.raises(ValueError, match="cannot be reached"):
        cftjax.load(f"hf:{NAME}")


def test_half_a_download_is_named_and_mended_by_the_next(run, images, hub, tmp_path, monkeypatch):
    call(monkeypatch, push.main, run.folder, NAME)
    hub.break_after = 2000  # of the weights, the table of decisions and the card no more than that
    with pytest.raises(ValueError, match=r"hf:someone/digits"):
        cftjax.load(f"hf:{NAME}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    imported_anew(monkeypatch)
    with pytest.raises(ValueError, match=r"is half there \(README\.md is missing\)|was not downloaded before"):
        cftjax.load(f"hf:{NAME}")
    hub.break_after = None
    monkeypatch.delenv("HF_HUB_OFFLINE")
    imported_anew(monkeypatch)
    np.testing.assert_array_equal(cftjax.load(f"hf:{NAME}")(images), cftjax.load(run.folder)(images))


def test_damage_is_noticed(run, images, hub, tmp_path, monkeypatch):
    call(monkeypatch, push.main, run.folder, NAME)
    cftjax.load(f"hf:{NAME}")
    (path,) = (tmp_path / "home").rglob("snapshots/*/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(content)
    with pytest.raises(digests.Damaged, match=r"model\.safetensors is damaged .*: delete .*blobs"):
        cftjax.load(f"hf:{NAME}")
    path.resolve().unlink()
    np.testing.assert_array_equal(cftjax.load(f"hf:{NAME}")(images), cftjax.load(run.folder)(images))


def tampered(folder, change):
    """A packed run of which somebody changed a file and recorded its digest."""
    change(folder)
    storage.record_digests(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def redescribed(folder, **changes):
    """Other words in the description of the weights."""
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    description = json.loads((folder / "model.json").read_text()) | changes
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"cftjax": json.dumps(description)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: redescribed(folder, categories=["cat", 5, "owl"]), "number 2 is 5, which is no text"),
        (lambda folder: redescribed(folder, categories=["cat", "dog", "owl"]), "have other categories"),
        (lambda folder: redescribed(folder, architecture="../../evil"), "evil"),
        (lambda folder: redescribed(folder, architecture="resnet18"), r"backbone\."),
        (lambda folder: redescribed(folder, use=None), "does not hold what it should"),
        (lambda folder: redescribed(folder, format=99), "upgrade cftjax"),
        (lambda folder: (folder / "decisions.json").write_text("[]"), "decisions"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle"), "not a readable .safetensors"),
        (lambda folder: (folder / "evil.py").write_text("1"), "names 'evil.py', which cftjax push never writes"),
    ],
    ids=["no-text", "others", "path", "architecture", "use", "format", "decisions", "pickle", "more"],
)
def test_what_strangers_push_is_text_and_numbers_and_nothing_else(run, hub, tmp_path, change, told):
    packed.write(run, tmp_path / "packed", "card")
    hub.add(NAME, tampered(tmp_path / "packed", change))
    with pytest.raises(ValueError, match=told):
        cftjax.load(f"hf:{NAME}")


def test_words_of_strangers_do_not_act_on_the_terminal(hub, tmp_path, monkeypatch, capsys):
    made = made_run.make(tmp_path / "run", categories=("\x1b[31mcat", "=cmd()", "owl\r"))
    call(monkeypatch, push.main, made.folder, NAME)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    call(monkeypatch, predict.main, f"hf:{NAME}", tmp_path / "a.png", "-o", tmp_path / "out.csv")
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\r" not in shown.out.replace("\r\n", "")
