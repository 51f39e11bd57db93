import importlib
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets
from array_record.python import array_record_module
from PIL import Image

from cftjax.data import chexpert, tfds
from cftjax.data.reading.problems import DataError
from cftjax.data.tfds import TfdsData

features = tensorflow_datasets.features
LISTED = features.Sequence(features.ClassLabel(names=["cat", "dog", "cow"]))
NAMES = features.Text()
NO_LABELS = pytest.mark.filterwarnings("ignore:.*no training image has a label")


def prepare(root, name, version, kinds, splits, file_format="array_record"):
    """What TFDS writes, written without TensorFlow."""
    folder = root / name / version
    folder.mkdir(parents=True)
    kinds = features.FeaturesDict({"image": features.Image(), **kinds})
    kinds.save_config(folder)
    stem, infos = name.split("/")[0], []
    for split, examples in splits.items():
        path = folder / f"{stem}-{split}.{file_format}-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for row, example in enumerate(examples):
            picture = folder / "picture.png"
            Image.fromarray(picture_of(row)).save(picture)
            writer.write(kinds.serialize_example(kinds.encode_example({"image": str(picture), **example})))
        writer.close()
        infos.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(examples))],
                "numBytes": str(path.stat().st_size),
            }
        )
    info = {"name": stem, "version": version, "fileFormat": file_format, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def picture_of(row):
    return np.full((4, 6, 3), [10 * row, 7, 200 - row], np.uint8)


def values_of(records):
    labels = records.labels[:]
    return np.where(labels.known, labels.labels, np.where(labels.uncertain, -1, np.nan))


def load(root, name, **options):
    return TfdsData(name, root=str(root), **options).load()


CHEXPERT = {
    "name": NAMES,
    "label": features.Sequence(features.ClassLabel(names=["uncertain", "positive", "negative", "unmentioned"])),
}
CODES = [[0, 1, 2, 3] * 3 + [1, 3], [3] * 13 + [0], [2] * 14]


def chexpert_examples(split, patients, codes=CODES):
    title = "CheXpert-v1.0-small/{}/patient{:05d}/study1/view1_frontal.jpg"
    return [
        {"name": title.format(split, patient), "label": code} for patient, code in zip(patients, codes, strict=False)
    ]


@NO_LABELS
def test_chexpert_has_the_findings_the_patients_and_its_validation_as_test(tmp_path):
    prepare(
        tmp_path,
        "chexpert",
        "3.1.0",
        CHEXPERT,
        {"train": chexpert_examples("train", [7, 7, 12]), "validation": chexpert_examples("valid", [99], CODES[::-1])},
    )
    dataset = load(tmp_path, "chexpert")
    assert dataset.categories == chexpert.FINDINGS
    assert list(dataset.splits) == ["train", "test"]
    meaning = np.array([-1, 1, 0, np.nan])
    np.testing.assert_array_equal(values_of(dataset.splits["train"]), meaning[CODES])
    np.testing.assert_array_equal(values_of(dataset.splits["test"]), meaning[CODES[2:]])
    assert dataset.splits["train"].groups.tolist() == [7, 7, 12]
    assert chexpert.studies(dataset.splits["train"].names).tolist()[2] == "patient00012/study1"


def test_images_are_decoded_as_tfds_decodes_them(tmp_path):
    folder = prepare(tmp_path, "mine", "1.0.0", {"there": LISTED}, {"train": [{"there": [0, 1, 2]}] * 3})
    train = load(tmp_path, "mine", labels="there").splits["train"]
    theirs = tensorflow_datasets.builder_from_directory(folder).as_data_source(split="train")
    for row in range(3):
        np.testing.assert_array_equal(train.image(row), theirs[row]["image"])
        np.testing.assert_array_equal(train.image(row), picture_of(row))
    assert train.names[2] == "train/0000002"


def test_tensorflow_is_not_imported(tmp_path):
    prepare(tmp_path, "mine", "1.0.0", {"there": LISTED}, {"train": [{"there": [0, 1, 2]}]})
    load(tmp_path, "mine", labels="there").splits["train"].image(0)
    assert "tensorflow" not in sys.modules


def test_sets_that_list_what_is_present_know_every_label(tmp_path):
    objects = features.Sequence({"label": LISTED.feature, "bbox": features.BBoxFeature()})
    box = features.BBox(0.0, 0.0, 1.0, 1.0)
    examples = [
        {"image/filename": f"{row}.jpg", "objects": [{"label": label, "bbox": box} for label in labels]}
        for row, labels in enumerate([[1, 1, 0], [], [2]])
    ]
    kinds = {"image/filename": NAMES, "objects": objects}
    prepare(
        tmp_path, "coco/2014", "1.1.0", kinds, {"train": examples, "validation": examples[:1], "test": examples[1:2]}
    )
    dataset = load(tmp_path, "coco/2014")
    assert dataset.categories == ("cat", "dog", "cow")
    np.testing.assert_array_equal(values_of(dataset.splits["train"]), [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    # Its test split has no annotations.
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 3, "test": 1}
    assert list(dataset.splits["train"].names) == ["0.jpg", "1.jpg", "2.jpg"]


def test_difficult_objects_of_voc_are_unknown_in_the_test_split_only(tmp_path):
    kinds = {"image/filename": NAMES, "labels": LISTED, "labels_no_difficult": LISTED}
    examples = [
        {"image/filename": "a.jpg", "labels": [0, 1], "labels_no_difficult": [1]},
        {"image/filename": "b.jpg", "labels": [2], "labels_no_difficult": [2]},
    ]
    prepare(tmp_path, "voc/2007", "4.0.0", kinds, dict.fromkeys(("train", "validation", "test"), examples))
    dataset = load(tmp_path, "voc")
    assert list(dataset.splits) == ["train", "validation", "test"]
    np.testing.assert_array_equal(values_of(dataset.splits["train"]), [[1, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(values_of(dataset.splits["test"]), [[np.nan, 1, 0], [0, 0, 1]])


def test_labels_of_open_images_are_known_where_people_gave_them(tmp_path):
    source = features.ClassLabel(names=["verification", "crowdsource-verification", "machine", "freeform"])
    kinds = {
        "image/filename": NAMES,
        "objects_trainable": features.Sequence({"label": LISTED.feature, "confidence": np.int32, "source": source}),
    }

    def example(*labels):
        keys = ("label", "confidence", "source")
        return {
            "image/filename": "a.jpg",
            "objects_trainable": [dict(zip(keys, label, strict=True)) for label in labels],
        }

    examples = [
        example((0, 10, "verification"), (1, 0, "crowdsource-verification"), (2, 8, "machine")),
        example((2, 9, "machine"), (2, 0, "verification"), (0, 10, "verification"), (0, 0, "crowdsource-verification")),
        example(),
    ]
    prepare(tmp_path, "open_images_v4/200k", "2.0.0", kinds, {"train": examples})
    np.testing.assert_array_equal(
        values_of(load(tmp_path, "open_images_v4").splits["train"]),
        [[1, 0, -1], [-1, np.nan, 0], [np.nan, np.nan, np.nan]],
    )


def test_lvis_is_partial_and_sparse(tmp_path):
    many = features.ClassLabel(names=[f"category {number}" for number in range(300)])
    kinds = {
        "image/id": np.int64,
        "neg_category_ids": features.Sequence(many),
        "objects": features.Sequence({"label": many}),
    }
    examples = [
        {"image/id": 5, "neg_category_ids": [4, 299], "objects": [{"label": 2}, {"label": 2}]},
        {"image/id": 6, "neg_category_ids": [], "objects": []},
    ]
    prepare(tmp_path, "lvis", "1.4.0", kinds, {"train": examples, "validation": examples[:1]})
    with pytest.warns(UserWarning, match="category 0, category 1, category 3"):
        dataset = load(tmp_path, "lvis")
    expected = np.full((2, 300), np.nan)
    expected[0, [2, 4, 299]] = 1, 0, 0
    train = dataset.splits["train"]
    np.testing.assert_array_equal(values_of(train), expected)
    assert train.labels.counts().negative.sum() == 2
    assert list(train.names) == ["5", "6"]
    assert list(dataset.splits) == ["train", "test"]


def test_attributes_of_celeb_a_are_by_the_alphabet_and_people_are_groups(tmp_path):
    kinds = {
        "attributes": {name: np.bool_ for name in ("Young", "Bald", "Male")},
        "identity": {"Identity_No": np.int64},
    }
    examples = [
        {"attributes": {"Young": True, "Bald": False, "Male": True}, "identity": {"Identity_No": 31}},
        {"attributes": {"Young": False, "Bald": True, "Male": True}, "identity": {"Identity_No": 8}},
    ]
    prepare(tmp_path, "celeb_a", "2.1.0", kinds, {"train": examples})
    dataset = load(tmp_path, "celeb_a")
    assert dataset.categories == ("Bald", "Male", "Young")
    np.testing.assert_array_equal(values_of(dataset.splits["train"]), [[0, 1, 1], [1, 1, 0]])
    assert dataset.splits["train"].groups.tolist() == [31, 8]


@pytest.fixture
def mine(tmp_path):
    examples = [{"there": [row % 3]} for row in range(6)]
    prepare(
        tmp_path,
        "bigearthnet/rgb",
        "1.0.0",
        {"labels": LISTED, "filename": NAMES},
        {"train": [{"labels": e["there"], "filename": str(row)} for row, e in enumerate(examples)]},
    )
    return tmp_path


@NO_LABELS
def test_splits_may_be_chosen_in_the_notation_of_tfds(mine):
    dataset = load(mine, "bigearthnet", train="train[:50%]", test="train[-2:]")
    assert {split: list(records.names) for split, records in dataset.splits.items()} == {
        "train": ["0", "1", "2"],
        "test": ["4", "5"],
    }
    np.testing.assert_array_equal(dataset.splits["test"].image(0), picture_of(4))
    assert list(load(mine, "bigearthnet", train="train", test="").splits) == ["train"]
    with pytest.raises(DataError, match="cannot be read with tensorflow-datasets"):
        load(mine, "bigearthnet", train="trian")


def test_the_newest_version_is_taken_and_configurations_must_be_named(mine):
    kinds = {"labels": LISTED, "filename": NAMES}
    for version in ("1.9.0", "1.10.0"):
        prepare(mine, "bigearthnet/rgb", version, kinds, {"train": [{"labels": [0, 1, 2], "filename": version}]})
    assert list(load(mine, "bigearthnet").splits["train"].names) == ["1.10.0"]
    assert list(load(mine, "bigearthnet/rgb:1.9.0").splits["train"].names) == ["1.9.0"]
    prepare(mine, "bigearthnet/all", "1.0.0", kinds, {"train": [{"labels": [0], "filename": "x"}]})
    with pytest.raises(DataError, match="name one of bigearthnet/all, bigearthnet/rgb"):
        load(mine, "bigearthnet")


def test_a_set_that_is_not_prepared_is_refused_with_the_command(tmp_path):
    with pytest.raises(DataError, match=r"not prepared there; run pip install .*tensorflow-cpu.*prepare\('voc'"):
        load(tmp_path, "voc")


def test_unknown_sets_need_the_feature_of_their_labels(mine):
    with pytest.raises(DataError, match="say which feature"):
        load(mine, "imagenet")


@pytest.mark.parametrize("labels", ["filename", "nothing", "labels/label"])
def test_a_feature_that_lists_no_categories_is_refused(mine, labels):
    with pytest.raises(DataError, match=r"it has .*filename"):
        load(mine, "bigearthnet", labels=labels)


def test_a_set_of_another_content_than_its_name_promises_is_refused(mine):
    (mine / "bigearthnet").rename(mine / "coco")
    with pytest.raises(DataError, match="lack what is expected of coco"):
        load(mine, "coco")


@pytest.mark.parametrize(
    "example",
    [{"name": "train/patient1/study1/view1_frontal.jpg", "label": [1, 1]}, {"name": "a.jpg", "label": [1] * 14}],
)
def test_examples_that_are_not_as_the_set_promises_are_named(tmp_path, example):
    prepare(tmp_path, "chexpert", "3.1.0", CHEXPERT, {"train": [*chexpert_examples("train", [1, 2]), example]})
    with pytest.raises(DataError, match="train: example 2 cannot be read"):
        load(tmp_path, "chexpert")


def test_damaged_files_and_other_formats_are_refused_cleanly(mine):
    folder = mine / "bigearthnet/rgb/1.0.0"
    info = (folder / "dataset_info.json").read_text()
    for damaged in (info.replace("array_record", "tfrecord"), "{", info.replace('"6"', '"7"')):
        (folder / "dataset_info.json").write_text(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            load(mine, "bigearthnet")
    (folder / "dataset_info.json").write_text(info)
    (folder / "features.json").unlink()
    with pytest.raises(DataError, match="cannot be read with tensorflow-datasets"):
        load(mine, "bigearthnet")


def test_a_damaged_image_is_named(mine):
    path = next((mine / "bigearthnet/rgb/1.0.0").glob("*array_record*"))
    train = load(mine, "bigearthnet").splits["train"]
    records = [train.image.source[row] for row in range(6)]
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record.replace(b"IDAT", b"XDAT"))
    writer.close()
    with pytest.raises(ValueError, match="3: its image cannot be read"):
        load(mine, "bigearthnet").splits["train"].image(3)


def test_a_library_that_does_not_import_says_what_to_upgrade(monkeypatch, mine):
    def fail(name):
        raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"protobuf [0-9].*Descriptors.*pip install -U tensorflow-datasets protobuf"):
        load(mine, "bigearthnet")


def test_preparing_without_tensorflow_says_which_extra_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"run pip install .*tensorflow-cpu"):
        tfds.prepare("chexpert", str(tmp_path))
