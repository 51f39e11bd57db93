import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cftjax.data import chexpert
from cftjax.data.chexpert import CheXpertData
from cftjax.data.reading.problems import DataError

HEADER = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.FINDINGS])
# Blank, uncertain, positive and negative cells of one training row, in the order of the findings.
CELLS = ["", "-1.0", "1.0", "0.0", "", "-1.0", "1.0", "0.0", "", "-1.0", "1.0", "0.0", "", "1.0"]
TRAIN = [
    ("patient00002/study2/view1_frontal", "Frontal", CELLS),
    ("patient00002/study10/view1_frontal", "Frontal", CELLS[::-1]),
    ("patient00002/study10/view2_lateral", "Lateral", CELLS[::-1]),
    ("patient64534/study1/view1_frontal", "Frontal", ["0.0"] * 14),
]
VALID = [
    ("patient64541/study1/view1_frontal", "Frontal", ["1.0"] * 14),
    ("patient64542/study1/view1_lateral", "Lateral", ["0.0"] * 14),
]
TEST = [("patient64741/study1/view1_frontal", "Frontal", ["0.0"] * 7 + ["1.0"] * 7)]


def lines(split, rows, prefix="CheXpert-v1.0-small/"):
    return [HEADER] + [
        f"{prefix}{split}/{path}.jpg,Female,68,{view},AP,{','.join(cells)}" for path, view, cells in rows
    ]


def write(root, name, content):
    (root / name).write_text("\n".join(content) + "\n")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    grey = 0
    for split, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        for path, _, _ in rows:
            file = root / split / f"{path}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), grey, np.uint8)).save(file)
            grey += 30
    write(root, "train.csv", lines("train", TRAIN))
    write(root, "valid.csv", lines("valid", VALID))
    return root


def values_of(records):
    labels = records.labels
    return np.where(labels.known, labels.labels, np.where(labels.uncertain, -1, np.nan))


def numbers(rows):
    return np.array([[float(cell or "nan") for cell in cells] for _, _, cells in rows])


def refused(root, **options):
    with pytest.raises(DataError) as caught:
        CheXpertData(str(root), **options).load()
    return str(caught.value)


def test_the_release_gives_train_and_test_with_labels_patients_and_images(root):
    dataset = CheXpertData(str(root)).load()
    assert dataset.categories == chexpert.FINDINGS
    assert list(dataset.splits) == ["train", "test"]
    train, test = dataset.splits["train"], dataset.splits["test"]
    np.testing.assert_array_equal(values_of(train), numbers(TRAIN))
    np.testing.assert_array_equal(values_of(test), numbers(VALID))
    assert list(train.names) == [f"train/{path}.jpg" for path, _, _ in TRAIN]
    assert train.groups.tolist() == [2, 2, 2, 64534]
    np.testing.assert_array_equal(train.image(2), np.full((8, 8, 3), 60, np.uint8))


def test_the_folder_above_and_a_renamed_folder_give_the_same_data(root, tmp_path):
    fingerprint = CheXpertData(str(root)).load().fingerprint
    assert CheXpertData(str(tmp_path)).load().fingerprint == fingerprint
    renamed = root.rename(tmp_path / "xrays")
    assert CheXpertData(str(renamed)).load().fingerprint == fingerprint


@pytest.mark.parametrize("prefix", ["", "CheXpert-v1.0/", "./", "/data/CheXpert-v1.0-small/"])
def test_every_form_of_path_gives_the_same_data(root, prefix):
    fingerprint = CheXpertData(str(root)).load().fingerprint
    write(root, "train.csv", lines("train", TRAIN, prefix))
    assert CheXpertData(str(root)).load().fingerprint == fingerprint


def test_five_findings_are_the_columns_of_that_name_in_the_competitions_order(root):
    dataset = CheXpertData(str(root), findings="five").load()
    assert dataset.categories == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    columns = [chexpert.FINDINGS.index(name) for name in dataset.categories]
    np.testing.assert_array_equal(values_of(dataset.splits["train"]), numbers(TRAIN)[:, columns])


@pytest.mark.parametrize(("views", "rows"), [("frontal", [0, 1, 3]), ("lateral", [2])])
@pytest.mark.parametrize("with_column", [True, False])
@pytest.mark.filterwarnings("ignore:.*no training image has a label")
def test_views_are_chosen_by_the_column_or_by_the_file_name(root, views, rows, with_column):
    if not with_column:
        for name in ("train.csv", "valid.csv"):
            write(root, name, [line.replace("Frontal/Lateral", "X") for line in (root / name).read_text().splitlines()])
    dataset = CheXpertData(str(root), views=views).load()
    train = dataset.splits["train"]
    np.testing.assert_array_equal(values_of(train), numbers(TRAIN)[rows])
    np.testing.assert_array_equal(train.image(0), np.full((8, 8, 3), 30 * rows[0], np.uint8))
    assert len(dataset.splits["test"]) == 1


def test_a_test_file_with_labels_makes_valid_the_validation_split(root):
    write(root, "test.csv", lines("test", TEST, prefix=""))
    dataset = CheXpertData(str(root)).load()
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 1,
    }
    np.testing.assert_array_equal(values_of(dataset.splits["test"]), numbers(TEST))
    np.testing.assert_array_equal(values_of(dataset.splits["validation"]), numbers(VALID))


@pytest.mark.parametrize(
    "content",
    [["Path", "test/patient64741/study1/view1_frontal.jpg"], lines("test", [(TEST[0][0], "Frontal", [""] * 14)], "")],
    ids=["no columns", "blank columns"],
)
def test_a_test_file_without_labels_is_left_alone(root, content):
    write(root, "test.csv", content)
    assert list(CheXpertData(str(root)).load().splits) == ["train", "test"]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("Edema", "Oedema", ["column Edema", "train.csv", "nearest is Oedema"]),
        ("patient64534/study1", "patient64534/study7", ["train.csv, row 5", "column Path", "no such file"]),
        ("train/patient64534/study1", "train/64534", ["train.csv, row 5", "is no CheXpert path"]),
        ("study10/view2_lateral", "study10/view1_frontal", ["train.csv, row 4", "second time, after train.csv, row 3"]),
        ("train/patient64534/study1/view1_frontal", "valid/patient64541/study1/view1_frontal", ["valid.csv, row 2"]),
        ("Frontal,AP,,-1.0,", "Frontal,AP,,-2,", ["train.csv, row 2", "column Enlarged Cardiomediastinum", "'-2'"]),
        ("Frontal,AP,,", "Frontal,", ["train.csv, row 2", "17 cells where the header has 19"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(root, old, new, parts):
    content = (root / "train.csv").read_text()
    assert content.count(old) == 1
    (root / "train.csv").write_text(content.replace(old, new))
    message = refused(root)
    for part in parts:
        assert part in message


def test_problems_of_all_tables_come_in_one_message(root):
    for name in ("train.csv", "valid.csv"):
        (root / name).write_text((root / name).read_text().replace("view1_frontal", "view1_oblique"))
    message = refused(root, views="frontal")
    assert "train.csv, row 2" in message
    assert "valid.csv, row 2" in message


def test_a_view_that_is_neither_is_refused_only_where_views_are_chosen(root):
    (root / "train.csv").write_text((root / "train.csv").read_text().replace(",Lateral,AP,", ",Oblique,AP,"))
    assert "train.csv, row 4, column Frontal/Lateral: 'Oblique' is no view" in refused(root, views="frontal")
    assert len(CheXpertData(str(root)).load().splits["train"]) == 4


def test_a_split_without_the_wanted_view_is_refused(root):
    write(root, "valid.csv", lines("valid", VALID[:1]))
    assert "valid.csv has no lateral view" in refused(root, views="lateral")


def test_other_folders_are_refused_with_what_they_hold(root, tmp_path):
    assert "train.csv: no such file" in refused(root / "valid")
    assert "no such file or folder" in refused(tmp_path / "elsewhere")
    (tmp_path / "CheXpert-v1.0").mkdir()
    (tmp_path / "CheXpert-v1.0" / "train.csv").touch()
    assert "name one of them" in refused(tmp_path)
    (root / "valid.csv").unlink()
    assert "valid.csv" in refused(root)


def test_studies_are_those_of_the_paths():
    names = [
        "train/patient00002/study2/view1_frontal.jpg",
        "x/valid/patient1/study10/view2_lateral.jpg",
        "patient3/study4",
    ]
    assert chexpert.studies(names).tolist() == ["patient00002/study2", "patient1/study10", "patient3/study4"]
    with pytest.raises(ValueError, match="holds no study"):
        chexpert.studies(["a.jpg"])


def test_scores_per_study_are_the_greatest_or_the_mean_of_its_views():
    scores = np.array([[1.0, -5.0], [2.0, 0.0], [4.0, -1.0], [-3.0, 7.0]])
    owner = np.array(["b/1", "a/1", "b/1", "b/2"])
    greatest, names = chexpert.aggregate(scores, owner, "max")
    assert names.tolist() == ["a/1", "b/1", "b/2"]
    np.testing.assert_array_equal(greatest, [[2, 0], [4, -1], [-3, 7]])
    np.testing.assert_array_equal(chexpert.aggregate(scores, owner, "mean")[0], [[2, 0], [2.5, -3], [-3, 7]])
    with pytest.raises(ValueError, match="one study for each row"):
        chexpert.aggregate(scores, owner[:3])


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore:.*no training image has a label")
def test_damaged_tables_give_data_or_a_clean_error(root, data):
    content = bytearray("\n".join(lines("train", TRAIN)).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 4)))
        content[start:end] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b",", b'"', b"\n", b"/", b"1"]))
        )
    (root / "train.csv").write_bytes(content)
    try:
        train = (
            CheXpertData(str(root), findings=data.draw(st.sampled_from(["five", "fourteen"]))).load().splits["train"]
        )
    except DataError:
        return
    assert train.image(len(train) - 1).shape == (8, 8, 3)
