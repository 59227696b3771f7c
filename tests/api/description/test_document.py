"""The OpenAPI document describes all that there is, and describes it right."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from flask import Flask
from openapi_spec_validator import validate

from arkloop.api.description import document
from arkloop.api.description.document import NotDescribed
from arkloop.shared import errors
from arkloop.shared.catalog import model_settings, personas
from arkloop.shared.events import types
from arkloop.shared.runs import overrides
from tests.described_responses import validator

DOCS = Path(__file__).parents[3] / "docs" / "reference"


@pytest.fixture(scope="module")
def described(app: Flask) -> dict[str, Any]:
    return document.build(app)


def _operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            yield f"{method.upper()} {path}", operation


def test_the_document_is_valid(described: dict[str, Any]) -> None:
    """The validator of others finds no fault in it, JSON Schema included."""
    validate(described)


def _schemas(part: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a part of the document, whichever of them are schemas."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if type(part) is list else ():
        yield from _schemas(inner)


def test_generators_can_name_each_type(described: dict[str, Any]) -> None:
    """They need the items of each list, and enums of texts or of numbers alone.

    openapi-generator compares a flag with the text of the only one that is allowed.
    """
    for one in _schemas(described):
        kinds = one.get("type")
        if kinds == "array" or (isinstance(kinds, list) and "array" in kinds):
            assert "items" in one, one
        if isinstance(values := one.get("enum"), list):
            assert 1 >= len({type(value) for value in values if value is not None}), one
            assert not any(isinstance(value, dict | list | bool) for value in values), one
        assert not isinstance(one.get("const"), bool), one


def test_the_first_type_that_fits_is_the_right_one(described: dict[str, Any]) -> None:
    """Generated clients try the alternatives in turn; the longer one comes first."""
    components = described["components"]["schemas"]
    seen = 0
    for one in _schemas(described):
        names = [
            other["$ref"].rpartition("/")[2] for other in one.get("anyOf", ()) if "$ref" in other
        ]
        for first, second in itertools.combinations(names, 2):
            shorter, longer = components[first], components[second]
            seen += 1
            fits = set(shorter.get("required", ())) <= set(longer.get("required", ()))
            are_distinct = any(
                "enum" in longer["properties"].get(name, {}) and kind != longer["properties"][name]
                for name, kind in shorter["properties"].items()
                if "enum" in kind
            )
            assert are_distinct or not fits, (first, second)
    assert seen


def test_a_persona_to_publish_has_the_fields_that_are_read(described: dict[str, Any]) -> None:
    """Generated clients leave out what is not named; and the response shows the same fields."""
    schemas = described["components"]["schemas"]
    given, shown = schemas["PublishPersona"], schemas["Persona"]["properties"]

    assert given["properties"].keys() == {"key", "version", *personas.FIELDS}
    assert given["additionalProperties"] is False
    assert personas.FIELDS.keys() <= shown.keys()
    assert [] == [name for name, one in given["properties"].items() if not one]


@pytest.mark.parametrize("body", ["CreateRun", "CreateRunAnywhere", "ChatRequest"])
def test_the_overrides_of_a_run_have_types(described: dict[str, Any], body: str) -> None:
    """Limits and model settings are named one by one."""
    properties = described["components"]["schemas"][body]["properties"]

    assert [] == [name for name in personas.OVERRIDES if not properties[name]]
    assert {*overrides.LIMITS} == properties["limits"]["properties"].keys()
    assert model_settings.NAMES == properties["model_settings"]["properties"].keys()
    assert {"type": "string", "maxLength": overrides.MAX_VALUE_BYTES} == (
        properties["variables"]["additionalProperties"]
    )


def test_generated_clients_send_the_fields_of_an_agents_events(described: dict[str, Any]) -> None:
    """Only `type` is named, and openapi-generator drops others unless there may be any."""
    events = described["components"]["schemas"]["AppendEvents"]["properties"]["events"]

    assert events["items"]["additionalProperties"] is True


def test_every_route_and_method_is_described(app: Flask, described: dict[str, Any]) -> None:
    """Each has an operation with an id of its own, a summary and a response of success."""
    routes = {
        method + re.sub("<(?:[a-z]+:)?(.*?)>", r"{\1}", f" {rule.rule}")
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    operations = dict(_operations(described))

    assert routes == operations.keys()
    assert len(operations) == len({one["operationId"] for one in operations.values()})
    assert [] == [name for name, one in operations.items() if not one["summary"]]
    successes = {
        name: [status for status in one["responses"] if status < "300"]
        for name, one in operations.items()
    }
    assert [] == [name for name, found in successes.items() if not found]


@pytest.mark.parametrize(
    ("endpoint", "permissions"),
    [
        ("GET /v1/runs/{run_id}", "permission `data.runs.read`"),
        (
            "GET /v1/runs/{run_id}/prompts",
            "permissions `data.runs.read` and `data.threads.read`",
        ),
        (
            "POST /v1/agui",
            "permissions `data.runs.write`, `data.runs.read` and `data.threads.write`",
        ),
    ],
)
def test_all_permissions_of_an_endpoint_are_named(
    described: dict[str, Any], endpoint: str, permissions: str
) -> None:
    """Further ones stand beside the first."""
    text = dict(_operations(described))[endpoint]["description"]
    assert f"Requires the {permissions}." in text


def test_a_replay_is_promised_where_it_is_kept(described: dict[str, Any]) -> None:
    """A POST without a replay of its first response is an exception that http-api.md names."""
    exceptions = (
        r"/v1/(auth|tool-workers|agent-workers)/.*|/v1/ui/chat.*|/v1/agui.*|.*(:|/)cancel"
        r"|/v1/client-tokens|.*/stream-ticket|.*/password-reset"
    )
    posts = {
        path: operation
        for name, operation in _operations(described)
        for method, path in [name.split(" ")]
        if method == "POST"
    }

    replayed = {
        path
        for path, operation in posts.items()
        if any(
            "Idempotency-Replayed" in response.get("headers", {})
            for status, response in operation["responses"].items()
            if status < "300"
        )
    }

    cancelled = {"/v1/runs/{run_id}:cancel", "/v1/operator/runs/{run_id}:cancel"}
    assert replayed == {p for p in posts if not re.fullmatch(exceptions, p)} | cancelled


def test_an_endpoint_without_a_description_is_an_error() -> None:
    """The document cannot be made while an endpoint lacks `@described`."""
    app = Flask("other", static_folder=None)

    @app.get("/v1/new")
    def new() -> str:
        """Show what is new."""
        return ""

    with pytest.raises(NotDescribed, match="GET /v1/new"):
        document.build(app)


def test_every_error_code_is_described(described: dict[str, Any]) -> None:
    """Each has its place in a response, with the message that a caller reads."""
    text = "".join(
        response["description"] for response in described["components"]["responses"].values()
    )
    codes = {error.code for error in _subclasses(errors.ArkloopError)} | {"internal.error"}

    # The base class of the 409s: no response has this code.
    assert {"http.conflict"} == {code for code in codes if f"- `{code}`: " not in text}


def _subclasses(of: type[errors.ArkloopError]) -> Iterator[type[errors.ArkloopError]]:
    for found in of.__subclasses__():
        if found.__module__ == errors.__name__:
            yield found
        yield from _subclasses(found)


def test_every_event_type_is_described(described: dict[str, Any]) -> None:
    """`Event` has a schema for each type that a run can have, and for no other."""
    mapping = described["components"]["schemas"]["Event"]["discriminator"]["mapping"]

    assert {kind.type for kind in get_args(types.Event)} == mapping.keys()


def test_the_examples_of_events_fit_their_descriptions(described: dict[str, Any]) -> None:
    """Each example in `events.md` is a valid `Event`."""
    examples = re.findall(r'^\{"seq":.*$', (DOCS / "events.md").read_text(), re.MULTILINE)
    is_event = validator(described, {"$ref": "#/components/schemas/Event"})

    assert len(get_args(types.Event)) <= len(examples)
    assert [] == [example for example in examples if not is_event.is_valid(json.loads(example))]


def test_the_examples_of_responses_fit_their_descriptions(described: dict[str, Any]) -> None:
    """The first example below each heading of `http-api.md` is a valid response, or a row of it."""
    operations = dict(_operations(described))
    wrong, checked = [], 0
    for section in re.split("^### ", (DOCS / "http-api.md").read_text(), flags=re.MULTILINE)[1:]:
        operation = operations[section.splitlines()[0]]
        example = re.search(r"^```json\n(.*?)\n```", section, re.DOTALL | re.MULTILINE)
        media = [
            response["content"].get("application/json")
            for status, response in sorted(operation["responses"].items())
            if status < "300" and "content" in response
        ]
        if example is None or not media or media[0] is None:
            continue
        checked += 1
        schema, value = media[0]["schema"], json.loads(example[1])
        # Where a list has one example, that is a row of it.
        shown = schema["items"] if schema.get("type") == "array" and type(value) is dict else schema
        for error in validator(described, shown).iter_errors(value):
            wrong.append(f"{section.splitlines()[0]}: {error.message[:200]}")

    assert [] == wrong
    assert checked > 20
