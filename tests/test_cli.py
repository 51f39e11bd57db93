import os
import platform
import subprocess
import sys
import warnings

import jax
import pytest

from cftjax import cli
from cftjax.default import get_config
from cftjax.runtime import devices


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

if sys.argv[1].startswith("keep"):
    assert devices.keep_freed_memory()
np.ones(2**26, np.uint8)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    if sys.argv[1] == "keep until given back":
        devices.give_back_freed_memory()
    np.ones(2**26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_and_used_again_until_it_is_given_back():
    def faults(word):
        environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
        command = [sys.executable, "-c", FAULTS, word]
        return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)

    # However large the system's pages are.
    kept = faults("keep")
    assert 10 * kept < faults("give back")
    assert 10 * kept < faults("keep until given back")


def test_memory_that_is_full_or_too_small_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)

    def exhausted():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nand more")

    def small():
        raise AssertionError("begins")

    for main, limit, words in (
        (exhausted, -1, "not enough memory (RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.): smaller batches"),
        (small, 1_024_000_000, "this shell allows 1.0 GB of address space, and JAX and its threads take more than 2"),
    ):
        monkeypatch.setattr(devices.resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        with pytest.raises(SystemExit) as stopped:
            cli.run(main)
        assert stopped.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_an_empty_or_relative_cache_folder_counts_as_not_set(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(cli.Path, "home", lambda: tmp_path)
    seen = []
    monkeypatch.setattr(cli.jax.config, "update", lambda name, value: seen.append(value))
    for value, folder in (("", tmp_path / ".cache"), ("here", tmp_path / ".cache"), ("/there", cli.Path("/there"))):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        cli.use_compilation_cache()
        assert seen[-2] == str(folder / "cftjax" / "jax")
