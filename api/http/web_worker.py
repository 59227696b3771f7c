"""Gunicorn's gevent worker, whose own error responses have the shape of all others.

Gunicorn refuses what it cannot read before the application is called: a malformed head, one that
is too long, an unknown transfer coding. This module is imported by the master process, which must
not load psycopg: only what is used after the fork is imported there.
"""

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

import gevent
from gunicorn import util
from gunicorn.http import errors as refused
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.workers.ggevent import GeventWorker

from arkloop.api.http.parking import Idle, ParkedConnection
from arkloop.shared.errors import (
    ArkloopError,
    BadRequest,
    Forbidden,
    HeadersTooLarge,
    UnknownTransferCoding,
    UriTooLong,
)
from arkloop.shared.ids import new_trace_id

#: How often it is asked whether all parked responses have ended.
_END_SECONDS = 0.05
# Else gevent keeps for each greenlet, and with it for each open stream, where it was started.
gevent.config.track_greenlet_tree = False

#: The first that fits counts; every other `ParseException` is a bad request.
_ERRORS: dict[type[Exception], type[ArkloopError]] = {
    refused.LimitRequestLine: UriTooLong,
    refused.LimitRequestHeaders: HeadersTooLarge,
    refused.UnsupportedTransferCoding: UnknownTransferCoding,
    refused.ForbiddenProxyRequest: Forbidden,
}
#: Mistakes of this server, though gunicorn derives them from the client's.
_OURS = (
    refused.ConfigurationProblem,
    refused.InvalidResponseHeader,
    refused.InvalidResponseHeaderName,
)


class WebWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    #: When the worker was asked to stop, by the monotonic clock.
    stopped_at = 0.0

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Let the worker stop."""
        self.stopped_at = time.monotonic()
        super().handle_exit(sig, frame)

    def run(self) -> None:
        """Serve until the worker is to stop, and until the responses that were parked have ended.

        gunicorn does not know of those, and waits only for others.
        """
        super().run()
        while (
            ParkedConnection.count
            and time.monotonic() < self.stopped_at + self.cfg.graceful_timeout
        ):
            self.notify()
            gevent.sleep(_END_SECONDS)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Handle a request until its response has ended, or is parked.

        Raises:
            UnsupportedTransferCoding: a body that has another coding than `chunked` as well.
        """
        if isinstance(req.body.reader, ChunkedReader):
            _check_coding(req)
        try:
            super().handle_request(listener_name, req, sock, addr)
        except Idle as idle:
            is_chunked = req.version >= (1, 1)
            can_be_reused = is_chunked and not req.should_close() and _is_read(req)
            end = partial(self._end, can_be_reused=can_be_reused)
            ParkedConnection(idle.body, is_chunked=is_chunked, end=end).park(sock)
            raise StopIteration from None  # for gunicorn the connection has ended

    def _end(self, client: Any, is_whole: bool, *, can_be_reused: bool) -> None:
        if is_whole and can_be_reused and self.alive:
            with suppress(OSError):  # the client has left meanwhile
                self.handle(self.sockets[0], client, client.getpeername())
        client.close()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn refuses or the application did not handle; the caller closes.

        Gunicorn quotes the line that it could not read, and the address of a request that failed:
        keys and tickets may stand there, so the log has the kind of error and the trace id alone.
        """
        trace_id = new_trace_id()
        error = _client_error(exc)
        if error is not None:
            extra = {"trace_id": trace_id, "outcome": "refused", "error_code": error.code}
            self.log.warning("rejected request: %s", type(exc).__name__, extra=extra)
        else:
            extra = {"trace_id": trace_id, "outcome": "failed", "error_code": "internal.error"}
            self.log.error("request failed", exc_info=exc, extra=extra)
        with suppress(OSError):  # the client is gone
            util.write_nonblock(client, _response(error, trace_id))


def _check_coding(req: Any) -> None:
    """Check what gunicorn does not: it would hand over a body that is compressed as it is."""
    sent = ",".join(value for name, value in req.headers if name == "TRANSFER-ENCODING")
    if sent.strip().lower() != "chunked":
        raise refused.UnsupportedTransferCoding(sent)


def _is_read(req: Any) -> bool:
    """Return whether the connection's next byte is that of another request."""
    reader = req.body.reader
    return (
        isinstance(reader, LengthReader) and not reader.length and not req.unreader.take_buffered()
    )


def _client_error(exc: BaseException) -> type[ArkloopError] | None:
    if isinstance(exc, _OURS) or not isinstance(exc, refused.ParseException):
        return None
    return next((error for kind, error in _ERRORS.items() if isinstance(exc, kind)), BadRequest)


def _response(error: type[ArkloopError] | None, trace_id: str) -> bytes:
    from arkloop.api.http.errors import INTERNAL_CODE, INTERNAL_MESSAGE, status_of
    from arkloop.api.http.headers import SECURITY

    status = HTTPStatus(500 if error is None else status_of(error))
    shape = {
        "code": INTERNAL_CODE if error is None else error.code,
        "message": INTERNAL_MESSAGE if error is None else error.message,
        "details": {},
        "trace_id": trace_id,
    }
    body = json.dumps(shape, separators=(",", ":")).encode() + b"\n"
    headers = {
        "Date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Trace-Id": trace_id,
        **SECURITY,
    }
    head = [f"HTTP/1.1 {status.value} {status.phrase}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + body
