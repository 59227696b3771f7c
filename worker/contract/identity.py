"""The identity of a tool call: on whose behalf it is made, and the names by which that travels."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from arkloop.shared import spans
from arkloop.shared.ids import span_id_of

#: Ids of calls that are part of a key as they are; vendors choose them, and some use other forms.
_PLAIN_ID = re.compile("[A-Za-z0-9_-]{1,128}")
#: Marks a digest in place of an id: no plain id begins with it.
_DIGEST_MARK = "~"
_DIGEST_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """The run that makes calls, and those on whose behalf it was created.

    `metadata` is that of the run when the attempt began.
    """

    run_id: str
    thread_id: str
    org_id: str
    end_user_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    trace_id: str  # 32 hex digits


def idempotency_key(run_id: str, tool_call_id: str) -> str:
    """Return the key of a call, which is the same whenever the call is repeated.

    It has letters, digits and `_-:~` alone, so that it can be a header, and part of a text that is
    signed: an id of another form is represented by a digest of it.
    """
    if not _PLAIN_ID.fullmatch(tool_call_id):
        digest = hashlib.sha256(tool_call_id.encode()).hexdigest()
        tool_call_id = _DIGEST_MARK + digest[:_DIGEST_DIGITS]
    return f"{run_id}:{tool_call_id}"


def traceparent(trace_id: str, key: str) -> str:
    """Return the W3C trace context of the call with this idempotency key.

    The call is a span of the run's trace, the same span whenever it is repeated; its id is that of
    the span which is exported, where spans are.
    """
    return f"00-{trace_id}-{span_id_of(key)}-{int(spans.is_sampled(trace_id)):02}"
