"""JSON logs, one object a line, with the run and the trace bound to the current context."""

import logging
import sys
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.json import JsonFormatter

#: What every line logged from this thread or greenlet carries.
bound: ContextVar[dict[str, Any] | None] = ContextVar("bound", default=None)


def bind(**fields: Any) -> None:
    """Add fields (`run_id`, `trace_id`, …) to all later lines of this context."""
    bound.set({**(bound.get() or {}), **fields})


def clear() -> None:
    """Forget the fields: a server's greenlet is used for another request or run next."""
    bound.set(None)


class _Bound(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (bound.get() or {}).items():
            setattr(record, name, value)
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


def configure() -> None:
    """Send everything to standard error; call once, in a composition root."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    handler.addFilter(_Bound())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
