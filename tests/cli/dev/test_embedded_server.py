"""The start of an embedded server, and the port that it finds."""

import itertools
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from arkloop.cli.dev import embedded_server
from arkloop.cli.dev.embedded_server import EmbeddedServer, free_port


def ports_of(monkeypatch: pytest.MonkeyPatch, pid: int) -> list[int]:
    """Return the first three ports that a process with this id finds."""
    monkeypatch.setattr(os, "getpid", lambda: pid)
    monkeypatch.setattr(embedded_server, "_turns", itertools.count())
    return [free_port() for _ in range(3)]


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ones are found, and none that Linux gives to outgoing connections."""
    with ExitStack() as stack:
        ports = ports_of(monkeypatch, 1)
        for port in ports:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        others = ports_of(monkeypatch, 1)

    assert 6 == len({*ports, *others})
    assert max(*ports, *others) < 32_768


def test_processes_that_look_at_once_find_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """None has bound its ports yet, so that each is free for the others, too."""
    found = [port for pid in range(20) for port in ports_of(monkeypatch, pid)]

    assert 60 == len(set(found))


def test_a_port_that_is_not_bound_yet_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server binds its port seconds after the search, whatever other processes find meanwhile."""
    found = [*ports_of(monkeypatch, 1), *ports_of(monkeypatch, 1)]

    assert 6 == len(set(found))


@pytest.mark.processes
def test_a_slow_data_folder_takes_nothing_of_the_time_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has all of it, however busy the machine was before."""
    now, looks = [0.0], itertools.count()

    class Slow(EmbeddedServer):
        def prepare(self) -> None:
            now[0] += 60

        def command(self) -> list[str]:
            return ["sleep", "60"]

        def is_ready(self, pid: int) -> bool:
            return next(looks) == 2

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None)
    monkeypatch.setattr(embedded_server, "time", clock)
    with Slow(tmp_path / "data") as server:
        assert server.pid is not None
