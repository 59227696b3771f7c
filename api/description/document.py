"""The OpenAPI document: every route of the app, and what is known of its endpoint."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, get_args

from flask import Flask
from werkzeug.routing import Rule

from arkloop.api.description import errors, headers
from arkloop.api.description.errors import ErrorResponses, header_ref
from arkloop.api.description.json_types import JsonSchema, JsonTypes
from arkloop.api.description.request_schemas import VERSION, RequestSchemas
from arkloop.api.http.described import Described, Frames, facts_of, marked
from arkloop.api.http.fields import Id
from arkloop.api.http.paging import PageQuery
from arkloop.shared.errors import ArkloopError, MethodNotAllowed
from arkloop.shared.events import types

ABOUT = """\
Runs LLM agents: durable runs, numbered events, replayable streams.

All responses to errors have one shape, `Error`. Bodies are strict: unknown fields, duplicate fields
and wrong types are refused. Clients ignore fields and event types that they do not know.
"""
SECURITY_SCHEMES = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access token or an API key.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A stream ticket, which opens one run for a browser.",
    },
    "refresh_token": {
        "type": "apiKey",
        "in": "cookie",
        "name": "arkloop_refresh_token",
        "description": "The cookie that a login sets.",
    },
}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class NotDescribed(Exception):
    """An endpoint lacks `@described`, or a docstring."""


def build(app: Flask, *, prefix: str = "") -> dict[str, Any]:
    """Return the document; `prefix` is the path under which a proxy serves the API.

    Raises:
        NotDescribed: an endpoint is not described.
    """
    return _Builder(app).document(prefix)


class _Builder:
    def __init__(self, app: Flask) -> None:
        self._app = app
        self._types = JsonTypes()
        self._requests = RequestSchemas()
        self._errors = ErrorResponses()
        self._ids: Counter[str] = Counter()

    def document(self, prefix: str) -> dict[str, Any]:
        paths: dict[str, dict[str, Any]] = {}
        tags: dict[str, dict[str, str]] = {}
        for rule in self._app.url_map.iter_rules():
            operations = paths.setdefault(_path(rule), {})
            for method in _METHODS:
                if method in (rule.methods or ()):
                    operations[method.lower()] = self._operation(rule, method)
            tags.setdefault(rule.endpoint.split(".")[0], self._tag(rule))
        # No operation has it: it is the response to a method that a path does not have.
        self._errors.of([MethodNotAllowed], errors.OURS, {})
        events = self._event_schemas()
        return {
            "openapi": VERSION,
            "info": {
                "title": "Arkloop Runs",
                "version": version("arkloop-runs"),
                "description": ABOUT,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": prefix or "/"}],
            "tags": list(tags.values()),
            "paths": paths,
            "components": {
                "schemas": self._schemas() | events,
                "responses": self._errors.components,
                "headers": headers.RESPONSE,
                "securitySchemes": SECURITY_SCHEMES,
            },
        }

    def _schemas(self) -> dict[str, JsonSchema]:
        requests, shown = self._requests.components, self._types.components
        if both := requests.keys() & shown.keys():
            raise TypeError(f"schemas of requests and responses have the same names: {both}")
        return {"Error": errors.ERROR, **requests, **shown}

    def _event_schemas(self) -> dict[str, JsonSchema]:
        """Return a schema for each type of event, and `Event` for any of them."""
        schemas: dict[str, JsonSchema] = {}
        payloads = {}
        for kind in get_args(types.Event):
            self._types.schema(kind)
            data = self._types.components.pop(kind.__name__)
            payloads[f"{kind.__name__}Data"] = data
            schemas[f"{kind.__name__}Event"] = {
                "type": "object",
                "properties": {
                    "seq": {"type": "integer", "minimum": 1},
                    "type": {"const": kind.type},
                    "data": {"$ref": f"#/components/schemas/{kind.__name__}Data"},
                    "created_at": {"type": "string", "format": "date-time"},
                },
                "required": ["seq", "type", "data", "created_at"],
            }
        refs = {name: f"#/components/schemas/{name}" for name in schemas}
        mapping = {kind.type: refs[f"{kind.__name__}Event"] for kind in get_args(types.Event)}
        schemas["Event"] = {
            "description": "An event of a run. Clients ignore types that they do not know.",
            "oneOf": [{"$ref": ref} for ref in refs.values()],
            "discriminator": {"propertyName": "type", "mapping": mapping},
        }
        return {**self._types.components, **payloads, **schemas}

    def _tag(self, rule: Rule) -> dict[str, str]:
        view = self._app.view_functions[rule.endpoint]
        module = inspect.getmodule(inspect.unwrap(view))
        name = rule.endpoint.split(".")[0]
        return {"name": name, "description": _text(module.__doc__ if module else "").strip()}

    def _operation(self, rule: Rule, method: str) -> dict[str, Any]:
        view = self._app.view_functions[rule.endpoint]
        facts, text = facts_of(view), _text(inspect.getdoc(view))
        if facts is None or not text:
            raise NotDescribed(f"{method} {rule.rule} ({rule.endpoint})")
        permission = facts.permission or marked(view, "permission")
        operation: dict[str, Any] = {
            "operationId": self._id(rule),
            "tags": [rule.endpoint.split(".")[0]],
            "summary": _first_sentence(text),
            "description": text + _required(view, permission),
            "security": [{name: []} for name in self._security(view, facts)],
            "parameters": self._parameters(rule, view, facts),
        }
        if facts.body is not None:
            content = {facts.body_type: {"schema": self._requests.body(facts.body)}}
            operation["requestBody"] = {"required": not facts.body_optional, "content": content}
        operation["responses"] = self._successes(view, facts) | self._failures(rule, view, facts)
        return operation

    def _id(self, rule: Rule) -> str:
        """Return the name of the endpoint, with a number for its further addresses."""
        self._ids[rule.endpoint] += 1
        number = self._ids[rule.endpoint]
        return rule.endpoint if number == 1 else f"{rule.endpoint}_{number}"

    def _security(self, view: Callable[..., Any], facts: Described) -> Iterable[str]:
        if facts.security is not None:
            return facts.security
        return () if marked(view, "permission") is None else ("token",)

    def _parameters(
        self, rule: Rule, view: Callable[..., Any], facts: Described
    ) -> list[dict[str, Any]]:
        in_path = [
            {"name": name, "in": "path", "required": True, "schema": _argument(rule, name)}
            for name in _arguments(rule)
        ]
        names = [*facts.headers, *(["Idempotency-Key"] if marked(view, "idempotent") else [])]
        in_headers = [{"name": name, "in": "header", **headers.REQUEST[name]} for name in names]
        in_query = self._requests.query(facts.query) if facts.query else []
        return [*in_path, *in_query, *in_headers]

    def _successes(self, view: Callable[..., Any], facts: Described) -> dict[str, Any]:
        names = ["X-Trace-Id", *facts.response_headers]
        if facts.status == 201 or 303 in facts.also:
            names.append("Location")
        if marked(view, "idempotent") or "Idempotency-Key" in facts.headers:
            names.append("Idempotency-Replayed")
        if "Prefer" in facts.headers:
            names.append("Preference-Applied")
        if facts.query is not None and issubclass(facts.query, PageQuery):
            names += ["X-Next-Cursor", "Link"]
        return {
            str(status): {
                "description": "Success.",
                "headers": {name: header_ref(name) for name in names},
                **self._content(returns),
            }
            for status, returns in {facts.status: facts.returns, **facts.also}.items()
        }

    def _content(self, returns: Any) -> dict[str, Any]:
        if returns is None:
            return {}
        by_type = returns if isinstance(returns, Mapping) else {"application/json": returns}
        return {"content": {name: self._media(kind) for name, kind in by_type.items()}}

    def _media(self, kind: Any) -> dict[str, Any]:
        if isinstance(kind, type) and issubclass(kind, Frames):
            return {"schema": {"description": inspect.getdoc(kind)}}
        if kind is bytes:
            return {}
        return {"schema": self._types.schema(kind)}

    def _failures(self, rule: Rule, view: Callable[..., Any], facts: Described) -> dict[str, Any]:
        raised: list[type[ArkloopError]] = [*errors.ALWAYS, *facts.raises]
        arguments = _arguments(rule)
        if arguments:
            raised += errors.OF_A_PATH
        raised += [errors.NOT_FOUND[name] for name in arguments if name in errors.NOT_FOUND]
        if any(self._security(view, facts)):
            raised += errors.OF_A_TOKEN
        if facts.body is not None:
            raised += errors.OF_A_BODY
        if marked(view, "idempotent") or "Idempotency-Key" in facts.headers:
            raised += errors.OF_A_KEY
        if facts.errors is None:
            return self._errors.of(raised, errors.OURS, {})
        return self._errors.of(raised, self._types.schema(facts.errors.json), facts.errors.statuses)


def _path(rule: Rule) -> str:
    """Return `/v1/runs/{run_id}` for `/v1/runs/<id:run_id>`."""
    return re.sub(r"<(?:\w+:)?(.*?)>", r"{\1}", rule.rule)


def _arguments(rule: Rule) -> list[str]:
    return re.findall(r"<(?:\w+:)?(.*?)>", rule.rule)


def _argument(rule: Rule, name: str) -> JsonSchema:
    if f"<id:{name}>" in rule.rule:
        return Id.json_schema
    if f"<path:{name}>" in rule.rule:
        return {"type": "string", "minLength": 1}
    is_response = f"<response:{name}>" in rule.rule
    return {"type": "string", "pattern": "^resp_[^/:]*$" if is_response else "^[^/]+$"}


def _text(docstring: str | None) -> str:
    """Return a docstring without the errors that it raises, which the responses name."""
    return re.split(r"^\s*Raises:", docstring or "", flags=re.MULTILINE)[0].rstrip()


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.;:])\s", paragraph)[0].rstrip(".;:").replace("`", "")


def _required(view: Callable[..., Any], permission: str | None) -> str:
    text = ""
    if permission:
        *first, last = (f"`{name}`" for name in (permission, *(marked(view, "also") or ())))
        named = f"permissions {', '.join(first)} and {last}" if first else f"permission {last}"
        text = f"\n\nRequires the {named}."
    return f"{text}\n\nClient tokens may be used." if marked(view, "end_users") else text
