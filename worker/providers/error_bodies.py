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
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
#: What OpenRouter, LiteLLM and OpenAI's SDK put in front of the vendor's text or body; patterns.
_OF_OTHERS = (
    r"(?:Provider returned error: )?(?:litellm\.\w+: (?:\w+: )?\w+ - )?(?:Error code: \d+ - )?"
)
#: The fields before the one that counts; the body is JSON, or that of Python.
_FIELDS = rf"\{{(?:['\"]\w+['\"]: ?(?:\{{|(?:{_QUOTED}|[\w.-]+), ?))*?"
BEFORE_TEXT = rf"{_OF_OTHERS}(?:{_FIELDS}['\"](?:message|error)['\"]: ?['\"])?"
BEFORE_CODE = rf"{_OF_OTHERS}{_FIELDS}['\"]code['\"]: ?['\"]"
#: Pydantic's text, in Python or JSON: vLLM passes it on, with the whole request as the `input`.
_OF_PYDANTIC = re.compile(r"""(?<!\\)(\\*+)(['"])loc\1\2: ?[(\[]""")
_INPUT = re.compile(r"""(['"])input\1: ?(?=['"(\[{])""")
_STRING_OR_BRACKET = re.compile(
    r"""'(?:[^'\\]|\\.)*+(?:'|\\?\Z)|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[(\[{]|[)\]}]""", re.DOTALL
)
#: The input in Pydantic's plain text, up to the name of its type.
_INPUT_VALUE = re.compile(r"input_value=(?:(?!input_value=).)*(?=, input_type=)", re.DOTALL)
#: A quotation mark or backslash of JSON within JSON.
_ESCAPED = re.compile(r"""\\(["'\\])""")


def text_of(error: Any) -> str:
    """Return the text of an SDK's `APIError`, with what the vendor says."""
    said = (object_of(error) or {}).get("message")
    if not isinstance(said, str) or said in error.message:
        return _without_input(str(error.message))
    bare = _BARE.match(error.message)
    return f"{bare[0]} - {said}" if bare else said


def object_of(error: Any) -> Mapping[str, Any] | None:
    """Return the object that has the `message` of an SDK's `APIError`, and maybe a `code`, `type`
    and `param`; None if there is no object, and no text.

    What it quotes of the request is left out: a user's words are not the vendor's.
    """
    found = _object(_body(error))
    if found is not None and isinstance(message := found.get("message"), str):
        found = {**found, "message": _without_input(message)}
    return found


def _without_input(text: str) -> str:
    text = _INPUT_VALUE.sub("input_value=…", text)
    while (of_pydantic := _OF_PYDANTIC.search(text)) and of_pydantic[1]:
        text = _ESCAPED.sub(r"\1", text)
    if not of_pydantic:
        return text
    kept, at = [], 0
    while quoted := _INPUT.search(text, at):
        kept.append(text[at : quoted.end()])
        at = _end_of_value(text, quoted.end())
    return "…".join([*kept, text[at:]])


def _end_of_value(text: str, start: int) -> int:
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text, start):
        depth += (found[0] in "([{") - (found[0] in ")]}")
        if depth == 0:
            return found.end()
    return len(text)


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
