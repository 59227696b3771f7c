"""Addresses of servers that settings name."""

import pytest

from arkloop.shared import addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "https://models.example.com",
        "https://models.example.com./",
        "http://minio_1:9000",
        "http://[::1]:65535/v1",
        "http://[fe80::1%eth0]",
        "https://user:secret@models.example.com:1",
        "http://h:/v1",
        "https://bücher.example/straße",
    ],
)
def test_an_address_with_a_host_and_a_port_is_usable(url: str) -> None:
    """No name is looked up, so one of a server that is not there passes."""
    assert addresses.is_usable(url)


@pytest.mark.parametrize(
    "url",
    [
        "models.example.com",
        "ftp://models.example.com",
        "http://",
        "http:///v1",
        "http://:8000",
        "http://h:0",
        "http://h:65536",
        "http://h:99999/v1",
        "http://h:000080",
        "http://h:abc",
        "http://a..b",
        "http://.a",
        f"http://{'a' * 64}.example.com",
        "http://bücher_1",
        "http://ⅷ.example.com",
        "http://١٢٧.0.0.1",
        "http://${HOST}:8000",
        "http://a\\b",
        "http://a b/v1",
        "http://h/v 1",
        "http://h/v1\n",
        "http://h\x00",
        "http://h/\udc80",
        "http://300.0.0.1",
        "http://[::1",
        "http://[::1]a",
        "http://[::g]",
        "http://[]",
        "http://[127.0.0.1]:4318",
        "http://[v1.a]",
        "http://a[b]@h/",
        "http://a@b@c",
    ],
)
def test_an_address_that_no_client_can_use_is_not(url: str) -> None:
    """The first request would fail, by an error that names no setting."""
    assert not addresses.is_usable(url)


def test_what_follows_the_port_has_a_form() -> None:
    """A query is refused unless the caller admits one, and so are spaces."""
    assert not addresses.is_usable("http://h/v1?a=1")
    assert addresses.is_usable("http://h/my model/v1?a=1", ".*")
    assert not addresses.is_usable("http://h/v1\n", ".*")
    assert not addresses.is_usable("http://h/v1", "/?")
