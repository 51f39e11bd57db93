import importlib
import inspect
import re

import pytest

from cftjax import cli, recipes, sweep
from cftjax.default import get_config

# What makes a recipe small, by the names that its docstring gives.
SMALL = ["--backbone.name", "--data.image-size", "--training.max-steps", "--ga.num-generations"]
EVERY_RECIPE = pytest.mark.parametrize("name", recipes.names())


def parse(words, **options):
    return cli.parse("", get_config, words, **options)


def docstring(name):
    return inspect.getdoc(importlib.import_module(f"cftjax.recipes.{name}"))


def test_there_is_a_recipe_for_every_data_set_with_one():
    assert recipes.names() == ["chexpert", "coco2014_partial", "csv", "digits", "openimages_v3", "voc2007"]


@EVERY_RECIPE
@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_the_help_of_every_recipe_names_the_options_that_make_it_small(name, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse([name, option])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert [option for option in SMALL if option not in shown] == []
    words = " ".join(docstring(name).split())
    assert name == "digits" or all(f"{option} " in words for option in SMALL)


@EVERY_RECIPE
def test_the_commands_of_every_recipe_are_understood(name):
    kinds = {"train": cli.Experiment, "sweep": sweep.Sweep}
    commands = re.findall(r"^ *cftjax (\w+) (.+)$", docstring(name), re.MULTILINE)
    assert commands
    for command, words in commands:
        assert words.split()[0] == name
        experiment = parse(words.split(), kind=kinds[command])
        if command == "sweep":
            sweep.check(experiment)


@EVERY_RECIPE
def test_the_size_of_images_has_one_name_whatever_the_data(name):
    assert parse([name, "--data.image-size", "64"]).config.backbone.image_size == 64
    with pytest.raises(SystemExit):
        parse([name, "--backbone.image-size", "64"])


@EVERY_RECIPE
def test_a_printed_recipe_is_a_configuration(name, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(inspect.getsource(importlib.import_module(f"cftjax.recipes.{name}")))
    assert cli.read_config(file) == recipes.read(name)
