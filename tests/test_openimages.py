import csv
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cftjax.data import openimages
from cftjax.data.openimages import OpenImagesData
from cftjax.data.reading.problems import DataError

CATEGORIES = ["/m/0c", "/m/0a", "/m/0b", "/m/0d"]
TRAIN = """ImageID,Source,LabelName,Confidence
00f3,verification,/m/0a,1
00f3,verification,/m/0b,0
00f3,crowdsource-verification,/m/0x,1
000a,verification,/m/0c,1
0b_1,verification,/m/0x,0
00f3,crowdsource-verification,/m/0d,1
000a,verification,/m/0d,0
000a,crowdsource-verification,/m/0d,1
00f3,crowdsource-verification,/m/0a,1
00c7,verification,/m/0b,1
"""
# By hand: images ascending; 0b_1 has no trainable label; /m/0d of 000a was told both ways.
NAMES = ["train/000a.jpg", "train/00c7.jpg", "train/00f3.jpg"]
VALUES = np.array([[1, np.nan, np.nan, -1], [np.nan, np.nan, 1, np.nan], [np.nan, 1, 0, 1]])
TEST = "ImageID,Source,LabelName,Confidence\n00ee,verification,/m/0c,0\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes-trainable.txt").write_text("\n".join(CATEGORIES) + "\n")
    for split, content, images in (("train", TRAIN, ["000a", "00c7", "00f3"]), ("test", TEST, ["00ee"])):
        (tmp_path / split).mkdir()
        (tmp_path / split / "annotations-human.csv").write_text(content)
        for grey, image in enumerate(images):
            Image.fromarray(np.full((8, 8), 40 * grey, np.uint8)).save(tmp_path / split / f"{image}.jpg")
    return tmp_path


def train(root, content, **options):
    content = content.encode() if isinstance(content, str) else content
    (root / "train" / "annotations-human.csv").write_bytes(content)
    return OpenImagesData(str(root), **options).load().splits["train"]


def refused(root, content=TRAIN, **options):
    with pytest.raises(DataError) as caught:
        train(root, content, **options)
    return str(caught.value)


def values_of(labels):
    return np.where(labels.known, labels.labels, np.where(labels.uncertain, -1, np.nan))


def assert_is_the_table(records):
    assert list(records.names) == NAMES
    np.testing.assert_array_equal(values_of(records.labels[:]), VALUES)


def test_images_labels_and_splits_are_those_of_the_files(root):
    dataset = OpenImagesData(str(root)).load()
    assert dataset.categories == tuple(CATEGORIES)
    assert list(dataset.splits) == ["train", "test"]
    assert_is_the_table(dataset.splits["train"])
    np.testing.assert_array_equal(values_of(dataset.splits["test"].labels[:]), [[0, np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(dataset.splits["train"].image(1), np.full((8, 8, 3), 40, np.uint8))
    names = dataset.splits["train"].names
    assert [names[-1], *names[:2], names[1]] == [NAMES[2], *NAMES[:2], NAMES[1]]


@pytest.mark.parametrize("line", ["{},Name of it", "{};Name", "{}\tName; of, it", '"{}","Name"', "{}"])
def test_categories_may_have_their_names_beside_them(root, line):
    (root / "classes-trainable.txt").write_text("\n".join(line.format(name) for name in CATEGORIES) + "\n")
    dataset = OpenImagesData(str(root)).load()
    assert dataset.categories == tuple(CATEGORIES)
    assert_is_the_table(dataset.splits["train"])


def test_a_list_of_categories_that_is_none_is_refused_in_one_line(root):
    (root / "classes-trainable.txt").write_text("Dog;Hund\nCat;Katze\n")
    message = refused(root)
    assert "row 1: 'Dog;Hund' is no category (2 such lines); write one id a line, as in /m/0bt9lr" in message
    (root / "classes-trainable.txt").write_text("Dog\nCat\n")
    message = refused(root)
    assert "none of the categories, such as 'Dog', is among its labels, such as '/m/0a'" in message


def test_images_under_another_suffix_are_named_once(root):
    for image in ("000a", "00c7"):
        (root / "train" / f"{image}.jpg").rename(root / "train" / f"{image}.JPG")
    message = refused(root)
    assert "train/000a.JPG is there, with the suffix in other case (and 1 more in the same way)" in message


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TRAIN.encode(),
        TRAIN.replace("\n", "\r\n"),
        TRAIN.replace("\n", "\n\n", 4).rstrip(),
        "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in TRAIN.splitlines()),
        "\n".join(",".join(line.split(",")[::-1]) for line in TRAIN.splitlines()),
        "\n".join([TRAIN.splitlines()[0], *TRAIN.splitlines()[:0:-1]]),
    ],
    ids=["byte order mark", "CRLF", "blank lines", "quotes", "columns in another order", "rows in another order"],
)
def test_other_ways_to_write_the_same_table_give_the_same_data(root, content):
    fingerprint = OpenImagesData(str(root)).load().fingerprint
    assert_is_the_table(train(root, content))
    assert OpenImagesData(str(root)).load().fingerprint == fingerprint


def test_a_table_of_many_blocks_is_read_like_a_short_one(root, monkeypatch):
    rng = np.random.default_rng(0)
    rows = {(f"{image:04x}", CATEGORIES[c]): int(v) for image, c, v in rng.integers([900, 4, 2], size=(3000, 3))}
    content = ["ImageID,Source,LabelName,Confidence"] + [f"{i},verification,{c},{v}" for (i, c), v in rows.items()]
    monkeypatch.setattr(openimages, "BLOCK_BYTES", 1000)
    records = train(root, "\n".join(content), check_files=False)
    images = sorted({image for image, _ in rows})
    expected = np.full((len(images), 4), np.nan)
    for (image, category), value in rows.items():
        expected[images.index(image), CATEGORIES.index(category)] = value
    assert list(records.names) == [f"train/{image}.jpg" for image in images]
    np.testing.assert_array_equal(values_of(records.labels[:]), expected)


def test_of_a_part_of_the_set_only_images_that_are_there_may_be_used(root):
    (root / "train" / "00c7.jpg").unlink()
    assert "no such file" in refused(root)
    records = train(root, TRAIN, only_present=True)
    assert list(records.names) == [NAMES[0], NAMES[2]]
    np.testing.assert_array_equal(values_of(records.labels[:]), VALUES[[0, 2]])
    assert_is_the_table(train(root, TRAIN, check_files=False))


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("LabelName", "Label", ["train/annotations-human.csv", "column LabelName", "nearest is Label"]),
        ("/m/0b,0", "/m/0b,0.7", ["row 3", "column Confidence", "'0.7'", "no verified label"]),
        ("/m/0b,0", "/m/0b,", ["row 3", "column Confidence", "''"]),
        ("/m/0b,0", "/m/0b,-1", ["row 3", "column Confidence", "'-1'"]),
        ("00c7", "../00c7", ["row 11", "column ImageID", "'../00c7'"]),
        ("00c7", "", ["row 11", "column ImageID"]),
        ("00c7", "00c8", ["no such file", "00c8.jpg"]),
        ("00f3,verification,/m/0b,0", "00f3,/m/0b,0", ["row 3", "3 cells where the header has 4"]),
        ("00c7", "00c\xfc", ["line 11", "not UTF-8"]),
        ("00c7,", "00c\xfc", ["line 11", "not UTF-8"]),
        ("00c7,verification,/m/0b,1\n", "00c\xd6", ["line 11", "not UTF-8"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(root, old, new, parts):
    message = refused(root, TRAIN.replace(old, new).encode("latin1"))
    for part in [str(root), *parts]:
        assert part in message


def test_row_numbers_hold_after_blank_and_broken_rows(root, monkeypatch):
    monkeypatch.setattr(openimages, "BLOCK_BYTES", 120)
    lines = TRAIN.splitlines()
    lines[2:2] = ["", "broken,row", "", "another,broken,row"]
    lines += [*lines[7:], "00f3,verification,/m/0b,7"]
    message = refused(root, "\n".join(lines))
    assert "row 4: 2 cells" in message
    assert "row 6: 3 cells" in message
    assert f"row {len(lines)}, column Confidence" in message


def test_a_file_that_is_no_table_is_given_up_early(root):
    content = "ImageID,Source,LabelName,Confidence\n" + "no,table\n" * 5000
    message = refused(root, content)
    assert "1000 problems" in message
    assert "row 21: 2 cells" in message


def test_a_file_without_rows_leaves_an_empty_split(root):
    assert "no image of the train split is left" in refused(root, TRAIN.splitlines()[0])
    assert "empty" in refused(root, "")


@pytest.mark.parametrize(
    ("content", "part"), [("", "no category"), ("/m/0a\n/m/0b\n/m/0a\n", "'/m/0a' is listed twice")]
)
def test_wrong_lists_of_categories_are_refused(root, content, part):
    (root / "classes-trainable.txt").write_text(content)
    assert part in refused(root)


def test_missing_files_and_folders_are_named(root):
    (root / "train" / "annotations-human.csv").rename(root / "train" / "annotations.csv")
    with pytest.raises(DataError, match=r"no such file.*has annotations\.csv"):
        OpenImagesData(str(root)).load()
    with pytest.raises(DataError, match="no such file"):
        OpenImagesData(str(root / "none")).load()


def test_a_category_without_any_label_is_named_in_a_warning(root):
    (root / "classes-trainable.txt").write_text("\n".join([*CATEGORIES, "/m/0z"]))
    with pytest.warns(UserWarning, match="no training image has a label for /m/0z"):
        assert train(root, TRAIN).labels.shape == (3, 5)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore:.*no training image has a label")
def test_damaged_tables_give_data_or_a_clean_error(root, data):
    content = bytearray(TRAIN.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 4)))
        content[start:end] = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from([b",", b'"', b"\n", b"0"])))
    try:
        records = train(root, bytes(content), check_files=False)
    except DataError:
        return
    assert records.labels.shape == (len(records), 4)
    assert all(openimages.ID_PATTERN.fullmatch(name[6:-4]) for name in records.names)


def test_what_the_reader_keeps_agrees_with_pythons_own_reader(root):
    found = {}
    for row in csv.DictReader(TRAIN.splitlines()):
        found.setdefault((row["ImageID"], row["LabelName"]), set()).add(row["Confidence"])
    labels = OpenImagesData(str(root)).load().splits["train"].labels
    counts = np.array([labels.counts().positive, labels.counts().negative, labels.counts().uncertain])
    for category, kind in itertools.product(range(4), range(3)):
        told = [{"1"}, {"0"}, {"0", "1"}][kind]
        expected = sum(said == told for (_, name), said in found.items() if name == CATEGORIES[category])
        assert counts[kind, category] == expected
