import os
import signal
import threading

import pytest

from cftjax import cli
from cftjax.runtime import interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_its_code_and_how_to_go_on(number, code, monkeypatch, capsys):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: os.kill(os.getpid(), number))
    assert stopped.value.code == code
    assert capsys.readouterr().err == "\nStopped. The same command goes on from here.\n"
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_put_off_is_obeyed_when_the_work_is_saved(number, code, monkeypatch, capsys):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    saved = []

    def work():
        with interruption.deferred() as asked:
            os.kill(os.getpid(), number)
            saved.append(asked.requested)
            asked.stop("it is saved")

    with pytest.raises(SystemExit) as stopped:
        cli.run(work)
    assert (saved, stopped.value.code) == ([True], code)
    assert capsys.readouterr().err == "\nStopped: it is saved; the same command goes on from there.\n"


def test_the_first_signal_says_what_will_happen_and_the_second_does_not_wait(capfd):
    with interruption.deferred() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.requested
        with pytest.raises(interruption.Terminated, match="at the second signal, without saving"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert "a second signal stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_than_the_main_one_works_without_handlers():
    found = []

    def work():
        with interruption.deferred() as asked:
            found.append((asked.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]
