"""The address of a client is not what the client says."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask

from arkloop.api.http.client_address import client_address
from arkloop.shared.storage.connections import Connections


@pytest.fixture
def trusting(connections: Connections) -> Iterator[None]:
    """Proxies in two networks are trusted."""
    known = connections.settings
    connections.settings = replace(known, trusted_proxies=("10.0.0.0/8", "fd00::/8"))
    yield
    connections.settings = known


def address(app: Flask, peer: str, forwarded: str | None) -> str | None:
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    with app.test_request_context(headers=headers, environ_base={"REMOTE_ADDR": peer}):
        return client_address()


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7,10.9.9.9", "192.0.2.7"),
        ("fd00::1", "2001:DB8::0:7", "2001:db8::7"),
        ("::ffff:10.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7:4711", "10.0.0.1"),
        ("10.0.0.1", "x" * 10_000, "10.0.0.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("", "192.0.2.7", None),
    ],
)
def test_what_trusted_proxies_have_written_counts(
    app: Flask, trusting: None, peer: str, forwarded: str | None, expected: str | None
) -> None:
    """The first address from the end of the header that is no trusted proxy's is the client's."""
    assert expected == address(app, peer, forwarded)


def test_without_the_setting_the_header_is_ignored(app: Flask) -> None:
    """Any client could send it."""
    assert "10.0.0.1" == address(app, "10.0.0.1", "192.0.2.7")
