"""Pascal VOC's files."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import check_sound_or_refused, damaged
from PIL import Image

from cftjax.data.reading.problems import DataError
from cftjax.data.voc import VocData

SETS = {
    2007: {"trainval": ["07", "05", "09"], "train": ["07", "09"], "val": ["05"], "test": ["01", "02"]},
    2012: {"trainval": ["07", "05", "09"], "train": ["07", "09"], "val": ["05"]},
}
# 0: present, but only as difficult objects.
VALUES = {
    "dog": {"07": 1, "05": -1, "09": 0, "01": -1, "02": 0},
    "cat": {"07": -1, "05": 0, "09": -1, "01": 1, "02": -1},
}


def write(root, year=2007):
    """A VOCdevkit as released, whose images are empty files."""
    folder = root / f"VOC{year}"
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for name, images in SETS[year].items():
        (folder / f"ImageSets/Main/{name}.txt").write_text("".join(f"{image}\n" for image in images))
        for category, values in VALUES.items():
            lines = "".join(f"{image} {values[image]:2d}\n" for image in images)
            (folder / f"ImageSets/Main/{category}_{name}.txt").write_text(lines)
        for image in images:
            (folder / f"JPEGImages/{image}.jpg").touch()
    return root


def main(root, file):
    """The path of a set's file."""
    return root / "VOC2007/ImageSets/Main" / file


def refusal(root, **options):
    """The message with which loading fails."""
    with pytest.raises(DataError) as caught:
        VocData(root=str(root), **options).load()
    return str(caught.value)


def shown(records):
    """The labels of a split, 9 for unknown, columns cat and dog."""
    labels = records.labels
    assert not labels.uncertain.any()
    pairs = zip(labels.labels.tolist(), labels.known.tolist(), strict=True)
    return [[int(label) if known else 9 for label, known in zip(*rows, strict=True)] for rows in pairs]


def test_trainval_trains_and_test_tests_with_difficult_positive_and_unknown(tmp_path):
    dataset = VocData(root=str(write(tmp_path))).load()
    assert dataset.categories == ("cat", "dog")
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.splits["train"].names == ["JPEGImages/07.jpg", "JPEGImages/05.jpg", "JPEGImages/09.jpg"]
    assert shown(dataset.splits["train"]) == [[0, 1], [1, 0], [0, 1]]
    assert dataset.splits["test"].names == ["JPEGImages/01.jpg", "JPEGImages/02.jpg"]
    assert shown(dataset.splits["test"]) == [[1, 0], [0, 9]]


@pytest.mark.parametrize(("difficult", "value"), [("positive", 1), ("negative", 0), ("unknown", 9)])
def test_difficult_follows_the_options(tmp_path, difficult, value):
    root = str(write(tmp_path))
    train = VocData(root=root, difficult=difficult).load().splits["train"]
    assert shown(train) == [[0, 1], [value, 0], [0, value]]
    test = VocData(root=root, difficult_test=difficult).load().splits["test"]
    assert shown(test) == [[1, 0], [0, value]]


def test_own_validation_uses_the_sets_of_the_release(tmp_path):
    splits = VocData(root=str(write(tmp_path)), own_validation=True).load().splits
    assert {split: len(records) for split, records in splits.items()} == {"train": 2, "validation": 1, "test": 2}
    assert shown(splits["validation"]) == [[1, 0]]


def test_2012_tests_on_val(tmp_path):
    splits = VocData(root=str(write(tmp_path, 2012)), year=2012).load().splits
    assert splits["train"].names == ["JPEGImages/07.jpg", "JPEGImages/09.jpg"]
    assert splits["test"].names == ["JPEGImages/05.jpg"]
    assert shown(splits["test"]) == [[9, 0]]
    with pytest.raises(ValueError, match="own_validation is for year 2007"):
        VocData(year=2012, own_validation=True)


def test_the_root_may_be_the_year_itself_and_images_open(tmp_path):
    root = write(tmp_path)
    Image.new("RGB", (4, 2)).save(root / "VOC2007/JPEGImages/05.jpg")
    above, within = (VocData(root=str(folder)).load() for folder in (root, root / "VOC2007"))
    assert above.fingerprint == within.fingerprint
    assert within.splits["train"].image(1).shape == (2, 4, 3)


def test_lines_may_stand_in_any_order_with_windows_line_ends(tmp_path):
    root = write(tmp_path)
    first = VocData(root=str(root)).load()
    main(root, "dog_trainval.txt").write_bytes(b"09  0\r\n\r\n07\t1\r\n05 -1")
    assert VocData(root=str(root)).load().fingerprint == first.fingerprint


FAULTS = {
    "a value out of range": ("07 1\n05 -1\n09 2\n", "dog_trainval.txt, row 3: '2' is no label; write 1, 0 or -1"),
    "an image that is not in the set": ("07 1\n05 -1\n09 0\n99 1\n", "row 4: image '99' is not in the set"),
    "a line twice": ("07 1\n05 -1\n09 0\n07 1\n", "row 4: image '07' stands here a second time"),
    "a line cut short": ("07 1\n05 -1\n09\n", "row 3: '09' is no image and label"),
    "a missing line": ("07 1\n05 -1\n", "dog_trainval.txt says nothing of image '09'"),
    "an empty file": ("", "dog_trainval.txt says nothing of image '07'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_label_file_is_told_with_its_row(tmp_path, fault):
    content, message = FAULTS[fault]
    root = write(tmp_path)
    main(root, "dog_trainval.txt").write_text(content)
    assert message in refusal(root)


SET_FAULTS = {
    "an image listed twice": ("07\n05\n09\n07\n", "trainval.txt, row 4: 'JPEGImages/07.jpg' is listed a second time"),
    "an image of the test set": ("07\n05\n09\n01\n", "'JPEGImages/01.jpg' is listed a second time"),
    "an empty set": ("\n", "trainval.txt lists no image"),
    "a path outside": ("07\n05\n09\n../../07\n", "'JPEGImages/../../07.jpg' is outside of"),
    "two words": ("07\n05\n09\n01 02\n", "trainval.txt, row 4: '01 02' is no name of an image"),
}


@pytest.mark.parametrize("fault", SET_FAULTS)
def test_a_fault_of_a_set_is_told_with_its_row(tmp_path, fault):
    content, message = SET_FAULTS[fault]
    root = write(tmp_path)
    main(root, "trainval.txt").write_text(content)
    for category, values in VALUES.items():
        lines = [f"{line} {values.get(line, -1)}\n" for line in dict.fromkeys(content.split("\n")) if line]
        main(root, f"{category}_trainval.txt").write_text("".join(lines))
    assert message in refusal(root)


def test_faults_of_several_files_are_told_at_once(tmp_path):
    root = write(tmp_path)
    main(root, "dog_trainval.txt").write_text("07 5\n05 -1\n")
    main(root, "cat_test.txt").unlink()
    message = refusal(root)
    assert "4 problems" in message
    assert "'cat_test.txt' is missing; unpack the archive of that set here as well" in message


def test_missing_files_and_folders_are_named_beside_the_nearest(tmp_path):
    root = write(tmp_path)
    (root / "VOC2007/JPEGImages/02.jpg").unlink()
    assert "test.txt, row 2: no such file" in refusal(root)
    assert len(VocData(root=str(root), check_files=False).load().splits["test"]) == 2
    (root / "VOC2007/JPEGImages").rename(root / "VOC2007/JPEGImage")
    assert "has JPEGImage" in refusal(root)
    main(root, "test.txt").unlink()
    assert "test.txt: no such file or folder; the folder" in refusal(root)
    shutil.rmtree(root / "VOC2007/ImageSets/Main")
    assert "Main: no such file or folder" in refusal(root)
    (root / "VOC2007/ImageSets/Main").mkdir()
    for name, images in SETS[2007].items():
        main(root, f"{name}.txt").write_text("\n".join(images))
    assert "no file like aeroplane_trainval.txt" in refusal(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("voc"))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), file=st.sampled_from(["trainval.txt", "dog_trainval.txt", "cat_test.txt"]))
def test_damaged_bytes_give_a_data_set_or_a_data_error(folder, data, file):
    path = main(folder, file)
    sound = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(sound)))
        check_sound_or_refused(VocData(root=str(folder), check_files=data.draw(st.booleans())).load)
    finally:
        path.write_bytes(sound)
