"""Reading from the public web: GET alone, text alone, within bounds of time and size."""

import contextlib
import re
import threading
from collections.abc import Iterator
from email.message import Message
from typing import Annotated, NamedTuple
from urllib.parse import urljoin

import httpcore2
from pydantic import Field

from arkloop.shared import machine, time_limits
from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import CheckedBackend, ssl_context, tls_failure
from arkloop.shared.security.egress import CheckedUrl, Policy
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.http.charsets import decoded
from arkloop.worker.http.html_text import html_text
from arkloop.worker.tools import CallInfo, ToolFailed, tool

MAX_SECONDS = 30.0  # from the first look-up to the last byte, redirects included
CONNECT_SECONDS = 5.0
IDLE_SECONDS = 15.0  # without a byte
MAX_BODY_BYTES = 1_048_576
MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)
_TEXT_TYPES = re.compile(
    r"text/[\w.+-]+|application/([\w.-]+\+)?(json|xml|yaml)"
    r"|application/(javascript|ecmascript|x-ndjson|ndjson|jsonl|x-yaml|toml|sql|graphql)"
)
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}")
_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s{0,9}=\s{0,9}["']?([\w-]{1,40})""", re.I)


@tool(idempotent=True)
def http_fetch(
    context: ToolContext,
    url: Annotated[str, Field(description="Begins with http:// or https://.")],
    info: CallInfo,
) -> str:
    """Read a page, an API's answer or another text from the public web.

    Follows redirects. The text of an HTML page comes without its markup.
    """
    backend = CheckedBackend(info.egress)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        backend.cut()

    # A server can stay busy below every time-out of a single read; the limit ends all of them.
    with context.aborting(backend.cut), time_limits.limited(MAX_SECONDS, give_up):
        try:
            content = _fetched(url, info.egress, backend)
        except egress.Refused as error:
            raise ToolFailed(f"Not fetched: {error}") from None
        except httpcore2.TimeoutException:
            raise ToolFailed("The server did not respond in time.") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            if late.is_set():
                raise ToolFailed(f"The server did not finish within {MAX_SECONDS:g} s.") from None
            machine.raise_shortage(error)
            raise ToolFailed(_reason(error)) from None
        finally:
            backend.cut()
    # To a reader, a body of no stated length that was cut is just over.
    if late.is_set():
        raise ToolFailed(f"The server did not finish within {MAX_SECONDS:g} s.")
    return _told(content)


class _Content(NamedTuple):
    """The response of a server; `lines` are shown to the model before its text."""

    lines: list[str]
    body: bytes
    charset: str  # "" where it is not said
    content_type: str


def _fetched(url: str, policy: Policy, backend: CheckedBackend) -> _Content:
    for _ in range(MAX_REDIRECTS + 1):
        target = egress.check_url(url, policy)
        with _answer(target, backend) as response:
            location = _header(response, b"location")
            if response.status not in _REDIRECTS or not location:
                return _content(target, response)
        url = _joined(target, location)
    raise ToolFailed(f"Not fetched: more than {MAX_REDIRECTS} redirects.")


@contextlib.contextmanager
def _answer(target: CheckedUrl, backend: CheckedBackend) -> Iterator[httpcore2.Response]:
    """Send a GET on a connection of its own and yield the response.

    The request has the parts that were checked, so that no second reader of the address could
    understand it differently.
    """
    path = target.path + (f"?{target.query}" if target.query else "")
    with (
        httpcore2.ConnectionPool(ssl_context=ssl_context(), network_backend=backend) as pool,
        pool.stream(
            "GET",
            httpcore2.URL(
                scheme=target.scheme.encode(),
                host=target.host.encode(),
                port=target.port,
                target=path.encode(),
            ),
            headers={
                "Host": target.origin.partition("://")[2],
                "User-Agent": "arkloop-runs",
                "Accept": "text/*, application/json, application/xml;q=0.9, */*;q=0.1",
                # What is not packed cannot burst when it is unpacked.
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
            extensions={
                "timeout": {"connect": CONNECT_SECONDS, "read": IDLE_SECONDS, "write": IDLE_SECONDS}
            },
        ) as response,
    ):
        yield response


def _joined(target: CheckedUrl, location: str) -> str:
    try:
        return urljoin(target.text, location)
    except ValueError:
        raise ToolFailed("Not fetched: the redirect target is not a valid URL.") from None


def _content(target: CheckedUrl, response: httpcore2.Response) -> _Content:
    header = Message()
    header["content-type"] = (_header(response, b"content-type") or "text/plain")[:200]
    content_type = header.get_content_type()
    encoding = _header(response, b"content-encoding") or "identity"
    if not _TEXT_TYPES.fullmatch(content_type):
        named = content_type if _TYPE.fullmatch(content_type) else "of an invalid content type"
        raise ToolFailed(f"HTTP {response.status}, but the content is not text: {named}.")
    if encoding.lower() != "identity":
        raise ToolFailed(
            f"HTTP {response.status}, but the response is compressed although `identity`"
            " was requested."
        )
    body, is_whole = _body(response)
    lines = [f"HTTP {response.status}, {content_type}, from {target.text}"]
    if not is_whole:
        lines.append(f"[truncated: the content is longer than {MAX_BODY_BYTES} bytes]")
    return _Content(lines, body, header.get_content_charset() or "", content_type)


def _told(content: _Content) -> str:
    # Up to 0.2 s for a mebibyte of tags; many fetches may end together.
    with cpu_slice():
        text = _text(content.body, content.charset, content.content_type)
    return "\n".join([*content.lines, "", text])


def _body(response: httpcore2.Response) -> tuple[bytes, bool]:
    """Return the first `MAX_BODY_BYTES` bytes, and whether they are all."""
    body = bytearray()
    for chunk in response.iter_stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return bytes(body[:MAX_BODY_BYTES]), False
    return bytes(body), True


def _text(body: bytes, charset: str, content_type: str) -> str:
    is_html = content_type in _HTML_TYPES
    if is_html and not charset and (meta := _META_CHARSET.search(body[:2048])):
        charset = meta[1].decode("ascii")
    text = decoded(body, charset)
    return html_text(text) if is_html else text


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    for key, value in response.headers:
        if key.lower() == name:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value.decode("latin-1")
    return None


def _reason(error: Exception) -> str:
    """Describe a failure to the model, without the addresses behind the name."""
    if tls := tls_failure(error):
        return f"TLS error at the server: {tls}."
    if isinstance(error, httpcore2.ConnectError):
        return "The server is unreachable."
    if isinstance(error, httpcore2.ProtocolError):
        return "The server's response is not valid HTTP."
    return "The connection was lost."
