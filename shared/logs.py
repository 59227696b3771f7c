"""JSON logs, one object a line, with the run and the trace bound to the current context."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from arkloop.shared.log_writer import LogWriter

#: What every line logged from this thread or greenlet carries.
bound: ContextVar[dict[str, Any] | None] = ContextVar("bound", default=None)


def bind(**fields: Any) -> None:
    """Add fields (`run_id`, `trace_id`, …) to all later lines of this context."""
    bound.set({**(bound.get() or {}), **fields})


def clear() -> None:
    """Forget the fields: a server's greenlet is used for another request or run next."""
    bound.set(None)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Add the fields to the lines of the block."""
    token = bound.set({**(bound.get() or {}), **fields})
    try:
        yield
    finally:
        bound.reset(token)


class _Bound(logging.Filter):
    """A filter that adds the bound fields; what the line itself says of its subject goes first."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (bound.get() or {}).items():
            record.__dict__.setdefault(name, value)
        return True


#: One line a run, a request or a look at the schema: ours say the same with its run and trace.
_NOISY = (
    "alembic",
    "amqp",
    "celery.app.trace",
    "celery.worker.strategy",
    "httpcore2",
    "httpx2",
    "kombu",
    "openai",
)


@cache
def handler() -> LogWriter:
    """Return the one handler that writes JSON to standard error; gunicorn's own log has it, too."""
    made = LogWriter()
    made.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    made.addFilter(_Bound())
    return made


def configure() -> None:
    """Send everything to standard error; call once, in a composition root."""
    root = logging.getLogger()
    root.handlers[:] = [handler()]
    root.setLevel(logging.INFO)
    # Lines name neither thread nor process: to find them out makes an object for each greenlet.
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_error
    if gevent := sys.modules.get("gevent"):  # where threads are greenlets
        gevent.get_hub().print_exception = _log_greenlet_error
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    """Log what ended a thread, which Python would print in lines of plain text."""
    if error.exc_value is not None:
        name = error.thread.name if error.thread else "?"
        logging.getLogger(__name__).error("thread %s failed", name, exc_info=error.exc_value)


def _log_greenlet_error(_context: object, kind: type, error: Any, _traceback: object) -> None:
    """Log what ended a greenlet, which gevent would print in lines of plain text.

    Clients that reset their connections end the greenlets that serve them, which is no error.
    """
    log = logging.getLogger(__name__)
    if issubclass(kind, ConnectionError):
        log.info("connection lost: %s", kind.__name__)
    else:
        log.error("greenlet failed", exc_info=error if error is not None else True)
