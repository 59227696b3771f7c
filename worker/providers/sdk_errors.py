"""The conversion of errors of the vendors' SDKs and their HTTP client to `ProviderError`.

The SDKs are generated alike: their errors have the same names and parts.
"""

import contextlib
import email.utils
import json
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import httpx2

from arkloop.shared import machine
from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import tls_failure
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers import (
    error_bodies,
    output_limits,
    rate_limit_headers,
    refused_settings,
    size_errors,
)
from arkloop.worker.providers.attachment_errors import is_about_attachments, most_images
from arkloop.worker.providers.not_events import NotEvents

#: Nobody checks shapes: what is not what it should be fails where it is used.
_MISSHAPEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_MAX_MESSAGE_LENGTH = 500  # of what a provider says of its failure

_KINDS = {
    401: "auth",
    402: "auth",  # nothing is paid for this key
    403: "auth",
    408: "timeout",
    424: "overloaded",  # Bedrock's word for a failure of the model
    409: "overloaded",  # the vendors' word for a lock that was not free in time
    # Portkey: a budget is exhausted; Fireworks: the account is suspended, or a LoRA did not load.
    412: "auth",
    429: "rate_limited",
}
_GONE = (404, 410)
_BROKEN = "The connection to the provider broke, or the response was too long."
#: Parts of the types and codes that vendors use for an account without money, as a 4xx or in the
#: stream: waiting does not fill it.
_UNPAID = (
    "insufficient_quota",
    "insufficient_balance",
    "insufficient_credit",
    "insufficient_funds",
    "exceeded_current_quota",
    "billing",
    "credit_balance",
    "arrearage",  # Alibaba's
    "blocked_api_access",  # Groq's, 400: a limit that the customer has set
    "spend_limit",
    "budget_exceeded",  # LiteLLM, 422, in older versions 429 or 400: of a key, a team, an org, …
)
#: Alibaba's address for its tokens per minute, whose code is OpenAI's `insufficient_quota`.
_OF_A_MINUTE = "/error-code#token-limit"
#: Parts of the messages of vendors that use no such code.
_UNPAID_TEXTS = (
    "credit balance is too low",  # Anthropic, 400
    "reached your specified api usage limits",  # Anthropic, 400: a limit that the customer has set
    "used all available credits",  # xAI, 403 or 429
    "doesn't have any credits",  # xAI
    "failure to pay past invoices",  # Fireworks, 412; also after a limit of the month
    "prepayment credits are depleted",  # Gemini, 429
    "insufficient balance",  # DeepSeek, Kimi
    "insufficient credits",  # OpenRouter
    "余额不足",  # Zhipu, 429: insufficient balance
    # OpenAI behind LiteLLM, whose code is the status. Gemini and Alibaba have the same words for a
    # limit per minute, with other addresses.
    "you exceeded your current quota, please check your plan and billing details. for more"
    " information on this error, read the docs: https://platform.openai.com/",
    "your account is not active, please check your billing details",  # OpenAI, 429
    "billing hard limit has been reached",  # OpenAI, 400
    "crossed budget",  # 429: of a vendor, a deployment or a tag
    "budget has been exceeded",
)
#: Parts of Google's messages that refuse a key, or the place it is used from, with a 400.
_DENIED_TEXTS = (
    "api key not valid",
    "api key not found. please pass a valid",
    "api key expired",
    "user location is not supported",
    "free tier is not available in your country",
)
#: Messages of vendors that report an unknown model with a 400.
_MISSING_MODEL = re.compile(
    r"has been decommissioned and is no longer"  # Groq
    r"|is not a valid model id|model not exist"  # OpenRouter, DeepSeek
    r"|invalid model(?: name passed|: | ')"  # LiteLLM, Mistral, Perplexity
    r"|model identifier is invalid"  # Bedrock, as the two of one without an inference profile
    r"|support on-demand throughput|on-demand throughput isn.t supported"
    # Vertex AI, of a region, a project, or an organization's policy
    r"|is not servable in region|is not allowed to use publisher model|vertexai\.allowedmodels",
    re.IGNORECASE,
)
#: Beginnings of messages with a 400. Anywhere else, they may be a user's words that are quoted.
_WRONG_KEY = re.compile(
    rf"{error_bodies.BEFORE_TEXT}incorrect api key provided",  # xAI
    re.IGNORECASE,
)
#: The codes of OpenAI and Hugging Face.
_NO_SUCH_MODEL_CODES = ("model_not_found", "model_not_supported")
_NO_SUCH_MODEL = re.compile(
    rf"{error_bodies.BEFORE_CODE}(?:{'|'.join(_NO_SUCH_MODEL_CODES)})['\"]"
    rf"|{error_bodies.BEFORE_TEXT}(?:"
    r"the requested model '[^']*' (?:does not exist"  # OpenAI
    r"|is not supported by any provider)"  # Hugging Face
    r"|model does not exist\. please check it)",  # SiliconFlow
    re.IGNORECASE,
)
#: Groq's codes where its model has written a call, or JSON, that cannot be read or does not fit.
_BAD_OUTPUT = ("tool_use_failed", "json_validate_failed")
#: The same in LiteLLM's text, whose code is the status.
_BAD_OUTPUT_TEXT = re.compile(
    rf'GroqException - \{{.*"code": ?"(?:{"|".join(_BAD_OUTPUT)})"', re.DOTALL
)
#: Parts of the types and codes of errors inside a stream, in lower case; the first that fits.
_WORDS = (
    ("rate_limit", "rate_limited"),
    ("throttling", "rate_limited"),  # Bedrock
    ("overloaded", "overloaded"),
    ("timeout", "timeout"),
    ("authentication", "auth"),
    ("permission", "auth"),
    ("invalid_request", "invalid_request"),
    ("badrequest", "invalid_request"),
    ("invalid_prompt", "invalid_request"),
    ("not_found", "invalid_request"),
    ("validationexception", "invalid_request"),  # Bedrock
    ("too_large", "invalid_request"),
    ("context_length", "invalid_request"),
    ("policy", "invalid_request"),  # OpenAI: `bio_policy`, `image_content_policy_violation`
    ("data_residency", "invalid_request"),  # OpenAI
)


@contextlib.contextmanager
def provider_errors(
    sdk: Any, api_key: str | None, settings: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[None]:
    """Raise what goes wrong inside as `ProviderError`; `sdk` is the module `openai` or `anthropic`.

    The key is taken out of what the provider says: there are some that repeat it. `settings` are
    those of the call, one of which the provider may refuse.

    A lack of memory or descriptors is raised unchanged: no provider has failed.
    """
    try:
        with http_errors():
            try:
                yield
            except sdk.APITimeoutError as error:
                raise _timed_out(error.__cause__) from error
            except sdk.APIStatusError as error:
                raise _status_error(error, api_key, settings) from error
            except sdk.APIConnectionError as error:
                machine.raise_unchanged_shortage(error)
                if refused := _refusal(error):
                    raise refused from error
                why = f"Connecting to the provider failed: {error}"
                if _is_break(error.__cause__):
                    why = _BROKEN  # OpenAI's SDK has the same error for a stream that breaks
                elif tls := tls_failure(error):
                    why = f"TLS error at the provider: {tls}."
                raise ProviderError("connection", why) from error
            except sdk.APIError as error:
                raise _error_in_stream(error, api_key) from error
            except NotEvents as error:
                raise _not_events(error, api_key) from error
    except ProviderError as error:
        _forget_frames(error.__cause__)
        raise


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and of what it came from, which no log shows.

    A frame that has the error in a variable, or was called by one, makes a cycle: the request, with
    the content of its files, would stay in memory until garbage is collected.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def http_errors() -> Iterator[None]:
    """Convert the errors of a provider without an SDK, and those that the SDKs let through."""
    try:
        yield
    except egress.Refused as error:
        raise address_refused(error) from error
    except httpx2.HTTPStatusError as error:
        status, headers = error.response.status_code, error.response.headers
        raise _refused(status, headers, f"The provider responded with HTTP {status}.") from error
    except httpx2.TimeoutException as error:
        raise _timed_out(error) from error
    except httpx2.HTTPError as error:
        machine.raise_unchanged_shortage(error)
        # What it says quotes the answer, and that may quote the key.
        raise ProviderError("connection", _BROKEN) from error
    except _MISSHAPEN as error:
        raise ProviderError("malformed", "The provider's stream is malformed.") from error


def _is_break(cause: BaseException | None) -> bool:
    """Return whether a connection broke that there was, or was given up for what came over it."""
    is_of_connection = isinstance(cause, httpx2.NetworkError | httpx2.ProtocolError)
    return is_of_connection and not isinstance(cause, httpx2.ConnectError) and not _is_alert(cause)


def _is_alert(cause: BaseException | None) -> bool:
    """Return whether TLS was refused by an alert, as for a missing certificate of the client.

    With TLS 1.3 that comes with the first read.
    """
    while cause is not None:
        for found in (cause, *cause.args):
            if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLEOFError):
                return True
        cause = cause.__cause__ or cause.__context__
    return False


def _timed_out(cause: BaseException | None) -> ProviderError:
    """Convert a timeout; after a read timeout, the provider works on the request and bills it."""
    if isinstance(cause, httpx2.ReadTimeout):
        return ProviderError("timeout", f"The provider sent {cause}.", was_accepted=True)
    return ProviderError("timeout", "Connecting to the provider timed out.")


def _status_error(error: Any, api_key: str | None, settings: Mapping[str, Any]) -> ProviderError:
    status: int = error.status_code
    if status < 300:  # the response had begun well, and reported the error later
        return _error_in_stream(error, api_key)
    text, said = error_bodies.text_of(error), error_bodies.object_of(error) or {}
    words, param = _words(text, said), said.get("param")
    refused = refused_settings.find(status, param, words, settings)
    message = f"The provider responded with HTTP {status}: {_short(text, api_key)}"
    if _is_bad_output(text, said):
        return ProviderError("malformed", message)
    if status < 500 and _is_of_account(error):
        return ProviderError("auth", message)
    if status == 400 and _is_of_model(text, said):
        return ProviderError("invalid_request", message, is_gone=True)
    if too_large := size_errors.read(text, said, status):
        if refused and too_large.is_unclear:  # it is the setting that is too long
            return ProviderError("invalid_request", message, refused_setting=refused)
        return ProviderError("invalid_request", message, too_large=too_large)
    if is_about_attachments(text, said.get("code"), status, said.get("type")):
        return _attachments_refused(text, message)
    if status in (400, 422) and (most := output_limits.read(text, said.get("param"))):
        return ProviderError("invalid_request", message, most_output_tokens=most)
    if refused:
        return ProviderError("invalid_request", message, refused_setting=refused)
    return _refused(status, error.response.headers, message)


def _refused(status: int, headers: Mapping[str, str], message: str) -> ProviderError:
    kind, retry_after = _kind_of_status(status), _retry_after(headers)
    if status != 429:
        return ProviderError(kind, message, retry_after=retry_after, is_gone=status in _GONE)
    limit = rate_limit_headers.read(headers)
    return ProviderError(
        kind,
        message,
        retry_after=limit.reset_seconds if retry_after is None else retry_after,
        is_shared=limit.is_exhausted,
        idle_tokens=limit.idle_tokens,
    )


def _attachments_refused(text: str, message: str) -> ProviderError:
    most = most_images(text)
    return ProviderError("invalid_request", message, refuses_attachments=True, most_images=most)


def _error_in_stream(error: Any, api_key: str | None) -> ProviderError:
    text, said = error_bodies.text_of(error), error_bodies.object_of(error)
    message = _short(text, api_key)
    if _is_bad_output(text, said or {}):
        return ProviderError("malformed", message)
    if too_large := size_errors.read(text, said):
        return ProviderError("invalid_request", message, too_large=too_large)
    if _is_of_account(error):
        return ProviderError("auth", message)
    if is_about_attachments(text, (said or {}).get("code")):
        return _attachments_refused(text, message)
    kind, is_gone = _kind_in_stream(_codes(said))
    is_gone = is_gone or (kind == "invalid_request" and _is_of_model(text, said or {}))
    return ProviderError(kind, message, is_gone=is_gone)


def _not_events(error: NotEvents, api_key: str | None) -> ProviderError:
    """Report the vendor's error in a body with HTTP 200, or that it is something else."""
    said = error_bodies.object_of(error)
    if isinstance(error.body, Mapping | list) and said and isinstance(said.get("message"), str):
        found = _error_in_stream(error, api_key)
        if found.code != "provider.overloaded" or any(said.get(n) for n in ("code", "type")):
            return found
    if isinstance(error.body, str) and error.body.startswith("<"):
        what = "a page, so that the route's address may be wrong"
    else:
        text = error.body if isinstance(error.body, str) else json.dumps(error.body)
        what = f"this: {_short(text, api_key)}"
    return ProviderError("malformed", f"Instead of events, the provider responded with {what}")


def _kind_of_status(status: int) -> str:
    return _KINDS.get(status) or ("overloaded" if status >= 500 else "invalid_request")


def _codes(said: Mapping[str, Any] | None) -> list[str] | None:
    """Return the codes of an error object, in lower case; None without such an object."""
    if said is None:
        return None
    return [str(said.get(name)).lower() for name in ("code", "status", "type")]


def _is_of_account(error: Any) -> bool:
    """Return whether the account has no money, or may not make the call whatever it contains."""
    codes = " ".join(_codes(error_bodies.object_of(error)) or ())
    if _OF_A_MINUTE in error_bodies.text_of(error):
        return False
    message = error_bodies.text_of(error).lower()
    if _WRONG_KEY.match(_words(message, error_bodies.object_of(error) or {})):
        return True
    texts = (*_UNPAID_TEXTS, *_DENIED_TEXTS)
    return any(word in codes for word in _UNPAID) or any(text in message for text in texts)


def _is_of_model(text: str, said: Mapping[str, Any]) -> bool:
    """Return whether a refusal means that the vendor does not have the model."""
    if said.get("code") in _NO_SUCH_MODEL_CODES or _MISSING_MODEL.search(text):
        return True
    return bool(_NO_SUCH_MODEL.match(_words(text, said)))


def _words(text: str, said: Mapping[str, Any]) -> str:
    """Return what the vendor says, without what the SDK puts in front of it."""
    return str(said.get("message") or text)


def _is_bad_output(text: str, said: Mapping[str, Any]) -> bool:
    """Return whether the model's call or JSON is refused, which its next one may not be."""
    return said.get("code") in _BAD_OUTPUT or bool(_BAD_OUTPUT_TEXT.search(text))


def _kind_in_stream(codes: list[str] | None) -> tuple[str, bool]:
    """Return the kind of error and whether something is gone, by the status or type in it."""
    if codes is None:
        return "overloaded", False
    for number in codes:
        if number.isdecimal() and 400 <= int(number[:4]) < 600:
            return _kind_of_status(int(number)), int(number) in _GONE
    text = " ".join(codes)
    kind = next((kind for word, kind in _WORDS if word in text), "overloaded")
    return kind, kind == "invalid_request" and "not_found" in text


def _refusal(error: BaseException) -> ProviderError | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, egress.Refused):
            return address_refused(cause)
        cause = cause.__cause__
    return None


def address_refused(error: egress.Refused) -> ProviderError:
    """Report a wrong address, which is the route's fault: trying again would not help."""
    return ProviderError("invalid_request", f"The provider's address is not allowed: {error}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read `retry-after-ms`, else `Retry-After` (a number or a date), in seconds."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit
            if 0 <= seconds < float("inf"):
                return seconds
    with contextlib.suppress(KeyError, ValueError, TypeError):
        at = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(0.0, at.timestamp() - time.time())
    return None


def _short(text: str, api_key: str | None) -> str:
    if api_key:
        text = text.replace(api_key, "[key]")
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[:_MAX_MESSAGE_LENGTH] + "…"
