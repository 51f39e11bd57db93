import re

import pytest

from cftjax import cli, options
from cftjax.config import Config
from cftjax.data.digits import DigitsData
from cftjax.default import get_config


def parse(*words):
    return cli.parse("", get_config, words)


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 0
    return capsys.readouterr()


def test_the_short_help_begins_with_data_backbone_and_training(capsys):
    shown = help_of(capsys, "csv", "--help").out
    sections = re.findall(r"^\W+(\w+) options\W", shown, re.MULTILINE)
    assert sections[:4] == ["data", "backbone", "training", "labels"]
    assert "--help-all lists every option" in shown
    for option in ("--data.file", "--backbone.weights", "--training.learning-rate", "--workdir", "-o"):
        assert option in shown
    for option in ("--training.layer-decay", "--polish.l2", "--coordinator"):
        assert option not in shown


def test_the_whole_help_has_every_option_and_what_it_means(capsys):
    shown = help_of(capsys, "csv", "--help-all")
    assert shown.err == ""
    for option in ("--data.file", "--training.layer-decay", "--polish.l2", "--coordinator", "--order"):
        assert option in shown.out
    assert len(help_of(capsys, "csv", "--help").out.splitlines()) < len(shown.out.splitlines()) / 2


def test_the_short_help_keeps_words_and_defaults(capsys):
    shown = help_of(capsys, "csv", "--training.epochs", "3", "--help")
    assert shown.err == ""
    assert "Passes over the training split. (default: 30)" in shown.out
    assert "The folder of the run" in shown.out


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["--lr", "0.1"], "--training.learning-rate"),
        (["--lr=0.1"], "--training.learning-rate"),
        (["--epochs", "3"], "--training.epochs"),
        (["--gpu", "0"], "CUDA_VISIBLE_DEVICES"),
        (["--device", "cpu"], "JAX_PLATFORMS=cpu"),
        (["--output", "x"], "--workdir, or -o"),
        (["--resume"], "goes on where it stood"),
    ],
)
def test_options_of_other_programs_are_answered_with_the_option_meant(typed, answer):
    with pytest.raises(ValueError, match=re.escape(answer)):
        parse(*typed)


def test_every_option_that_is_meant_exists(capsys):
    shown = help_of(capsys, "--help-all").out
    for meant in set(options.MEANT.values()):
        if meant.startswith("--"):
            option, *_ = meant.replace(",", " ").split()
            assert f"{option} " in shown


def test_an_option_of_a_recipe_without_the_recipe_says_what_to_type():
    with pytest.raises(ValueError, match=r"the recipe csv, and none is named: .* csv --data\.file x\.csv"):
        parse("--data.file", "x.csv")
    with pytest.raises(
        ValueError, match=r"recipes chexpert, coco2014_partial, openimages_v3, voc2007, .*--data\.root x"
    ):
        parse("--data.root=x")


def test_a_table_in_the_place_of_a_recipe_says_what_to_type():
    with pytest.raises(ValueError, match=re.escape("csv --data.file labels.csv")):
        parse("labels.csv")


def test_a_mistyped_recipe_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no recipe chexprt; did you mean chexpert\?"):
        parse("chexprt")
    with pytest.raises(ValueError, match=r"no recipe zzz; there are chexpert, .*voc2007, or a file that ends in \.py"):
        parse("zzz")


def test_the_folder_of_a_run_is_an_output():
    assert parse("-o", "here").workdir == cli.Path("here")
    assert parse("digits").workdir == cli.Path("runs/digits")


def test_a_configuration_is_still_one_of_the_tuning_and_of_the_images():
    config = parse("--ga.num-generations", "7", "--split.validation-share", "0.2").config
    assert type(config) is Config
    assert isinstance(config.data, DigitsData)
    assert (config.ga.num_generations, config.split.validation_share) == (7, 0.2)
