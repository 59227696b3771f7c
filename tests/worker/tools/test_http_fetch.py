"""http_fetch: text from servers, within bounds."""

import contextlib
import gzip
import itertools
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from arkloop.shared.errors import Unavailable
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.tools import ToolFailed, http_fetch
from tests.no_descriptor import no_descriptor_left
from tests.worker.recorded_run import RecordedRun
from tests.worker.tools.fetching import Server, fetch, page, served

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server on an address that the policy `HERE` allows."""
    started = Server("127.0.0.2")
    yield started
    started.close()


def test_a_text_comes_with_its_status_type_and_address(server: Server) -> None:
    """Errors of the server too: the model reads what went wrong."""
    assert f"HTTP 200, text/plain, from {server.url}/\n\nhello" == served(server, page("hello"))
    assert served(server, page("gone", status=404)).startswith("HTTP 404, text/plain, from ")
    assert served(server, page('{"a": 1}', "application/problem+json")).endswith('\n\n{"a": 1}')
    assert served(server, page("", status=204, content_type="")).startswith("HTTP 204")


def test_a_process_without_a_descriptor_blames_no_server(server: Server) -> None:
    """The model is not given a result: another worker can fetch the page."""
    served(server, page("hello"))
    with no_descriptor_left(), pytest.raises(Unavailable):
        fetch(f"{server.url}/")


def test_the_request_gives_nothing_away(server: Server) -> None:
    """No cookies, no credentials, no tongue of the library; the host that was asked for."""
    server.answers["/a?b=c"] = page("x", Set_Cookie="a=b")
    fetch(f"{server.url}/a?b=c#d")
    fetch(f"{server.url}/a?b=c")

    head = (
        f"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.2:{server.port}\r\nUser-Agent: arkloop-runs\r\n"
        "Accept: text/*, application/json, application/xml;q=0.9, */*;q=0.1\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    assert [head.encode()] * 2 == server.requests[-2:]


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("é".encode("latin-1"), "text/plain; charset=ISO-8859-1", "é"),
        ("é".encode(), "text/plain", "é"),
        (b"\xff", "text/plain; charset=utf-8", "\ufffd"),
        ("é".encode("utf-16"), "text/plain; charset=utf-8", "é"),
        (b"\xef\xbb\xbfx", "text/csv", "x"),
        ("日本".encode("shift_jis"), 'text/plain; charset="Shift_JIS"', "日本"),
        (b"x", "text/plain; charset=punycode", "x"),
        (b"x", "text/plain; charset=../../etc", "x"),
        ("<p>п<b>р</b>".encode("koi8-r"), "text/html; charset=koi8-r", "пр"),
        (b'<meta charset="windows-1252"><p>\x80', "text/html", "€"),
        (b"<h1>A</h1><script>no</script><a href='/b'>c</a>", "TEXT/HTML", "# A\n[c](/b)"),
    ],
)
def test_a_text_is_decoded_as_it_says(
    server: Server, body: bytes, content_type: str, text: str
) -> None:
    """What cannot be read is replaced; unknown names of encodings are UTF-8."""
    assert text == served(server, page(body, content_type)).partition("\n\n")[2]


@pytest.mark.parametrize(
    ("content_type", "named"),
    [
        ("image/png", "image/png"),
        ("application/octet-stream", "application/octet-stream"),
        ("application/pdf; charset=utf-8", "application/pdf"),
        ("application/" + "x" * 1000, "of an invalid content type"),
    ],
)
def test_what_is_no_text_is_refused_by_its_type(
    server: Server, content_type: str, named: str
) -> None:
    """Content that is no text is refused by its type, and not shown."""
    with pytest.raises(ToolFailed) as failure:
        served(server, page("secret bytes", content_type))

    assert f"HTTP 200, but the content is not text: {named}." == str(failure.value)


def test_a_packed_body_is_refused_unread(server: Server) -> None:
    """A compressed body is refused unread: a mebibyte of it could become a gibibyte."""
    bomb = gzip.compress(b"\0" * 10_000_000)

    with pytest.raises(ToolFailed, match="the response is compressed"):
        served(server, page(bomb, Content_Encoding="gzip"))


def test_a_hundred_megabytes_cost_no_more_than_one(server: Server) -> None:
    """The connection is cut at the limit, of a stated length or of none."""
    chunk = b"x" * 65_536
    for head in (b"Content-Length: 104857600\r\n", b""):
        server.hung_up.clear()

        def answer(head: bytes = head) -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + head + b"\r\n"
            yield from itertools.repeat(chunk, 1600)

        tracemalloc.start()
        result = served(server, answer)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert "\n[truncated: the content is longer than 1048576 bytes]\n" in result
        assert http_fetch.MAX_BODY_BYTES == result.count("x") - result[:60].count("x")
        assert server.hung_up.wait(60)
        assert peak < 10_000_000


@pytest.mark.parametrize("drip", ["body", "head"])
def test_a_slow_drip_ends_with_the_time_for_all(
    server: Server, monkeypatch: pytest.MonkeyPatch, drip: str
) -> None:
    """Each byte is in time, but the whole is not."""
    monkeypatch.setattr(http_fetch, "MAX_SECONDS", 0.3)

    def answer() -> Iterator[bytes]:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
        yield head + (b"\r\n" if drip == "body" else b"X: ")
        for _ in range(5000):
            time.sleep(0.02)
            yield b"x"

    start = time.monotonic()
    with pytest.raises(ToolFailed, match=r"did not finish within 0\.3 s"):
        served(server, answer)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("silent", ["server", "resolver", "connection"])
def test_a_cancel_ends_it_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """A cancel ends the fetch while it waits for a response, a name or a connection."""
    for name in ("CONNECT_SECONDS", "IDLE_SECONDS"):  # these would end it, too, a little later
        monkeypatch.setattr(http_fetch, name, 60.0)
    run, waiting, over = RecordedRun(), threading.Event(), threading.Event()
    url = server.url
    with contextlib.ExitStack() as stack:
        if silent == "server":

            def answer() -> Iterator[bytes]:
                waiting.set()
                over.wait(60)
                yield b""

            server.answers["/"] = answer
        elif silent == "resolver":

            def getaddrinfo(*args: Any, **kwargs: Any) -> list[Any]:
                waiting.set()
                over.wait(60)
                return []

            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
            url = "http://example.com/"
        else:
            # A full backlog: the kernel answers no further connection.
            full = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
            stack.enter_context(socket.create_connection(full.getsockname()))
            url = f"http://127.0.0.2:{full.getsockname()[1]}/"
            threading.Timer(0.1, waiting.set).start()

        def cancel() -> None:
            waiting.wait(60)
            cancelled.append(time.monotonic())
            run.stop.set(CancelRequested())

        cancelled: list[float] = []
        threading.Thread(target=cancel, daemon=True).start()
        with pytest.raises(CancelRequested):
            fetch(url, run=run)
        assert time.monotonic() - cancelled[0] < 20
        over.set()


def test_failures_have_a_reason_without_an_address(server: Server) -> None:
    """What a model may know; never what is behind the name."""
    closed = Server("127.0.0.2")
    closed.close()
    with pytest.raises(ToolFailed, match=r"^The server is unreachable\.$"):
        fetch(closed.url)
    with pytest.raises(ToolFailed, match=r"^The server is unreachable\.$"):
        fetch("http://nowhere.invalid/")
    with pytest.raises(ToolFailed, match=r"^TLS error at the server: handshake failed\.$"):
        fetch(server.url.replace("http:", "https:"))
    with pytest.raises(ToolFailed, match=r"^The server's response is not valid HTTP\.$"):
        served(server, lambda: [b"SSH-2.0-OpenSSH\r\n"])
    with pytest.raises(ToolFailed, match=r"^The server's response is not valid HTTP\.$"):
        served(server, lambda: [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"])


def test_in_a_gevent_worker_it_holds_nobody_up() -> None:
    """Other greenlets go on while it waits, and a cancel is felt at once."""
    program = """
from gevent import monkey
monkey.patch_all()
import socket, threading, time
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import CallInfo, http_fetch
from tests.worker.recorded_run import RUN

silent = socket.create_server(("127.0.0.2", 0))
stop, ticks = StopSignal(), []
def tick():
    while len(ticks) < 10:
        time.sleep(0.01)
        ticks.append(time.monotonic())
    stop.set(CancelRequested())
threading.Thread(target=tick).start()
url = f"http://127.0.0.2:{silent.getsockname()[1]}/"
info = CallInfo.of(RUN, "call", egress=Policy.of(["127.0.0.2/32"]))
try:
    http_fetch.http_fetch(stop, info, {"url": url})
except CancelRequested:
    late = time.monotonic() - ticks[-1]
    print(len(ticks), late < 10)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ("10 True\n", "") == (done.stdout, done.stderr)


def certificate(path: Path, name: str) -> Path:
    """Make a self-signed certificate with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file = path / f"{name}.pem"
    file.write_bytes(
        key.private_bytes(encoding, form, serialization.NoEncryption())
        + signed.public_bytes(encoding)
    )
    return file


def test_tls_is_for_the_name_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to the checked address; the certificate must be the name's."""
    file = certificate(tmp_path, "tls.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    server = Server("127.0.0.2", {"/": page("hello")}, tls=context)
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: resolve("127.0.0.2", *a, **k))

    with pytest.raises(
        ToolFailed, match=r"^TLS error at the server: certificate is not trusted\.$"
    ):
        fetch(f"https://tls.example:{server.port}/")
    trusting = ssl.create_default_context(cafile=file)
    monkeypatch.setattr(http_fetch, "ssl_context", lambda: trusting)
    assert "hello" in fetch(f"https://tls.example:{server.port}/")
    with pytest.raises(
        ToolFailed, match=r"^TLS error at the server: certificate is for another host\.$"
    ):
        fetch(f"https://other.example:{server.port}/")
    server.close()
