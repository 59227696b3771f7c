"""Errors of the service, and of proxies in front of it."""

import json
from collections.abc import Mapping
from typing import Any

import httpx

#: Statuses after which the same request may succeed, with those that Cloudflare has for a server
#: that it does not reach, or does not hear from; 429 is one only with `Retry-After`.
_PASSING = frozenset({408, 502, 503, 504, 520, 521, 522, 523, 524, 530})
#: Codes of an address that the service does not have, as with a base address that ends in `/v1`.
_NO_ENDPOINT = frozenset({"http.not_found", "http.method_not_allowed"})


class ArkloopError(Exception):
    """An error that the service responded with; `code` never changes, the message may.

    Its text has all that the service says: message, details, status, code and trace. `retry_after`
    are the seconds after which it expects the request again, `trace_id` is what its logs call the
    request; None: it names none.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any],
        retry_after: float | None = None,
        trace_id: str | None = None,
    ) -> None:
        shown = f" {json.dumps(details, ensure_ascii=False)}" if details else ""
        trace = f", trace {trace_id}" if trace_id else ""
        # A foreign error has no code, and its message says where it comes from.
        super().__init__(f"{message}{shown} ({status} {code}{trace})" if code else message)
        self.status = status
        self.code = code
        self.details = details
        self.retry_after = retry_after
        self.trace_id = trace_id
        self._message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy is made, as in another process: by default of the text alone."""
        given = (self.status, self.code, self._message, self.details)
        return type(self), (*given, self.retry_after, self.trace_id), self.__dict__


def is_passing(error: ArkloopError) -> bool:
    """Return whether the same request may succeed later.

    A 429 without a time is a limit that no waiting lifts, such as a budget that is used up.
    """
    if error.status == 429:
        return error.retry_after is not None
    return error.status in _PASSING or error.code == "idempotency.in_progress"


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a `Retry-After`; a proxy's date is as good as 0."""
    if retry_after is None:
        return None
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0


def error_of(response: httpx.Response) -> ArkloopError:
    """Return the error of a response that is no success."""
    status, retry_after = response.status_code, _seconds(response.headers.get("Retry-After"))
    shown = _object(response)
    code, message, details = shown.get("code"), shown.get("message"), shown.get("details")
    trace_id = shown.get("trace_id")
    if not isinstance(trace_id, str) or not trace_id:
        trace_id = response.headers.get("X-Trace-Id") or None
    if not isinstance(code, str) or not isinstance(message, str):  # a proxy's own
        return ArkloopError(status, "", _foreign_message(response), {}, retry_after, trace_id)
    if code in _NO_ENDPOINT:
        message = f"{message} {response.request.method} {response.request.url}"
    details = details if isinstance(details, dict) else {}
    return ArkloopError(status, code, message, details, retry_after, trace_id)


def _object(response: httpx.Response) -> dict[str, Any]:
    """Return the object that the body is, or an empty one."""
    try:
        shown = response.json()
    except ValueError:
        return {}
    return shown if isinstance(shown, dict) else {}


def _foreign_message(response: httpx.Response) -> str:
    """Return the text of a response that is not the service's, or what is known without one."""
    location = response.headers.get("Location")
    if location is None and response.text.strip():
        return response.text[:1_000]
    what = "without a text" if location is None else f"and a redirect to {location}"
    return f"{response.request.url} responded with {response.status_code} {what}."


def not_the_services(response: httpx.Response, expected: str) -> ArkloopError:
    """Return the error for a success that somebody else reports, such as the page of a hotspot."""
    what = f"{response.status_code} and no {expected}: the response is not the service's"
    message = f"{response.request.url} responded with {what}. Check the address."
    return ArkloopError(response.status_code, "", message, {})
