"""Spans of OpenTelemetry: how long requests, runs, model calls and tool calls took, and for whom.

Until `record_to` is called nothing is recorded. Ids that other processes have to know are made from
those of runs and calls, not drawn: so a child knows its parent across processes, and after a kill.
No prompt, message, argument or result is an attribute, and no address with its query.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from enum import IntEnum
from types import TracebackType
from typing import Self

Attribute = str | int | float | tuple[str, ...] | None
Attributes = Mapping[str, Attribute]
#: Attributes that many spans have with the same values: they are encoded once for all of them.
Common = tuple[tuple[str, Attribute], ...]


class Kind(IntEnum):
    """The kind of a span, as the protocol numbers it."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Span:
    """A span of a trace; as a context manager it is the parent of those that begin in its block."""

    __slots__ = (
        *("name", "kind", "trace_id", "span_id", "parent_id", "began", "ended"),
        *("common", "attributes", "error", "is_recorded", "_token"),
    )

    def __init__(
        self,
        name: str,
        kind: Kind,
        trace_id: str,
        span_id: str,
        parent_id: str | None,
        attributes: dict[str, Attribute],
        *,
        common: Common = (),
        is_recorded: bool = True,
    ) -> None:
        """Begin now. Times are nanoseconds since 1970; `error` is the `error.type` of a failure.

        The attributes are the span's own from now on.
        """
        self.name, self.kind = name, kind
        self.trace_id, self.span_id, self.parent_id = trace_id, span_id, parent_id
        self.attributes, self.common = attributes, common
        self.began, self.ended = time.time_ns(), 0
        self.error: str | None = None
        self.is_recorded = is_recorded
        self._token: Token[Span | None] | None = None

    def set(self, attributes: Attributes) -> None:
        """Add attributes; those that are None are left out."""
        if self.is_recorded:
            self.attributes.update(attributes)

    def fail(self, error: str) -> None:
        """Note that what the span is about has failed, with an error of few different names."""
        self.error = error

    def drop(self) -> None:
        """Forget the span: another process has it, or will have it, under the same id."""
        self.is_recorded = False

    def end(self) -> None:
        """End the span, unless it has ended."""
        if self.is_recorded and not self.ended and _record is not None:
            self.ended = time.time_ns()
            _record(self)

    def __enter__(self) -> Self:
        if self.is_recorded:
            self._token = current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            current.reset(self._token)
        if kind is not None and self.error is None and not self.ended:
            self.error = kind.__name__
        self.end()


#: What is going on in this thread or greenlet.
current: ContextVar[Span | None] = ContextVar("span", default=None)

_record: Callable[[Span], None] | None = None
_sampled_below = 1 << 64

#: Stands for a span where none is recorded.
NONE = Span("", Kind.INTERNAL, "", "", None, {}, is_recorded=False)


def record_to(record: Callable[[Span], None] | None, ratio: float = 1.0) -> None:
    """Give each span that ends to `record`, of this part of all traces; None: to nobody again.

    The trace id decides alone, so all processes choose the same traces by themselves.
    """
    global _record, _sampled_below
    _record, _sampled_below = record, round(ratio * (1 << 64))


def is_on() -> bool:
    """Return whether spans are recorded."""
    return _record is not None


def is_sampled(trace_id: str) -> bool:
    """Return whether the trace is one of those to keep, as `TraceIdRatioBased` decides it."""
    return _sampled_below >> 64 == 1 or int(trace_id[16:], 16) < _sampled_below


def new_span_id() -> str:
    """Make 16 hex digits."""
    return f"{random.getrandbits(64) or 1:016x}"


def begin(
    name: str,
    kind: Kind,
    *,
    trace_id: str | None = None,
    span_id: str | None = None,
    parent_id: str | None = None,
    attributes: dict[str, Attribute] | None = None,
    common: Common = (),
) -> Span:
    """Begin a span, in the given trace or as a child of the current one; without either, none.

    The attributes are the span's own from now on. What is returned while nothing is recorded can be
    used in the same way.
    """
    if _record is None:
        return NONE
    if trace_id is None:
        if (parent := current.get()) is None:
            return NONE
        trace_id, parent_id = parent.trace_id, parent.span_id
    elif not is_sampled(trace_id):
        return NONE
    own = {} if attributes is None else attributes
    return Span(name, kind, trace_id, span_id or new_span_id(), parent_id, own, common=common)
