"""What a newcomer adds keeps a contract, and so does every member that there is (docs/contributing.md)."""

import dataclasses
import importlib
import pkgutil

import pytest

from cftjax import backbones, data, types
from cftjax.input.preprocessing import Preprocessing

SOURCES = {
    name: kind
    for module in pkgutil.iter_modules(data.__path__)
    if module.name != "__main__"
    for name, kind in vars(importlib.import_module(f"cftjax.data.{module.name}")).items()
    if isinstance(kind, type) and name.endswith("Data") and kind.__module__ == f"cftjax.data.{module.name}"
}


def test_every_source_of_the_documentation_is_found():
    assert {"CheXpertData", "CocoData", "DigitsData", "LvisData", "NusWideData", "TableData", "TfdsData"} < set(SOURCES)
    assert {"OpenImagesData", "VocData"} < set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_source_is_a_frozen_dataclass_that_loads(name):
    kind = SOURCES[name]
    assert kind.__dataclass_params__.frozen
    assert issubclass(kind, types.DataSource)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    # Options of the command line: each can be left out, and its docstring is its help.
    assert all(
        f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING for f in fields.values()
    )
    if "check_files" in fields:
        assert fields["check_files"].default is True
    assert types.scene_size(kind()) == (fields["scene_size"].default if "scene_size" in fields else None)


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_a_shape_of_a_backbone_knows_its_preprocessing_and_where_its_weights_belong(name):
    family, shape = backbones.BACKBONES[name]
    assert isinstance(shape, backbones.NetworkShape)
    assert shape.__dataclass_params__.frozen
    assert isinstance(shape.preprocessing, Preprocessing)
    for table in family.weight_tables(shape):
        paths = [row.path for row in table.rows]
        assert len(paths) == len(set(paths)) > 5
