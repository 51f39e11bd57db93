"""MS-COCO's files."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import altered, check_sound_or_refused, damaged
from PIL import Image

from cftjax.data.coco import CocoData
from cftjax.data.reading.problems import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*no training image shows")

# Out of id order, and with holes.
CATEGORIES = [{"id": 7, "name": "kite"}, {"id": 1, "name": "person"}, {"id": 3, "name": "dog"}]
TRAIN = {
    "info": {"description": "made for a test"},
    "images": [
        {"id": 10, "file_name": "c.jpg", "height": 4},
        {"id": 4, "file_name": "a.jpg"},
        {"id": 99, "file_name": "b.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 7, "segmentation": [[1.5, 2.0, 3.0]], "iscrowd": 0},
        {"id": 2, "image_id": 10, "category_id": 3, "iscrowd": 0},
        {"id": 3, "image_id": 10, "category_id": 3, "iscrowd": 0},
        {"id": 4, "image_id": 99, "category_id": 1, "segmentation": {"counts": [1], "size": [2, 2]}, "iscrowd": 1},
    ],
    "categories": CATEGORIES,
}
VAL = {
    "images": [{"id": 10, "file_name": "d.jpg"}, {"id": 5, "file_name": "e.jpg"}],
    "annotations": [{"id": 1, "image_id": 5, "category_id": 1}],
    "categories": CATEGORIES[::-1],
}


def write(root, train=TRAIN, val=VAL, year=2014):
    """A folder as released, whose images are empty files."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for name, content, listed in (("train", train, TRAIN), ("val", val, VAL)):
        (root / f"annotations/instances_{name}{year}.json").write_text(json.dumps(content))
        (root / f"{name}{year}").mkdir(exist_ok=True)
        for image in listed["images"]:
            (root / f"{name}{year}" / image["file_name"]).touch()
    return root


def changed(content, **changes):
    """A document with some of its lists extended."""
    return content | {key: content[key] + added for key, added in changes.items()}


def refusal(root, **options):
    """The message with which loading fails."""
    with pytest.raises(DataError) as caught:
        CocoData(root=str(root), **options).load()
    return str(caught.value)


@pytest.mark.parametrize("year", [2014, 2017])
def test_labels_are_complete_and_exact(tmp_path, year):
    dataset = CocoData(root=str(write(tmp_path, year=year)), year=year).load()
    assert dataset.categories == ("person", "dog", "kite")
    assert list(dataset.splits) == ["train", "test"]
    train, test = dataset.splits["train"], dataset.splits["test"]
    # In file order: dog and kite; none; a crowd of persons.
    assert train.names == [f"train{year}/c.jpg", f"train{year}/a.jpg", f"train{year}/b.jpg"]
    assert train.labels.labels.tolist() == [[False, True, True], [False, False, False], [True, False, False]]
    assert test.names == [f"val{year}/d.jpg", f"val{year}/e.jpg"]
    assert test.labels.labels.tolist() == [[False, False, False], [True, False, False]]
    for records in (train, test):
        assert records.labels.known.all()
        assert not records.labels.uncertain.any()
        assert records.groups is None


def test_random_annotations_agree_with_sets(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.permutation(1000)[:50].tolist()
    identities = rng.permutation(90)[:9].tolist()
    pairs = [(ids[i], identities[j]) for i, j in zip(rng.integers(0, 50, 120), rng.integers(0, 9, 120), strict=True)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
        "annotations": [{"image_id": i, "category_id": c} for i, c in pairs],
        "categories": [{"id": c, "name": f"c{c}"} for c in identities],
    }
    root = write(tmp_path, content, content)
    dataset = CocoData(root=str(root), check_files=False).load()
    assert dataset.categories == tuple(f"c{c}" for c in sorted(identities))
    found = dataset.splits["train"]
    for i, name, row in zip(ids, found.names, found.labels.labels, strict=True):
        assert name == f"train2014/{i}.jpg"
        assert {sorted(identities)[column] for column in np.flatnonzero(row)} == {c for j, c in pairs if j == i}


def test_images_open_from_their_folder_which_may_lie_elsewhere(tmp_path):
    root = write(tmp_path / "json")
    images = tmp_path / "elsewhere"
    images.mkdir()
    for folder in ("train2014", "val2014"):
        shutil.move(root / folder, images / folder)
    Image.new("RGB", (6, 4), (10, 200, 30)).save(images / "train2014" / "a.jpg")
    train = CocoData(root=str(root), images=str(images)).load().splits["train"]
    assert train.image(1).shape == (4, 6, 3)
    assert "train2014" in refusal(root)


def test_a_test_file_makes_val_the_validation_split(tmp_path):
    root = write(tmp_path)
    content = VAL | {"images": [{"id": 10, "file_name": "f.jpg"}, {"id": 5, "file_name": "g.jpg"}]}
    (root / "annotations/instances_test2014.json").write_text(json.dumps(content))
    splits = CocoData(root=str(root), check_files=False).load().splits
    assert list(splits) == ["train", "validation", "test"]
    assert splits["validation"].names == ["val2014/d.jpg", "val2014/e.jpg"]
    assert splits["test"].names == ["test2014/f.jpg", "test2014/g.jpg"]


def test_the_fingerprint_follows_the_labels_and_not_the_place(tmp_path):
    def fingerprint(folder, train):
        return CocoData(root=str(write(tmp_path / folder, train))).load().fingerprint

    first = fingerprint("a", TRAIN)
    assert fingerprint("b", TRAIN | {"info": {}}) == first
    assert fingerprint("c", changed(TRAIN, annotations=[{"image_id": 4, "category_id": 1}])) != first


FAULTS = {
    "an unlisted category": (
        changed(TRAIN, annotations=[{"image_id": 4, "category_id": 2}]),
        "instances_train2014.json annotations[4]: category_id 2 is not listed",
    ),
    "an unlisted image": (
        changed(TRAIN, annotations=[{"image_id": 5, "category_id": 1}]),
        "annotations[4]: image_id 5 is not listed",
    ),
    "an annotation without category": (changed(TRAIN, annotations=[{"image_id": 4}]), "[4]: has no category_id"),
    "an image id given twice": (
        changed(TRAIN, images=[{"id": 4, "file_name": "z.jpg"}]),
        "images[3]: id 4 is also that of images[1]",
    ),
    "an image listed twice": (
        changed(TRAIN, images=[{"id": 5, "file_name": "./a.jpg"}]),
        "images[3].file_name: 'train2014/./a.jpg' is listed a second time, after instances_train2014.json images[1]",
    ),
    "an image of the other split": (
        changed(TRAIN, images=[{"id": 5, "file_name": "../val2014/d.jpg"}]),
        "instances_val2014.json images[0].file_name: 'val2014/d.jpg' is listed a second time",
    ),
    "an image without id": (changed(TRAIN, images=[{"file_name": "z.jpg"}]), "images[3]: has no id"),
    "an image without file": (changed(TRAIN, images=[{"id": 5}]), "images[3].file_name: the path '' names no file"),
    "a path outside": (
        changed(TRAIN, images=[{"id": 5, "file_name": "../../a.jpg"}]),
        "images[3].file_name: 'train2014/../../a.jpg' is outside of",
    ),
    "an absolute path": (changed(TRAIN, images=[{"id": 5, "file_name": "/a.jpg"}]), "'/a.jpg' is outside of"),
    "a missing image": (
        changed(TRAIN, images=[{"id": 5, "file_name": "z.jpg"}]),
        "images[3].file_name: no such file",
    ),
    "a category name given twice": (
        TRAIN | {"categories": [*CATEGORIES, {"id": 8, "name": "dog"}]},
        "categories[3]: 'dog' is also that of categories[2]",
    ),
    "a category id given twice": (
        TRAIN | {"categories": [*CATEGORIES, {"id": 3, "name": "cat"}]},
        "categories[3]: 3 is also that of categories[2]",
    ),
    "a category without name": (
        TRAIN | {"categories": [*CATEGORIES, {"id": 8, "name": " "}]},
        "categories[3]: has no id or no name",
    ),
    "other categories than val's": (
        TRAIN | {"categories": [*CATEGORIES, {"id": 8, "name": "cat"}]},
        "instances_val2014.json lacks categories of instances_train2014.json: 8 'cat'",
    ),
    "no category": (TRAIN | {"categories": [], "annotations": []}, "instances_train2014.json lists no category"),
    "no image": (TRAIN | {"images": [], "annotations": []}, "instances_train2014.json lists no image"),
    "a missing key": (
        {key: TRAIN[key] for key in ("images", "categories")},
        "Object missing required field `annotations`",
    ),
    "a value of another kind": (
        changed(TRAIN, annotations=[{"image_id": 4, "category_id": "dog"}]),
        "Expected `int | null`, got `str` - at `$.annotations[4].category_id`",
    ),
    "a list in place of the whole": ([], "Expected `object`, got `array`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_its_place(tmp_path, fault):
    content, message = FAULTS[fault]
    assert message in refusal(write(tmp_path, content))


def test_all_faults_are_told_at_once(tmp_path):
    train = changed(
        TRAIN, images=[{"id": 4, "file_name": "z.jpg"}], annotations=[{"image_id": 1, "category_id": 2}] * 30
    )
    val = changed(VAL, annotations=[{"image_id": 1, "category_id": 1}])
    message = refusal(write(tmp_path, train, val))
    # The image of the id given twice is not there either.
    assert "63 problems" in message
    assert "images[3]: id 4" in message
    assert "and 43 more" in message
    val = refusal(write(tmp_path, TRAIN, val))
    assert "instances_val2014.json annotations[1]: image_id 1" in val


def test_faults_of_annotations_and_of_paths_come_in_one_message(tmp_path):
    outside = changed(
        TRAIN, images=[{"id": 5, "file_name": "../../a.jpg"}], annotations=[{"image_id": 8, "category_id": 1}]
    )
    message = refusal(write(tmp_path, outside, changed(VAL, images=[{"id": 6, "file_name": "./d.jpg"}])))
    assert "3 problems" in message
    for part in ("image_id 8", "is outside of", "'val2014/./d.jpg' is listed a second time"):
        assert part in message


def test_faults_of_both_files_come_in_one_message(tmp_path):
    root = write(tmp_path, {"images": [], "categories": []})
    (root / "annotations/instances_val2014.json").write_text("{")
    message = refusal(root)
    assert "instances_train2014.json: Object missing required field `annotations`" in message
    assert "instances_val2014.json: the file ends too early" in message


def test_a_category_that_no_training_image_shows_is_named_in_a_warning(tmp_path):
    categories = [*CATEGORIES, {"id": 9, "name": "unicorn"}]
    root = write(tmp_path, TRAIN | {"categories": categories}, VAL | {"categories": categories})
    with pytest.warns(UserWarning, match="no training image shows unicorn; nothing can be learned of it"):
        CocoData(root=str(root)).load()


def test_missing_images_are_counted_unless_the_option_says_not_to_look(tmp_path):
    root = write(tmp_path)
    for image in TRAIN["images"]:
        (root / "train2014" / image["file_name"]).unlink()
    (root / "train2014" / "a.jpg").mkdir()
    message = refusal(root)
    assert "3 problems" in message
    assert str(root / "train2014" / "c.jpg") in message
    assert len(CocoData(root=str(root), check_files=False).load().splits["train"]) == 3


def test_a_missing_folder_or_file_is_named_beside_the_nearest(tmp_path):
    root = write(tmp_path, year=2017)
    assert "has instances_train2017.json" in refusal(root)
    (root / "train2017").rename(root / "train2017_old")
    message = refusal(root, year=2017)
    assert "train2017: no such file or folder" in message
    assert "has train2017_old" in message
    assert "no such file or folder" in refusal(root / "coco")


def test_a_mark_of_the_encoding_is_taken_and_what_is_no_json_is_named(tmp_path):
    root = write(tmp_path)
    file = root / "annotations/instances_train2014.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert CocoData(root=str(root)).load().categories == ("person", "dog", "kite")
    for word in ("NaN", "Infinity", "-Infinity"):
        file.write_text('{"images": [],\n "annotations": [{"image_id": 1, "area": ' + word + "}]}")
        message = refusal(root)
        assert f"{word.lstrip(chr(45))} is no JSON, though Python writes it, at byte" in message
        assert "(line 2); write null" in message


def test_a_truncated_file_names_byte_and_line(tmp_path):
    root = write(tmp_path)
    file = root / "annotations/instances_train2014.json"
    data = json.dumps(TRAIN, indent=1).encode()[:300]
    file.write_bytes(data)
    message = refusal(root)
    assert "instances_train2014.json: the file ends too early" in message
    assert f"at byte 300 (line {len(data.splitlines())})" in message
    file.write_bytes(b'{"images": [],\n "annotations": [oops]}')
    assert "at byte 32 (line 2)" in refusal(root)
    file.write_bytes(b"")
    assert "at byte 0 (line 1)" in refusal(root)


def test_bytes_that_are_no_text_and_endless_nesting_are_refused(tmp_path):
    root = write(tmp_path)
    file = root / "annotations/instances_train2014.json"
    file.write_bytes(json.dumps(TRAIN).encode().replace(b"c.jpg", b"\xff.jpg"))
    assert "instances_train2014.json: a string is not UTF-8" in refusal(root)
    file.write_bytes(b'{"info": ' + b"[" * 100_000)
    assert "instances_train2014.json: lists are nested too deeply" in refusal(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("coco"))


@settings(max_examples=150, deadline=None)
@given(data=damaged(json.dumps(TRAIN).encode()), check_files=st.booleans())
def test_damaged_bytes_give_a_data_set_or_a_data_error(folder, data, check_files):
    (folder / "annotations/instances_train2014.json").write_bytes(data)
    check_sound_or_refused(CocoData(root=str(folder), check_files=check_files).load)


@settings(max_examples=150, deadline=None)
@given(content=altered(TRAIN), check_files=st.booleans())
def test_altered_entries_give_a_data_set_or_a_data_error(folder, content, check_files):
    (folder / "annotations/instances_train2014.json").write_text(json.dumps(content))
    check_sound_or_refused(CocoData(root=str(folder), check_files=check_files).load)


def test_settings_are_plain_values(tmp_path):
    assert json.loads(json.dumps(dataclasses.asdict(CocoData()))) == dataclasses.asdict(CocoData())
