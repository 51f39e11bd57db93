"""LVIS v1's files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import altered, check_sound_or_refused, damaged
from PIL import Image

from cftjax.data import sparse
from cftjax.data.lvis import LvisData
from cftjax.data.reading.problems import DataError

URL = "http://images.cocodataset.org/"
CATEGORIES = [{"id": i, "name": name, "frequency": "r"} for i, name in ((5, "zebra"), (1, "aerosol_can"), (2, "apple"))]
TRAIN = {
    "images": [
        {"id": 8, "coco_url": URL + "train2017/8.jpg", "neg_category_ids": [1], "not_exhaustive_category_ids": [5]},
        {"id": 3, "coco_url": URL + "val2017/3.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": [1]},
        {"id": 9, "coco_url": URL + "train2017/9.jpg", "neg_category_ids": [5, 2], "not_exhaustive_category_ids": []},
    ],
    "annotations": [
        {"id": 1, "image_id": 8, "category_id": 5, "segmentation": [[1, 2]]},
        {"id": 2, "image_id": 8, "category_id": 5},
        {"id": 3, "image_id": 9, "category_id": 1},
    ],
    "categories": CATEGORIES,
}
VAL = {
    "images": [
        {"id": 1, "coco_url": URL + "val2017/1.jpg", "neg_category_ids": [2], "not_exhaustive_category_ids": []}
    ],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1}],
    "categories": CATEGORIES,
}


def write(root, train=TRAIN, val=VAL):
    """A folder as released beside COCO's images, which are empty files."""
    (root / "annotations").mkdir(exist_ok=True)
    for name, content in (("train", train), ("val", val)):
        (root / f"annotations/lvis_v1_{name}.json").write_text(json.dumps(content))
    for name in ("train2017/8.jpg", "val2017/3.jpg", "train2017/9.jpg", "val2017/1.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    return root


def refusal(root, **options):
    """The message with which loading fails."""
    with pytest.raises(DataError) as caught:
        LvisData(root=str(root), **options).load()
    return str(caught.value)


def values(labels):
    """Labels as 1, 0, -1 for uncertain, and 9 for unknown."""
    return np.where(labels.uncertain, -1, np.where(labels.known, labels.labels, 9)).tolist()


def test_annotated_is_positive_named_absent_is_negative_and_the_rest_unknown(tmp_path):
    dataset = LvisData(root=str(write(tmp_path))).load()
    assert dataset.categories == ("aerosol_can", "apple", "zebra")
    assert list(dataset.splits) == ["train", "test"]
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert isinstance(train.labels, sparse.SparseLabels)
    assert train.names == ["train2017/8.jpg", "val2017/3.jpg", "train2017/9.jpg"]
    assert values(train.labels) == [[0, 9, 1], [9, 9, 9], [1, 0, 0]]
    assert test.names == ["val2017/1.jpg"]
    assert values(test.labels) == [[1, 0, 9]]


def test_not_exhaustive_without_an_annotation_follows_the_option(tmp_path):
    train = LvisData(root=str(write(tmp_path)), not_exhaustive="positive").load().splits["train"]
    assert values(train.labels) == [[0, 9, 1], [1, 9, 9], [1, 0, 0]]


def test_annotated_and_named_absent_is_uncertain(tmp_path):
    content = TRAIN | {"annotations": [*TRAIN["annotations"], {"image_id": 9, "category_id": 2}]}
    train = LvisData(root=str(write(tmp_path, content))).load().splits["train"]
    assert values(train.labels)[2] == [1, -1, 0]


def test_a_category_that_nobody_labelled_in_train_is_named(tmp_path):
    content = TRAIN | {"images": TRAIN["images"][:2], "annotations": TRAIN["annotations"][:2]}
    with pytest.warns(UserWarning, match="no training image has a label for apple"):
        LvisData(root=str(write(tmp_path, content))).load()


def test_images_open_from_the_folder_of_their_url(tmp_path):
    root = write(tmp_path)
    Image.new("RGB", (5, 3)).save(root / "val2017" / "3.jpg")
    assert LvisData(root=str(root)).load().splits["train"].image(1).shape == (3, 5, 3)


def with_image(**fields):
    """The training file with one more image."""
    entry = {"id": 4, "coco_url": URL + "train2017/4.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": []}
    image = {key: value for key, value in (entry | fields).items() if value is not None}
    return TRAIN | {"images": [*TRAIN["images"], image]}


FAULTS = {
    "an unlisted negative": (with_image(neg_category_ids=[3]), "images[3].neg_category_ids: category 3 is not listed"),
    "an unlisted category that is not exhaustive": (
        with_image(not_exhaustive_category_ids=[3]),
        "images[3].not_exhaustive_category_ids: category 3 is not listed",
    ),
    "COCO's own fields": (with_image(neg_category_ids=None), "images[3]: has no neg_category_ids"),
    "an image without URL": (with_image(coco_url=None), "images[3].coco_url: the path '' names no file"),
    "a URL that leads outside": (with_image(coco_url="http://x/../4.jpg"), "'../4.jpg' is outside of"),
    "an image of both splits": (with_image(coco_url=URL + "val2017/1.jpg"), "'val2017/1.jpg' is listed a second time"),
    "a missing image": (with_image(), "images[3].coco_url: no such file"),
    "an id given twice": (with_image(id=8), "images[3]: id 8 is also that of images[0]"),
    "an unlisted image": (
        TRAIN | {"annotations": [{"image_id": 77, "category_id": 1}]},
        "annotations[0]: image_id 77 is not listed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_its_place(tmp_path, fault):
    content, message = FAULTS[fault]
    assert message in refusal(write(tmp_path, content))


def test_a_missing_folder_of_images_is_told_once(tmp_path):
    root = write(tmp_path)
    (root / "train2017").rename(root / "train2014")
    message = refusal(root)
    assert "train2017: no such file or folder" in message
    assert "has train2014" in message
    assert "problems" not in message
    assert len(LvisData(root=str(root), check_files=False).load().splits["train"]) == 3


def test_a_missing_file_is_named_beside_the_nearest(tmp_path):
    root = write(tmp_path)
    (root / "annotations/lvis_v1_val.json").rename(root / "annotations/lvis_v1_valid.json")
    assert "has lvis_v1_valid.json" in refusal(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lvis"))


@pytest.mark.filterwarnings("ignore:.*no training image has a label")
@settings(max_examples=100, deadline=None)
@given(data=damaged(json.dumps(TRAIN).encode()), check_files=st.booleans())
def test_damaged_bytes_give_a_data_set_or_a_data_error(folder, data, check_files):
    (folder / "annotations/lvis_v1_train.json").write_bytes(data)
    check_sound_or_refused(LvisData(root=str(folder), check_files=check_files).load)


@pytest.mark.filterwarnings("ignore:.*no training image has a label")
@settings(max_examples=100, deadline=None)
@given(content=altered(TRAIN), check_files=st.booleans())
def test_altered_entries_give_a_data_set_or_a_data_error(folder, content, check_files):
    (folder / "annotations/lvis_v1_train.json").write_text(json.dumps(content))
    check_sound_or_refused(LvisData(root=str(folder), check_files=check_files).load)
