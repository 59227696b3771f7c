"""The result of a call, read from the tool's response.

A body that has `output` alone, or `output` and `is_error` beside any other fields, is a result that
the tool's author wrote for the model. Of a failing status without such a body the model reads the
status alone: error pages may contain secrets. A body of a 2xx whose `is_error` is true is a failure
whatever else it has, since a failure must not count as success.
"""

import email.message
import json
import re
from typing import Any, NamedTuple

from arkloop.shared.security.exchange import Response
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.http.charsets import decoded
from arkloop.worker.tools import ResultPending, ToolFailed

_JSON = re.compile(r"application/([\w.-]+\+)?json")
_ACCEPTED = 202
_FIELDS = {"output", "is_error"}
UNKNOWN = " The call may have taken effect."


class _Written(NamedTuple):
    """A result that the tool's author wrote."""

    output: str | None  # None: the body has none
    is_error: bool
    is_alone: bool  # no other fields, which the model would have to read as well


def output_of(response: Response) -> str:
    """Return what the model reads of a call that the tool has answered.

    Raises:
        ResultPending: the tool has accepted the call, and its result comes later.
        ToolFailed: the tool says so, by its status or in its body, or the body is not text.
    """
    status = response.status
    if status == _ACCEPTED:
        raise ResultPending()
    if response.problem is not None:
        raise ToolFailed(f"HTTP status {status}: {response.problem}")
    is_ok = 200 <= status < 300
    written = _written_in(response)
    if written is not None and written.output is not None and (written.is_alone or not is_ok):
        if written.is_error or not is_ok:
            raise ToolFailed(written.output)
        return written.output
    if 300 <= status < 400:
        raise ToolFailed(f"HTTP status {status}: redirects of tools are not followed.")
    if not is_ok:
        raise ToolFailed(_by_status(status) + (UNKNOWN if status >= 500 else ""))
    kind = _content_type(response)
    if not _JSON.fullmatch(kind) and not kind.startswith("text/"):
        raise ToolFailed(f"HTTP status {status}, but the response is neither JSON nor text.")
    text = _text_of(response)
    if written is not None and written.is_error:
        raise ToolFailed(text)
    return text


def refusal_of(response: Response) -> str:
    """Return what the model reads of a response that says that nothing was done.

    Raises:
        ToolFailed: the body is not a valid result.
    """
    written = _written_in(response) if response.problem is None else None
    if written is None or written.output is None:
        return _by_status(response.status)
    return written.output


def _by_status(status: int) -> str:
    return f"The tool responded with HTTP status {status}."


def _header(response: Response) -> email.message.Message:
    header = email.message.Message()
    header["content-type"] = (response.content_type or "text/plain")[:200]
    return header


def _content_type(response: Response) -> str:
    return _header(response).get_content_type()


def _text_of(response: Response) -> str:
    return decoded(response.body, _header(response).get_content_charset() or "")


def _written_in(response: Response) -> _Written | None:
    if not _JSON.fullmatch(_content_type(response)):
        return None
    with cpu_slice():
        return _written(_text_of(response))


def _written(text: str) -> _Written | None:
    """Read a result from a JSON body; None if it is other JSON, or none.

    Raises:
        ToolFailed: it has `output`, and its `is_error` is neither true nor false.
    """
    try:
        # Not by `json_text`: the output becomes a text, which is cleaned and cut before it is
        # stored. Without functions in Python for each value, 1 MiB takes less than 0.1 s.
        found: Any = json.loads(text, parse_constant=str)
        if not isinstance(found, dict):
            return None
        is_error = found.get("is_error", False)
        if "output" not in found:
            return _Written(None, True, False) if is_error is True else None
        is_alone = found.keys() <= _FIELDS
        if not is_alone and "is_error" not in found:
            return None
        if not isinstance(is_error, bool):
            raise ToolFailed("The tool's response is not valid: `is_error` must be true or false.")
        output = found["output"]
        output = output if isinstance(output, str) else _json_of(output)
        return _Written(output, is_error, is_alone)
    except (ValueError, RecursionError):
        return None


def _json_of(output: Any) -> str:
    return json.dumps(output, ensure_ascii=False, separators=(",", ":"))
