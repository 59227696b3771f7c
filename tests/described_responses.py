"""Responses of the app, held against its own description in every test that uses it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema_rs
from flask import Flask, Response, g, request

from arkloop.api.description import document

HEADERS = (
    *("Location", "X-Next-Cursor", "X-Stream-Cursor"),
    *("Idempotency-Replayed", "Preference-Applied"),
)
#: The description is that of the code: the same for every app of this process.
_document: dict[str, Any] = {}
_operations: dict[str, dict[str, Any]] = {}
_validators: dict[int, Any] = {}


class DescribedResponses:
    """Collects how responses of the app differ from its description."""

    def __init__(self, app: Flask) -> None:
        self.problems: list[str] = []
        app.after_request(self._check)
        if not _document:
            _document.update(document.build(app))
            for operations in _document["paths"].values():
                for operation in operations.values():
                    _operations[operation["operationId"]] = operation

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Fail at the end of the block if responses in it differed from the description."""
        self.problems.clear()
        yield
        problems = sorted({*self.problems})
        assert [] == problems, f"responses differ from the API's description: {problems}"

    def _check(self, response: Response) -> Response:
        if request.url_rule is None or request.method in ("HEAD", "OPTIONS"):
            return response
        operation = _operations[request.url_rule.endpoint]
        for problem in self._problems(operation, response):
            where = f"{request.method} {request.url_rule.rule} {response.status_code}"
            self.problems.append(f"{where}: {problem}")
        return response

    def _problems(self, operation: dict[str, Any], response: Response) -> list[str]:
        described = operation["responses"].get(str(response.status_code))
        if described is None:
            return [f"is not described: {response.get_data(as_text=True)[:200]}"]
        described = self._resolved(described)
        problems = [
            f"the header {name} is not described"
            for name in HEADERS
            if name in response.headers and name not in described.get("headers", {})
        ]
        content = described.get("content", {})
        is_read = not response.direct_passthrough and response.status_code != 304
        if response.mimetype == "application/json" and is_read:
            if "application/json" not in content:
                return [*problems, "no JSON is described"]
            schema = content["application/json"]["schema"]
            problems += self._invalid(schema, json.loads(response.get_data()))
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body and response.status_code < 300 and g.get("body") is not None:
            sent = self._invalid(body["schema"], g.body)
            problems += [f"accepted a body that is described as invalid: {why}" for why in sent]
        return problems

    def _resolved(self, response: dict[str, Any]) -> dict[str, Any]:
        ref = response.get("$ref")
        if ref is None:
            return response
        found: dict[str, Any] = _document["components"]["responses"][ref.rpartition("/")[2]]
        return found

    def _invalid(self, schema: dict[str, Any], value: Any) -> list[str]:
        # The schema is a part of the document, which lives as long as the process.
        if id(schema) not in _validators:
            _validators[id(schema)] = validator(_document, schema)
        return [
            f"{'.'.join(map(str, error.instance_path))}: {error.message[:300]}"
            for error in _validators[id(schema)].iter_errors(value)
        ]


def validator(described: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return a validator of a schema that refers to the components of a document."""
    whole = {**schema, "components": {"schemas": described["components"]["schemas"]}}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
