"""The parts of `arkloop dev` that need no processes; the rest is in `tests/acceptance`."""

import getpass
import os
import socket
from pathlib import Path

import pytest

from arkloop.cli.dev import dev
from arkloop.cli.dev.data_folder import DataFolder


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080"),
        ("::", "http://[::1]:8080"),
        ("localhost", "http://localhost:8080"),
    ],
)
def test_the_url_is_one_that_a_client_here_can_open(host: str, url: str) -> None:
    """An address to listen on is not always one to connect to."""
    assert url == dev.base_url(host, 8080)


def test_the_procfile_has_the_three_ways_in(tmp_path: Path) -> None:
    """`release` runs once; the other lines are processes, and each begins with `exec`."""
    release, lines = dev.read_procfile(dev.PROCFILE)

    assert release is not None
    assert ["web", "worker"] == list(lines)
    # A shell that stays in between would outlive a killed supervisor's signal.
    assert all(line.startswith("exec ") for line in (release, *lines.values()))


def test_port_0_is_a_free_port() -> None:
    """The port is known before anything starts, can be listened on, and is none that the kernel
    gives to programs.
    """
    port = dev.claim_port("127.0.0.1", 0)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
    assert 0 < port < 32_768


def test_a_taken_port_is_refused() -> None:
    """The message says which one, and what to do."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        with pytest.raises(dev.CannotStart, match=f"port {port}.*--port"):
            dev.claim_port("127.0.0.1", port)


def test_an_unknown_host_is_told_and_not_a_traceback() -> None:
    """A host name that does not resolve is reported in one line, without a traceback."""
    with pytest.raises(dev.CannotStart, match="cannot listen on no-such-host.invalid"):
        dev.claim_port("no-such-host.invalid", 0)


@pytest.mark.parametrize(
    ("host", "more", "expected"),
    [
        ("127.0.0.1", "", "localhost"),
        ("::", "", "localhost"),
        ("box.lan", "a.example,b.example", "localhost,box.lan,a.example,b.example"),
    ],
)
def test_only_names_of_this_machine_are_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, more: str, expected: str
) -> None:
    """Foreign host names are refused, or a web page could reach the server by DNS rebinding."""
    monkeypatch.setenv("ARKLOOP_ALLOWED_HOSTS", more)

    assert expected == environment(tmp_path, host)["ARKLOOP_ALLOWED_HOSTS"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "127.0.0.0/8,::1/128"),
        ("::1", "127.0.0.0/8,::1/128"),
        ("localhost", "127.0.0.0/8,::1/128"),
        ("0.0.0.0", None),
        ("box.lan", None),
    ],
)
def test_loopback_servers_are_for_users_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, expected: str | None
) -> None:
    """Providers, tools and MCP servers may be on loopback, and MCP servers may be programs, where
    nobody else can reach the service.
    """
    environ = environment(tmp_path, host)
    assert expected == environ.get("ARKLOOP_ALLOWED_NETWORKS")
    assert (expected and "1") == environ.get("ARKLOOP_MCP_STDIO")
    assert (expected and getpass.getuser()) == environ.get("ARKLOOP_MCP_STDIO_USER")
    public_url = f"http://127.0.0.1:{environ['ARKLOOP_PORT']}"
    assert (expected and public_url) == environ.get("ARKLOOP_PUBLIC_URL")

    monkeypatch.setenv("ARKLOOP_ALLOWED_NETWORKS", "10.0.0.0/8")
    assert "10.0.0.0/8" == environment(tmp_path, host)["ARKLOOP_ALLOWED_NETWORKS"]


def environment(folder: Path, host: str) -> dict[str, str]:
    """Build the environment of the processes of `arkloop dev`."""
    options = dev.Options(
        host=host,
        port=8080,
        data=folder,
        api_workers=1,
        workers=1,
        concurrency=1,
        local_model=False,
    )
    return dev._environment(options, 8080, DataFolder(folder))


def test_commands_of_this_environment_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python` in the Procfile is the one of this environment, whatever PATH says."""
    monkeypatch.setenv("PATH", "/somewhere/else")

    first, *rest = dev.path_of_children().split(os.pathsep)

    assert (Path(first) / "arkloop").exists()
    assert ["/somewhere/else"] == rest
