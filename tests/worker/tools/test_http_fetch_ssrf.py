"""http_fetch: never from where it must not go."""

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arkloop.shared.security.egress import Policy
from arkloop.worker.tools import ToolFailed
from tests.own_network import output_in_own_network
from tests.worker.tools import rebinding_names
from tests.worker.tools.fetching import HERE, Server, fetch, page, redirect, served

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server on an address that the policy `HERE` allows."""
    started = Server("127.0.0.2")
    yield started
    started.close()


@pytest.fixture(scope="module")
def canaries() -> Iterator[list[Server]]:
    """The servers that nothing may ever connect to."""
    started = [Server("127.0.0.1"), Server("::1")]
    yield started
    for canary in started:
        canary.close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_no_proxy_of_the_environment_is_used(
    server: Server, canaries: list[Server], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """It would connect to any address that it gets."""
    monkeypatch.setenv(variable, canaries[0].url)

    assert "hello" in served(server, page("hello"))
    assert [0, 0] == [canary.connections for canary in canaries]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_to_relative_addresses_too(server: Server, status: int) -> None:
    """The result says where the text came from."""
    server.answers |= {"/x/a": redirect("b?c=d", status), "/x/b?c=d": page("there")}

    assert f"from {server.url}/x/b?c=d\n\nthere" in fetch(f"{server.url}/x/a")


def test_a_chain_of_redirects_ends(server: Server) -> None:
    """A chain of redirects ends after five."""
    server.answers |= {f"/{hop}": redirect(f"/{hop + 1}") for hop in range(20)}
    server.answers |= {"/20": page("there"), "/loop": redirect("/loop")}
    before = server.connections

    with pytest.raises(ToolFailed, match=r"more than 5 redirects"):
        fetch(f"{server.url}/0")
    with pytest.raises(ToolFailed, match=r"more than 5 redirects"):
        fetch(f"{server.url}/loop")
    assert "there" in fetch(f"{server.url}/15")
    assert 18 == server.connections - before


def forbidden(canaries: list[Server]) -> list[str]:
    """Return the canaries' addresses in every spelling, and what is no web address."""
    four, six = canaries
    hosts = [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
    ]
    hosts += ["127.0.0.1.", "localhost", "LOCALHOST.", "①②⑦.0.0.1", "127。0。0。1", "a@127.0.0.1"]
    hosts += ["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]"]
    hosts += ["127.0.0.2\\@127.0.0.1", "127.0.0.2#@127.0.0.1", "example.com@127.0.0.1"]
    urls = [f"http://{host}:{four.port}/" for host in hosts]
    urls += [f"http://{host}:{six.port}/" for host in ("[::1]", "[0:0:0:0:0:0:0:1]", "[::1%25lo]")]
    urls += ["http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/"]
    urls += ["file:///etc/passwd", "gopher://127.0.0.1/", "http://[::1", "ftp://127.0.0.1/"]
    return [*urls, f"https://127.0.0.1:{four.port}/", f"//127.0.0.1:{four.port}/"]


def test_nothing_forbidden_is_connected_to(server: Server, canaries: list[Server]) -> None:
    """Forbidden addresses are not connected to, directly or by a redirect, and nothing of a
    response is returned.
    """
    for url in forbidden(canaries):
        for policy in (Policy(), HERE):
            with pytest.raises(ToolFailed) as failure:
                fetch(url, policy)
            assert "127" not in str(failure.value)
        for status in (301, 302, 303, 307, 308):
            with pytest.raises(ToolFailed) as failure:
                served(server, redirect(url, status))
            assert "secret" not in str(failure.value)
            assert "127" not in str(failure.value)

    assert [0, 0] == [canary.connections for canary in canaries]


def test_a_name_that_changes_is_not_asked_again(
    server: Server, canaries: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: allowed when it is checked, loopback a moment later."""
    answers = itertools.chain(["127.0.0.2"], itertools.repeat("127.0.0.1"))
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def rebinding(host: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if host != "rebinding.example":
            return resolve(host, *args, **kwargs)
        asked.append(host)
        return resolve(next(answers), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    server.answers |= {"/": page("hello"), "/again": redirect("/")}

    assert "hello" in fetch(f"http://rebinding.example:{server.port}/")
    assert ["rebinding.example"] == asked
    assert f"Host: rebinding.example:{server.port}\r\n".encode() in server.requests[-1]
    # A redirect to the same name is another connection, and so another question.
    answers = itertools.chain(["127.0.0.2"], itertools.repeat("127.0.0.1"))
    with pytest.raises(ToolFailed, match="not on the public network"):
        fetch(f"http://rebinding.example:{server.port}/again")
    assert [0, 0] == [canary.connections for canary in canaries]


def test_a_name_server_cannot_lead_inside(tmp_path: Path) -> None:
    """The system's own resolver asks our server, in a network of its own."""
    seen = output_in_own_network(rebinding_names, tmp_path)

    refused = "failed: Not fetched: The address is not on the public network."
    results = dict(seen["results"][:-3])
    assert ["allowed.test", "rebinding.test"] == [n for n, r in results.items() if "hello" in r]
    assert {refused} == {r[: len(refused)] for r in results.values() if "hello" not in r}
    assert [
        ["rebinding.test", refused],
        ["nowhere.test", "failed: The server is unreachable."],
        ["hop.test", refused],
    ] == [[name, said[: len(refused)]] for name, said in seen["results"][-3:]]
    # Three were led to the allowed server; to each other address only who checks nothing.
    assert 3 == seen["allowed"]
    assert [1, 1, 1] == seen["canaries"]
    # Once for each connection, the unchecked ones included.
    twice = {"loopback.test", "six.test", "metadata.test", "rebinding.test", "hop.test"}
    assert {name: 1 + (name in twice) for name in seen["asked"]} == seen["asked"]
