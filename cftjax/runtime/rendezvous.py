"""Where hosts meet before JAX knows of them: all are there, and all were started alike, or all end with the reason.

The first host listens at the coordinator's port, every other one sends it a line of JSON that says what it is going to
do; when all have come, or some have not come in time, the first one answers all of them with the same verdict. JAX then
takes the port over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cftjax.runtime import settings
from cftjax.text import few

# Begins every line, so that whatever else listens or calls at the port is told apart.
GREETING = "cftjax hosts meet"
# No statement is longer.
MOST_BYTES = 2**22
# Of what differs, so many are named.
MOST_NAMED = 3
# A caller that says nothing for so long is a stranger.
HEARING_SECONDS = 5.0
# So much later than they should an answer may come.
ANSWERING_SECONDS = 2.0
# Between two attempts to reach a first host that is not there yet.
PAUSE = 0.2

Statement = dict[str, Any]


class Place(NamedTuple):
    """Where hosts meet, and how many.

    Attributes:
        host: of the first of them.
        port: it listens there.
        number: how many hosts there are.
        seconds: how long they wait for one another.
    """

    host: str
    port: int
    number: int
    seconds: float


def meet(place: Place, index: int, statement: Statement) -> None:
    """Wait for all other hosts, and go on if all of them say the same.

    Args:
        place: of the meeting.
        index: of this host.
        statement: what this host is going to do, as JSON can hold it.

    Raises:
        ValueError: on all hosts that are there, where one is missing or says something else.
    """
    if place.number == 1:
        return
    wrong = lead(place, statement) if index == 0 else follow(place, index, statement)
    if wrong:
        raise ValueError(wrong)


def lead(place: Place, statement: Statement) -> str:
    """What is wrong, found and told by the first host; empty where nothing is."""
    deadline, wrong = time.monotonic() + place.seconds, ""
    said: dict[int, Statement] = {0: statement}
    with contextlib.ExitStack() as stack:
        server, callers = stack.enter_context(listen(place.port)), []
        while not wrong and len(said) < place.number and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                caller = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            if (message := hear(caller)) is not None:
                callers.append(caller)
                wrong = note(message, place, said)
        wrong = wrong or verdict(said, place)
        for caller in callers:
            answer(caller, wrong)
    return wrong


def listen(port: int) -> socket.socket:
    """The first host's ear.

    Raises:
        ValueError: where the port is taken.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ValueError(
            f"--coordinator: port {port} of this host cannot be used ({os.strerror(error.errno)}): give another one, "
            "the same on all hosts, or end the program that holds it"
        ) from error


def hear(caller: socket.socket) -> Statement | None:
    """What a host says; None from a stranger, who is sent off."""
    message = receive(caller, HEARING_SECONDS)
    if message is None or not isinstance(message.get("index"), int) or not isinstance(message.get("statement"), dict):
        caller.close()
        return None
    return message


def note(message: Statement, place: Place, said: dict[int, Statement]) -> str:
    """Keep what a host says; what is wrong with its place among the others, if anything."""
    index, count = message["index"], message.get("count")
    if count != place.number:
        return f"hosts differ: --num-processes is {place.number} on host 0, {count} on host {index}"
    if index in said:
        return f"two hosts have --process-id {index}: give every host its own, 0 to {place.number - 1}"
    said[index] = message["statement"]
    return ""


def follow(place: Place, index: int, statement: Statement) -> str:
    """What is wrong, as the first host says; empty where nothing is."""
    deadline = time.monotonic() + place.seconds
    where = f"{place.host}:{place.port}"
    while (left := deadline - time.monotonic()) > 0:
        try:
            first = socket.create_connection((place.host, place.port), timeout=left)
        except socket.gaierror as error:
            return f"--coordinator {where}: there is no such host ({error.strerror})"
        except OSError:
            time.sleep(min(PAUSE, max(left, 0.0)))
            continue
        with first:
            send(first, {"index": index, "count": place.number, "statement": statement})
            # The first host, which listens by now, waits for others as long as this one would.
            message = receive(first, place.seconds + ANSWERING_SECONDS)
        if message is not None and isinstance(message.get("wrong"), str):
            return message["wrong"]
        time.sleep(min(PAUSE, max(left, 0.0)))
    return (
        f"the first host has not been reached at {where} within {place.seconds:g} s: see what it says; --coordinator "
        "must name it and a port that is free there, and --join-seconds gives slow hosts more time"
    )


def verdict(said: Mapping[int, Statement], place: Place) -> str:
    """What all hosts together do wrong; empty where nothing is."""
    if missing := [str(index) for index in range(place.number) if index not in said]:
        return (
            f"host {', '.join(missing)} of {place.number} has not come to {place.host}:{place.port} within "
            f"{place.seconds:g} s: start the same command on every host; --join-seconds gives slow ones more time"
        )
    return disagreement([said[index] for index in range(place.number)])


def disagreement(statements: Sequence[Statement]) -> str:
    """Where hosts say something else than the first one; empty where all agree."""
    for index, other in enumerate(statements):
        if found := settings.differences(statements[0], other):
            return f"host {index} differs from host 0 in {few(found, MOST_NAMED)}: give all hosts the same"
    return ""


def send(to: socket.socket, message: Statement) -> None:
    """One line; a host that is gone by now is found missing by others."""
    try:
        to.sendall(json.dumps({"greeting": GREETING, **message}).encode() + b"\n")
    except OSError:
        return


def answer(caller: socket.socket, wrong: str) -> None:
    """Tell a host the verdict, and let it hang up first: the port is free again at once."""
    send(caller, {"wrong": wrong})
    caller.settimeout(2.0)
    try:
        caller.recv(1)
    except OSError:
        return


def receive(caller: socket.socket, seconds: float) -> Statement | None:
    """The line that the other side sends; None where it sends none in time, or is no host of ours."""
    content, deadline = b"", time.monotonic() + seconds
    try:
        while not content.endswith(b"\n") and len(content) < MOST_BYTES:
            caller.settimeout(max(deadline - time.monotonic(), 0.01))
            part = caller.recv(2**16)
            if not part:
                return None
            content += part
        message = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and message.get("greeting") == GREETING else None
