import re
from pathlib import Path

import pytest

from cftjax import cli, sweep
from cftjax.default import get_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
# What makes a recipe small, by the names that its docstring gives.
SMALL = ["--backbone.name", "--data.image-size", "--training.max-steps", "--ga.num-generations"]


def parse(words, **options):
    return cli.parse("", get_config, words, **options)


def docstring(path):
    return path.read_text().split('"""')[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_help_of_every_recipe_names_the_options_that_make_it_small(path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse([str(path), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert [option for option in SMALL if option not in shown] == []
    words = " ".join(docstring(path).split())
    assert path.stem == "digits" or all(f"{option} " in words for option in SMALL)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_commands_of_every_recipe_are_understood(path, monkeypatch):
    monkeypatch.chdir(path.parent.parent)
    kinds = {"train": cli.Experiment, "sweep": sweep.Sweep}
    commands = re.findall(r"^ *python -m cftjax\.(\w+) (.+)$", docstring(path), re.MULTILINE)
    assert commands
    for name, words in commands:
        assert words.split()[0] == f"configs/{path.name}"
        experiment = parse(words.split(), kind=kinds[name])
        if name == "sweep":
            sweep.check(experiment)


def test_the_size_of_images_has_one_name_whatever_the_data():
    for path in CONFIGS:
        assert parse([str(path), "--data.image-size", "64"]).config.backbone.image_size == 64
        with pytest.raises(SystemExit):
            parse([str(path), "--backbone.image-size", "64"])
