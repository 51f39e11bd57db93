"""NUS-WIDE's files."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import check_sound_or_refused, damaged
from PIL import Image

from cftjax.data.nuswide import NusWideData
from cftjax.data.reading.problems import DataError

IMAGES = {"Train": ["actor\\0001_11.jpg", "zoo\\0001_12.jpg", "actor\\0002_13.jpg"], "Test": ["zoo\\0007_14.jpg"]}
VALUES = {"sky": {"Train": [1, 0, 1], "Test": [0]}, "cat": {"Train": [0, 0, 1], "Test": [1]}}


def write(root, end="\r\n", labels="Groundtruth", images="Flickr"):
    """A folder as released, whose photographs are empty files."""
    (root / labels / "TrainTestLabels").mkdir(parents=True)
    (root / "ImageList").mkdir()
    for name, paths in IMAGES.items():
        (root / f"ImageList/{name}Imagelist.txt").write_bytes("".join(path + end for path in paths).encode())
        for concept, values in VALUES.items():
            content = "".join(f"{value}{end}" for value in values[name])
            (root / labels / f"TrainTestLabels/Labels_{concept}_{name}.txt").write_bytes(content.encode())
        for path in paths:
            file = root / images / path.replace("\\", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return root


def labels_of(root, concept="sky", name="Train"):
    """The path of a label file."""
    return root / f"Groundtruth/TrainTestLabels/Labels_{concept}_{name}.txt"


def refusal(root, **options):
    """The message with which loading fails."""
    with pytest.raises(DataError) as caught:
        NusWideData(root=str(root), **options).load()
    return str(caught.value)


@pytest.mark.parametrize("end", ["\r\n", "\n", " \n"])
def test_labels_are_complete_and_exact(tmp_path, end):
    dataset = NusWideData(root=str(write(tmp_path, end))).load()
    assert dataset.categories == ("cat", "sky")
    assert list(dataset.splits) == ["train", "test"]
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert train.names == ["actor/0001_11.jpg", "zoo/0001_12.jpg", "actor/0002_13.jpg"]
    assert train.labels.labels.tolist() == [[False, True], [False, False], [True, True]]
    assert test.names == ["zoo/0007_14.jpg"]
    assert test.labels.labels.tolist() == [[True, False]]
    for records in (train, test):
        assert records.labels.known.all()
        assert not records.labels.uncertain.any()


def test_folders_may_be_capitalised_otherwise(tmp_path):
    root = write(tmp_path, labels="GroundTruth", images="flickr")
    Image.new("RGB", (7, 2)).save(root / "flickr/zoo/0001_12.jpg")
    assert NusWideData(root=str(root)).load().splits["train"].image(1).shape == (2, 7, 3)


def test_photographs_may_lie_elsewhere_and_side_by_side(tmp_path):
    root = write(tmp_path)
    (tmp_path / "images").mkdir()
    for path in [*IMAGES["Train"], *IMAGES["Test"]]:
        (tmp_path / "images" / path.split("\\")[1]).touch()
    train = NusWideData(root=str(root), images=str(tmp_path / "images"), flat=True).load().splits["train"]
    assert train.names == ["0001_11.jpg", "0001_12.jpg", "0002_13.jpg"]


FAULTS = {
    "a label out of range": ("1\n2\n-1\n", ["2 problems", "row 2: '2' is no label; write 1 or 0", "row 3: '-1'"]),
    "a blank line": ("1\n\n1\n", ["Labels_sky_Train.txt, row 2: '' is no label"]),
    "too few labels": ("1\n0\n", ["Labels_sky_Train.txt has 2 labels, the image list 3 images"]),
    "too many labels": ("1\n0\n1\n1\n", ["Labels_sky_Train.txt has 4 labels"]),
    "no label": ("", ["Labels_sky_Train.txt has 0 labels"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_label_file_is_told_with_its_row(tmp_path, fault):
    content, messages = FAULTS[fault]
    root = write(tmp_path)
    labels_of(root).write_text(content)
    found = refusal(root)
    for message in messages:
        assert message in found


LIST_FAULTS = {
    "an image listed twice": ("actor\\0001_11.jpg", "row 3: 'actor/0001_11.jpg' is listed a second time, after Train"),
    "an image of the test set": ("zoo\\0007_14.jpg", "TestImagelist.txt, row 1: 'zoo/0007_14.jpg' is listed a second"),
    "a path outside": ("..\\..\\x.jpg", "TrainImagelist.txt, row 3: '../../x.jpg' is outside of"),
    "a missing image": ("actor\\x.jpg", "TrainImagelist.txt, row 3: no such file"),
}


@pytest.mark.parametrize("fault", LIST_FAULTS)
def test_a_fault_of_an_image_list_is_told_with_its_row(tmp_path, fault):
    path, message = LIST_FAULTS[fault]
    root = write(tmp_path)
    (root / "ImageList/TrainImagelist.txt").write_text("\n".join([*IMAGES["Train"][:2], path]))
    assert message in refusal(root)


def test_an_empty_list_is_refused(tmp_path):
    root = write(tmp_path)
    (root / "ImageList/TrainImagelist.txt").write_text("\n")
    assert "TrainImagelist.txt lists no image" in refusal(root)


def test_missing_files_and_folders_are_told(tmp_path):
    root = write(tmp_path)
    labels_of(root, "cat", "Test").unlink()
    assert "'Labels_cat_Test.txt' is missing from" in refusal(root)
    labels_of(root, "cat").unlink()
    (root / "ConceptsList").mkdir()
    (root / "ConceptsList/Concepts81.txt").write_text("cat\nsky\n")
    assert "2 problems" in refusal(root)
    (root / "ConceptsList/Concepts81.txt").unlink()
    (root / "Flickr/zoo/0001_12.jpg").unlink()
    assert "TrainImagelist.txt, row 2: no such file" in refusal(root)
    dataset = NusWideData(root=str(root), check_files=False).load()
    assert dataset.categories == ("sky",)
    (root / "Flickr").rename(root / "Photos")
    message = refusal(root)
    assert "Flickr: no such file or folder" in message
    assert "Photos" in message
    (root / "ImageList").rename(root / "Lists")
    assert "ImageList: no such file or folder" in refusal(root)
    for path in (root / "Groundtruth/TrainTestLabels").iterdir():
        path.unlink()
    (root / "Lists").rename(root / "ImageList")
    assert "no file like Labels_airport_Train.txt" in refusal(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("nuswide"))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), file=st.sampled_from(["ImageList/TrainImagelist.txt", "labels"]))
def test_damaged_bytes_give_a_data_set_or_a_data_error(folder, data, file):
    path = labels_of(folder) if file == "labels" else folder / file
    sound = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(sound)))
        check_sound_or_refused(NusWideData(root=str(folder), check_files=data.draw(st.booleans())).load)
    finally:
        path.write_bytes(sound)
