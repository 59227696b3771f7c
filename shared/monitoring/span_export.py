"""The export of spans to a collector, beside the work that they are about and never in its way.

A bounded number of spans waits in memory, and they are sent together. A collector that is slow or
away, or refuses them, costs spans, which are counted, and nothing else.
"""

import http.client
import logging
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from arkloop.shared import metrics, spans
from arkloop.shared.config import Settings
from arkloop.shared.monitoring import otlp
from arkloop.shared.spans import Span

log = logging.getLogger(__name__)

#: Spans that wait; beyond them the newest are dropped.
MAX_PENDING = 4_096
#: Spans of one request: they are encoded without a pause, about 2 ms.
BATCH = 512
SEND_SECONDS = 1.0
#: From the request to the end of its response, and for the connection before.
TIMEOUT_SECONDS = 10.0
#: A batch is sent again after these pauses, then dropped.
PAUSES = (1.0, 2.0, 4.0, 8.0)
#: How long a process that ends waits for its last spans to be sent.
STOP_SECONDS = 2.0
#: Bytes of a response that are read: it says what was rejected, in a few words.
MAX_RESPONSE = 4_096
#: How a connection that was kept tells that its other end is closed.
_CLOSED = (ConnectionError, http.client.RemoteDisconnected, http.client.BadStatusLine)
#: By OTLP: the request may be sent again.
RETRYABLE = frozenset({429, 502, 503, 504})


class _Refused(Exception):
    """A batch that no further attempt would deliver."""


def start(settings: Settings, service: str) -> "SpanExporter | None":
    """Record spans from now on, if the settings say so; once per process, after any fork.

    `service` is the name where the settings have none.
    """
    if settings.otlp_url is None:
        return None
    exporter = SpanExporter(settings, service)
    spans.record_to(exporter.take, settings.trace_ratio)
    return exporter


class SpanExporter:
    """Sends the spans of this process."""

    def __init__(self, settings: Settings, service: str) -> None:
        """Start the thread that sends."""
        assert settings.otlp_url is not None
        self._url = urlsplit(settings.otlp_url)
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": "arkloop-runs",
            **dict(settings.otlp_headers),
        }
        self._tls = (
            ssl.create_default_context(cafile=settings.otlp_ca_file)
            if self._url.scheme == "https"
            else None
        )
        self._resource: Mapping[str, str] = {
            "service.name": settings.service_name or service,
            "service.instance.id": f"{settings.hostname}:{os.getpid()}",
            **dict(settings.resource_attributes),
        }
        self._pending: deque[Span] = deque()
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._dropped = 0  # since the export began to fail
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def take(self, span: Span) -> None:
        """Take a span that has ended; returns at once, and never raises."""
        if len(self._pending) >= MAX_PENDING:
            self._drop(1)
            return
        self._pending.append(span)
        if len(self._pending) == BATCH:
            self._wake.set()

    def stop(self) -> None:
        """Send what there is, within `STOP_SECONDS`, and end the thread."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while True:
            self._wake.wait(SEND_SECONDS)
            self._wake.clear()
            is_last = self._stopped.is_set()
            while self._pending:
                self._deliver([self._pending.popleft() for _ in range(self._next_size())])
            if is_last:
                if self._connection is not None:
                    self._connection.close()
                return

    def _next_size(self) -> int:
        return min(BATCH, len(self._pending))

    def _deliver(self, batch: list[Span]) -> None:
        """Send the batch, or drop it after some attempts."""
        for pause in (*PAUSES, None):
            try:
                self._send(otlp.request(self._resource, batch))
            except (OSError, http.client.HTTPException) as error:
                self._note_failure(error)
                if pause is None or self._stopped.wait(pause):
                    break
            except Exception as error:  # whatever it is, it must not end the thread
                self._note_failure(error)
                break
            else:
                self._note_success()
                return
        self._drop(len(batch))

    def _send(self, body: bytes) -> None:
        """Make one attempt. Raises: _Refused, OSError, HTTPException."""
        kept, self._connection = self._connection, None
        try:
            status = self._post(kept or self._connect(), body)
        except _CLOSED:
            if kept is None:
                raise
            # The collector has closed it, as it may with one that was idle.
            status = self._post(self._connect(), body)
        if status in RETRYABLE:
            raise OSError(f"HTTP status {status}")
        if not 200 <= status < 300:
            raise _Refused(f"HTTP status {status}")

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=self._tls)

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> int:
        """Return the status of the response; keeps the connection if it can be used again."""
        seconds = STOP_SECONDS if self._stopped.is_set() else TIMEOUT_SECONDS
        connection.timeout = seconds
        is_kept = False
        try:
            if connection.sock is None:
                connection.connect()
            with _bounded(connection.sock, seconds):
                connection.request("POST", self._url.path or "/", body, self._headers)
                response = connection.getresponse()
                # One with a long body is not worth reading.
                is_kept = len(response.read(MAX_RESPONSE + 1)) <= MAX_RESPONSE
        except TimeoutError:
            is_kept = False
            raise
        finally:
            if is_kept and connection.sock is not None:
                self._connection = connection
            else:
                connection.close()
        return response.status

    def _drop(self, count: int) -> None:
        self._dropped += count
        metrics.SPANS_DROPPED.add(count)

    def _note_failure(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning("exporting spans failed; those that do not fit are dropped: %s", error)

    def _note_success(self) -> None:
        if self._is_failing:
            log.warning("exporting spans works again: %d were dropped", self._dropped)
            self._is_failing, self._dropped = False, 0


@contextmanager
def _bounded(sock: socket.socket, seconds: float) -> Iterator[None]:
    """End the connection after `seconds`: its own timeout begins anew with each byte that arrives.

    Raises:
        TimeoutError: they have passed.
    """
    has_passed = threading.Event()

    def hang_up() -> None:
        has_passed.set()
        with suppress(OSError):  # it is closed
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    sock.settimeout(seconds)
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not has_passed.is_set():
            raise
    finally:
        timer.cancel()
    if has_passed.is_set():
        raise TimeoutError(f"no complete response within {seconds:g} s")
