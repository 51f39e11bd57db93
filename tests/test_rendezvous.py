import socket
import threading
import time

import pytest

from cftjax.config import Config, HostsConfig
from cftjax.runtime import hosts, rendezvous
from cftjax.runtime.rendezvous import Place

SAME = {"command": "train", "seed": 0, "data": {"root": "a"}}


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def meet(place, statements):
    """What every host of those given hears, by its number, and the seconds that all took."""
    heard, began = {}, time.monotonic()

    def go(index, statement):
        try:
            rendezvous.meet(place, index, statement)
            heard[index] = ""
        except ValueError as error:
            heard[index] = str(error)

    threads = [threading.Thread(target=go, args=each) for each in statements]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard, time.monotonic() - began


def test_hosts_that_were_started_alike_go_on(port):
    heard, seconds = meet(Place("127.0.0.1", port, 3, 10.0), [(2, SAME), (0, SAME), (1, SAME)])
    assert heard == {0: "", 1: "", 2: ""}
    assert seconds < 5
    # The port is free for what comes next.
    rendezvous.listen(port).close()


def test_hosts_that_differ_all_hear_in_what(port):
    heard, _ = meet(Place("127.0.0.1", port, 2, 10.0), [(0, SAME), (1, SAME | {"seed": 5, "data": {"root": "b"}})])
    assert (
        heard[0] == heard[1] == "host 1 differs from host 0 in seed: 0 -> 5, data.root: a -> b: give all hosts the same"
    )


def test_a_host_that_does_not_come_is_named_on_those_that_did(port):
    heard, seconds = meet(Place("127.0.0.1", port, 3, 1.0), [(0, SAME), (2, SAME)])
    assert heard[0] == heard[2]
    assert "host 1 of 3 has not come to 127.0.0.1" in heard[0]
    assert "start the same command on every host" in heard[0]
    assert 0.9 < seconds < 4


def test_a_first_host_that_does_not_come_is_said(port):
    heard, _ = meet(Place("127.0.0.1", port, 2, 0.5), [(1, SAME)])
    assert "the first host has not been reached at 127.0.0.1" in heard[1]


def test_two_hosts_of_one_number_and_other_numbers_of_hosts_are_refused(port):
    heard, _ = meet(Place("127.0.0.1", port, 3, 5.0), [(0, SAME), (1, SAME), (1, SAME)])
    assert "two hosts have --process-id 1" in heard[0]
    with rendezvous.listen(port) as server:
        server.settimeout(5)
        asked = threading.Thread(target=meet, args=(Place("127.0.0.1", port, 2, 2.0), [(1, SAME)]))
        asked.start()
        caller = server.accept()[0]
        with caller:
            message = rendezvous.hear(caller)
        assert message is not None
        assert "--num-processes is 3 on host 0, 2 on host 1" in rendezvous.note(
            message, Place("", port, 3, 1), {0: SAME}
        )
    asked.join()


def test_a_port_in_use_and_strangers_at_it_are_told(port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        heard, _ = meet(Place("127.0.0.1", port, 2, 1.0), [(0, SAME)])
        assert f"port {port} of this host cannot be used (Address already in use): give another one" in heard[0]


def test_a_caller_that_is_no_host_of_ours_is_sent_off(port):
    def call():
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n\n")

    caller = threading.Thread(target=call)
    caller.start()
    heard, _ = meet(Place("127.0.0.1", port, 2, 5.0), [(0, SAME)])
    assert "host 1 of 2 has not come" in heard[0]
    caller.join()


def test_all_options_but_who_a_host_is_must_agree():
    config = Config(data=None, seed=3)
    said = hosts.statement(config)
    assert said["seed"] == 3
    assert set(said) >= {"command", "training", "code", "versions"}
    assert rendezvous.disagreement([said, hosts.statement(config)]) == ""
    assert len(said["code"]) == 16


def test_one_host_agrees_with_itself():
    hosts.join(HostsConfig())
    hosts.agree({"seed": 1})
    assert hosts.together(lambda: 3) == 3
    place = Place("nowhere", 1, 1, 0.1)
    rendezvous.meet(place, 0, SAME)
