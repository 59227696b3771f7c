"""Bodies of vendors' errors in all their shapes.

The SDKs read an object `error` with a `message`, OpenAI's shape. From others they take nothing, and
what vendors say decides what is done: whether a thread is shortened, or a setting left out.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import httpx2

#: All that an SDK says where it has found no message.
_BARE = re.compile(r"Error code: \d+|An error occurred during streaming")


def text_of(error: Any) -> str:
    """Return the text of an SDK's `APIError`, with what the vendor says."""
    said = (object_of(error) or {}).get("message")
    if not isinstance(said, str) or said in error.message:
        return str(error.message)
    bare = _BARE.match(error.message)
    return f"{bare[0]} - {said}" if bare else said


def object_of(error: Any) -> Mapping[str, Any] | None:
    """Return the object that has the `message` of an SDK's `APIError`, and maybe a `code`, `type`
    and `param`; None if there is no object, and no text.
    """
    return _object(_body(error))


def _object(body: Any) -> Mapping[str, Any] | None:
    if isinstance(body, list):  # Gemini
        body = body[0] if body else None
    if isinstance(body, str):
        text = body.strip()
        return {"message": text} if text and not text.startswith("<") else None
    if not isinstance(body, Mapping):
        return None
    inner, errors = body.get("error"), body.get("errors")
    if isinstance(inner, Mapping):
        return _with_upstream(inner)
    message = body.get("message")
    if isinstance(inner, str):  # xAI, TGI, LM Studio, Ollama; with a message NestJS, Spring
        texts = [inner, *(message if isinstance(message, list) else [message])]
        said = dict.fromkeys(text for text in texts if isinstance(text, str))
        return {**body, "message": ": ".join(said)}
    if isinstance(errors, list) and errors and isinstance(errors[0], Mapping):  # Cloudflare
        return errors[0]
    if isinstance(message, Mapping) and "detail" in message:  # Mistral
        return {**body, "message": _detail(message["detail"])}
    if "detail" in body and not message:  # FastAPI
        return {**body, "message": _detail(body["detail"])}
    return _with_upstream(body)  # the object itself, as the SDKs keep one of a stream


def _with_upstream(inner: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add what OpenRouter quotes of the server behind it, below "Provider returned error"."""
    metadata = inner.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    if isinstance(raw, str):
        with contextlib.suppress(ValueError, RecursionError):  # it is a text
            raw = json.loads(raw)
    quoted = _object(raw) or {}
    if not isinstance(message := quoted.get("message"), str):
        return inner
    named = {name: quoted[name] for name in ("code", "type", "param") if quoted.get(name)}
    if outer := inner.get("message"):
        message = f"{outer}: {message}"
    return {"status": inner.get("code"), **inner, **named, "message": message}


def _body(error: Any) -> Any:
    """Return the body of the response; what the SDK keeps of it lacks a code beside the text."""
    response = getattr(error, "response", None)
    if response is not None and error.status_code >= 300:
        with contextlib.suppress(httpx2.StreamError, ValueError):  # not read, or no JSON
            return json.loads(response.text)
    return error.body


def _detail(detail: Any) -> str:
    """Return FastAPI's text, or that of its list of wrong fields, with their names."""
    if isinstance(detail, list):
        return "; ".join(map(_of_field, detail))
    return detail if isinstance(detail, str) else json.dumps(detail)


def _of_field(wrong: Any) -> str:
    if not isinstance(wrong, Mapping):
        return str(wrong)
    where = wrong.get("loc")
    name = ".".join(map(str, where[1:])) if isinstance(where, list) else ""  # not "body"
    text = str(wrong.get("msg", wrong))
    return f"{name}: {text}" if name and name not in text else text
