import os
import platform
import subprocess
import sys
import warnings

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


def test_a_warning_is_one_line_without_its_place_in_the_code(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.run(lambda: warnings.warn("no training image has a label for bird.", stacklevel=1))
    assert capsys.readouterr().err == "cftjax: warning: no training image has a label for bird.\n"


def test_what_the_user_can_mend_is_one_line_and_no_traceback(capsys, monkeypatch):
    monkeypatch.delenv("CFTJAX_TRACEBACK", raising=False)
    for kind in (ValueError, OSError, ImportError):

        def fail(kind=kind):
            raise kind("a.dcm: run pip install")

        with pytest.raises(SystemExit) as stopped:
            cli.run(fail)
        assert stopped.value.code == 1
        assert capsys.readouterr().err == "cftjax: error: a.dcm: run pip install\n"


FAULTS = """
import resource
import sys

import numpy as np

from cftjax.runtime import devices

if sys.argv[1] == "keep":
    assert devices.keep_freed_memory()
np.ones(2**26, np.uint8)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_and_used_again():
    def faults(word):
        environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
        command = [sys.executable, "-c", FAULTS, word]
        return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)

    # However large the system's pages are.
    assert 10 * faults("keep") < faults("give back")
