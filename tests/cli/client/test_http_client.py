"""Commands and workers in an environment whose proxy or certificates cannot be used."""

import click
import pytest
from click.testing import CliRunner

from arkloop.cli.client.server_address import ServerAddress, find_server
from arkloop.cli.main import main
from arkloop.cli.serve.service import Service

PROXY = "http://127.0.0.1:3128"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"SSL_CERT_FILE": "/missing.pem"},
            "SSL_CERT_FILE: '/missing.pem' cannot be read: No such file or directory.",
        ),
        (
            {"SSL_CERT_FILE": "/etc/hostname"},
            "SSL_CERT_FILE: '/etc/hostname' has no certificates in PEM.",
        ),
        (
            {"SSL_CERT_FILE": "/etc/hostname", "ARKLOOP_URL": "HTTPS://service.invalid"},
            "SSL_CERT_FILE: '/etc/hostname' has no certificates in PEM.",
        ),
        (
            {"SSL_CERT_DIR": "/missing"},
            "SSL_CERT_DIR: '/missing' is not a folder that this user may read.",
        ),
        (
            {"SSL_CERT_FILE": "/missing.pem", "ARKLOOP_URL": "http://service.invalid"}
            | {"HTTP_PROXY": "HTTPS://user:secret@127.0.0.1:3128"},
            "SSL_CERT_FILE: '/missing.pem' cannot be read: No such file or directory.",
        ),
        (
            {"HTTPS_PROXY": PROXY, "ALL_PROXY": "socks5://user:secret@127.0.0.1:1080"},
            "ALL_PROXY names a SOCKS proxy: unset it, or install the Python package socksio.",
        ),
        (
            {"SSL_CERT_FILE": "/missing.pem", "ARKLOOP_URL": "http://service.invalid"}
            | {"HTTP_PROXY": PROXY, "ALL_PROXY": "socks5://user:secret@127.0.0.1:1080"},
            "ALL_PROXY names a SOCKS proxy: unset it, or install the Python package socksio.",
        ),
        (
            {"HTTP_PROXY": PROXY, "HTTPS_PROXY": "foo://user:secret@127.0.0.1:3128"},
            "HTTPS_PROXY must look like http://host:port.",
        ),
        ({"https_proxy": "127.0.0.1:port"}, "HTTPS_PROXY must look like http://host:port."),
    ],
)
def test_what_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], message: str
) -> None:
    """It is one line with the variable, and without the password that a proxy's address has."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = {"ARKLOOP_URL": "https://service.invalid", "ARKLOOP_API_KEY": "key"}
    for name, value in {**server, **environ}.items():
        monkeypatch.setenv(name, value)

    done = CliRunner().invoke(main, ["runs", "list"])
    with pytest.raises(click.ClickException) as error:
        Service(find_server(), "/tool-workers/shop")

    assert (1, f"Error: {message}\n") == (done.exit_code, done.output), done.exception
    assert message == error.value.message


def test_an_unused_proxy_needs_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for `https://` is not on the way to an `http://` server."""
    monkeypatch.setenv("SSL_CERT_FILE", "/missing.pem")
    monkeypatch.setenv("HTTPS_PROXY", "https://127.0.0.1:3128")

    Service(ServerAddress("http://service.invalid", "key"), "/tool-workers/shop").close()


def test_this_machine_needs_neither() -> None:
    """A server on it has no certificate of an authority, and is behind no proxy."""
    env = {"ARKLOOP_URL": "http://127.0.0.1:9", "ARKLOOP_API_KEY": "key"}
    unusable = {"SSL_CERT_FILE": "/missing.pem", "ALL_PROXY": "foo://127.0.0.1"}

    done = CliRunner().invoke(main, ["runs", "list"], env={**env, **unusable})

    assert "http://127.0.0.1:9 is unreachable" in done.output
