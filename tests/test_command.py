"""The command `cftjax`."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from cftjax import __main__ as command
from cftjax import extras

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def call(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cftjax", *words])
    try:
        command.main()
    except SystemExit as stopped:
        return stopped.code, capsys.readouterr()
    return 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "usage: cftjax COMMAND"),
        (["--help"], 0, "cftjax COMMAND --help lists the options of a command"),
        (["--version"], 0, f"cftjax {PROJECT['version']}\n"),
        (["trian"], 2, "no command 'trian'; did you mean cftjax train?"),
        (["x"], 2, "no command 'x'; there are train, finetune"),
        (["train", "--gpu"], 1, "cftjax train --help lists the options"),
        (["data", "summary", "--data.file", "x.csv"], 1, "cftjax data summary csv --data.file x.csv"),
        (["predict", "--help"], 0, "usage: cftjax predict"),
        (["export", "--help"], 0, "-o"),
        (["recipes"], 0, "CheXpert: unknown findings count as negative"),
        (["recipes", "csv"], 0, "def get_config() -> Config[TableData]:"),
        (["recipes", "cvs"], 1, "no recipe cvs; cftjax has csv"),
    ],
)
def test_words_are_understood_or_answered(capsys, monkeypatch, words, code, said):
    ended, shown = call(capsys, monkeypatch, *words)
    assert (ended, said in shown.out + shown.err) == (code, True)


def test_every_command_has_a_short_help(capsys, monkeypatch):
    for name in command.COMMANDS:
        code, shown = call(capsys, monkeypatch, name, "--help")
        assert (name, code) == (name, 0)
        assert f"usage: cftjax {name}" in shown.out


def test_the_script_of_the_wheel_is_this_command():
    assert PROJECT["scripts"] == {"cftjax": f"{command.__name__}:{command.main.__name__}"}


def test_what_installs_an_extra_needs_no_index_that_has_cftjax():
    assert extras.install("hub") == "pip install 'huggingface_hub>=0.30'"
    assert extras.install("no such") == "pip install 'cftjax[no such]'"


def test_without_an_installed_cftjax_an_extra_is_installed_from_its_folder(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert extras.install("onnx") == "pip install -e '.[onnx]' in the folder of cftjax"
