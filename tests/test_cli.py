import pytest

from cftjax import cli
from cftjax.default import get_config


def test_what_happens_to_bad_images_is_an_option_of_the_data():
    experiment = cli.parse("", get_config, ["--data.on-bad-image", "skip"])
    assert experiment.config.input.on_bad_image == "skip"
    assert cli.parse("", get_config, []).config.input.on_bad_image == "raise"


@pytest.mark.parametrize("words", [["--input.on-bad-image", "skip"], ["--data.on-bad-imag", "skip"]])
def test_other_names_of_that_option_are_refused_with_the_right_one(words, capsys):
    with pytest.raises(SystemExit):
        cli.parse("", get_config, words)
    assert "--data.on-bad-image {raise,skip}" in capsys.readouterr().err
