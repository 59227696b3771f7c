"""The bodies of the requests of agent workers, and a query: strict, and turned into events."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import ValidationError, fields, validate, validates_schema

from arkloop.api.http.fields import (
    BoundedList,
    Digits,
    Id,
    JsonSchema,
    StrictBoolean,
    Usd,
    repetitions,
    utf8_length,
    whole,
)
from arkloop.api.http.schema import Schema
from arkloop.shared.agents.agent_run import MAX_CHECKPOINT_BYTES
from arkloop.shared.agents.questions import MAX_KEY_CHARACTERS
from arkloop.shared.agents.transcript import (
    CALL_ID,
    MAX_NAME_CHARACTERS,
    MAX_TASK_CHARACTERS,
    MAX_TASKS,
)
from arkloop.shared.events import types
from arkloop.shared.events.types import Event
from arkloop.shared.events.usage import MAX_TOKENS, TOKEN_FIELDS, Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs.agent_costs import AgentCost
from arkloop.shared.runs.agent_endings import CODES, FAILED

MAX_WAIT_SECONDS = 30
MAX_RUNS = 16
MAX_HELD = 256
MAX_EVENTS = 500
#: Of one piece of text; a longer one is sent in several.
MAX_TEXT_BYTES = 32_768
MAX_CONTENT_BYTES = 1024 * 1024
MAX_OUTPUT_BYTES = 65_536
MAX_QUESTION_BYTES = 32_768

_CALL_ID = validate.Regexp(
    rf"\A{CALL_ID.pattern}\Z", error="must be 1 to 128 printable ASCII characters"
)
_TOOL_NAME = validate.Length(1, MAX_NAME_CHARACTERS)


class _Text(Schema):
    type = fields.String(required=True)
    content = fields.String(required=True, validate=utf8_length(1, MAX_TEXT_BYTES))


class _Tokens(Schema.from_dict({name: whole(0, MAX_TOKENS) for name in TOKEN_FIELDS})):  # type: ignore[misc]  # a made class
    """The tokens of model calls; those that are left out are 0."""


class _Turn(Schema):
    type = fields.String(required=True)
    usage = fields.Nested(_Tokens, load_default=dict)
    content = fields.String(required=True, validate=utf8_length(0, MAX_CONTENT_BYTES))


class _Reset(Schema):
    type = fields.String(required=True)
    from_seq = fields.Integer(required=True, strict=True, validate=validate.Range(1, 2**63 - 1))


class _Call(Schema):
    type = fields.String(required=True)
    tool_call_id = fields.String(required=True, validate=_CALL_ID)
    name = fields.String(required=True, validate=_TOOL_NAME)
    arguments = fields.Raw(required=True, allow_none=True)


class _Result(Schema):
    type = fields.String(required=True)
    tool_call_id = fields.String(required=True, validate=_CALL_ID)
    name = fields.String(required=True, validate=_TOOL_NAME)
    output = fields.String(required=True, validate=utf8_length(0, MAX_OUTPUT_BYTES))
    is_error = StrictBoolean(load_default=False)
    duration_ms = whole(0, 2**53)


class _Cost(_Tokens):
    """A model call: its tokens, and what its provider bills for it, if it says so."""

    type = fields.String(required=True)
    cost_usd = Usd(load_default=None, allow_none=True)
    model = fields.String(load_default=None, validate=validate.Length(1, 200), allow_none=True)


def _text_of(kind: Any) -> Any:
    return lambda value: kind(value["content"])


def _usage(value: Mapping[str, Any]) -> Usage:
    tokens: dict[str, Any] = {name: value.get(name) or 0 for name in TOKEN_FIELDS}
    return Usage(**tokens)


def _reset(value: Mapping[str, Any]) -> Event:
    return types.MessageReset(value["from_seq"], "agent")


def _turn(value: Mapping[str, Any]) -> Event:
    return types.MessageCompleted(str(new_id()), value["content"], _usage(value["usage"]))


def _call(value: Mapping[str, Any]) -> Event:
    return types.ToolCallRequested(value["tool_call_id"], value["name"], value["arguments"])


def _result(value: Mapping[str, Any]) -> Event:
    return types.ToolResult(
        value["tool_call_id"],
        value["name"],
        value["output"],
        value["is_error"],
        value.get("duration_ms") or 0,
    )


def _cost(value: Mapping[str, Any]) -> AgentCost:
    cost = value["cost_usd"]
    return AgentCost(
        model=value["model"], usage=_usage(value), cost_usd=None if cost is None else float(cost)
    )


#: By type; schemas are made once, since making one copies its fields.
_KINDS: dict[str, tuple[Schema, Any]] = {
    types.MessageDelta.type: (_Text(), _text_of(types.MessageDelta)),
    types.MessageThinking.type: (_Text(), _text_of(types.MessageThinking)),
    types.MessageReset.type: (_Reset(), _reset),
    types.MessageCompleted.type: (_Turn(), _turn),
    types.ToolCallRequested.type: (_Call(), _call),
    types.ToolResult.type: (_Result(), _result),
    types.RunCost.type: (_Cost(), _cost),
}


class AgentEvent(fields.Field[Any]):
    """An event as an agent reports it; `type` says which fields it has."""

    json_schema: ClassVar[JsonSchema] = {
        "type": "object",
        "properties": {"type": {"enum": list(_KINDS)}},
        "required": ["type"],
        "additionalProperties": True,  # generated clients drop what is not named otherwise
    }

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        if not isinstance(value, dict):
            raise ValidationError("must be an object")
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValidationError({"type": [f"must be one of {', '.join(_KINDS)}"]})
        schema, build = _KINDS[kind]
        return build(schema.load(value))


class Checkpoint(fields.Field[str]):
    """Any JSON, as text; null is a checkpoint, too."""

    json_schema: ClassVar[JsonSchema] = {
        "type": ["string", "number", "boolean", "object", "array", "null"],
        "items": {},
    }

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        # A field that allows null would take it for no value.
        return "null" if value is None else super().deserialize(value, *args, **kwargs)

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if len(text.encode()) > MAX_CHECKPOINT_BYTES:
            raise ValidationError(f"must have at most {MAX_CHECKPOINT_BYTES:,} bytes as JSON")
        return text


class PollForRuns(Schema):
    worker_id = Id(required=True)
    wait_seconds = whole(0, MAX_WAIT_SECONDS)
    max_runs = whole(0, MAX_RUNS)
    held = BoundedList(Id(), most=MAX_HELD, load_default=list)


class _HeldRun(Schema):
    run_id = Id(required=True)
    fence = fields.Integer(required=True, strict=True, validate=validate.Range(1, 2**63 - 1))


class _KnownRun(_HeldRun):
    cancel_requested = StrictBoolean(load_default=False)


class HoldRuns(Schema):
    worker_id = Id(required=True)
    wait_seconds = whole(0, MAX_WAIT_SECONDS)
    runs = BoundedList(fields.Nested(_KnownRun), required=True, most=MAX_HELD)


class ReadFile(Schema):
    fence = Digits(required=True, least=1)


class AppendEvents(_HeldRun):
    """Events from `seq` on, a checkpoint, or both in one."""

    seq = fields.Integer(strict=True, validate=validate.Range(1, 2**63 - 1))
    events = BoundedList(AgentEvent(), most=MAX_EVENTS, load_default=list)
    checkpoint = Checkpoint()
    begun = BoundedList(fields.String(validate=_CALL_ID), most=MAX_EVENTS, load_default=list)

    @validates_schema
    def _check_number(self, body: dict[str, Any], **_: Any) -> None:
        if body.get("events") and "seq" not in body:
            raise ValidationError("is required with `events`", "seq")
        has_more = "checkpoint" in body or body.get("begun")
        if not body.get("events") and not has_more and type(self) is AppendEvents:
            raise ValidationError("is required, unless there is a `checkpoint`", "events")


class StoreCheckpoint(_HeldRun):
    checkpoint = Checkpoint(required=True)


class _LastWrite(AppendEvents):
    seq = fields.Integer(required=True, strict=True, validate=validate.Range(1, 2**63 - 1))


def _check_distinct(call_ids: list[str]) -> None:
    if repeated := repetitions(call_ids):
        raise ValidationError({place: ["duplicate id"] for place in repeated})


class _Pause(_LastWrite):
    """An end of this execution after which another one continues the run."""

    unbegun = BoundedList(
        fields.String(validate=_CALL_ID), most=MAX_EVENTS, validate=_check_distinct
    )


class AskPerson(_Pause):
    """A question, or with `approval_of` the request to approve the call with this id."""

    key = fields.String(
        load_default=None, allow_none=True, validate=validate.Length(1, MAX_KEY_CHARACTERS)
    )
    question = fields.String(load_default=None, validate=utf8_length(1, MAX_QUESTION_BYTES))
    options = BoundedList(fields.String(validate=validate.Length(1, 500)), most=20)
    approval_of = fields.String(load_default=None, validate=_CALL_ID)

    @validates_schema
    def _check_kind(self, body: dict[str, Any], **_: Any) -> None:
        if body["approval_of"] is None:
            if body["question"] is None:
                raise ValidationError("is required, unless there is an `approval_of`", "question")
        elif body["key"] is not None or body.get("options"):
            raise ValidationError("must be left out with `approval_of`", "key")


class _Task(Schema):
    tool_call_id = fields.String(required=True, validate=_CALL_ID)
    persona = fields.String(required=True, validate=validate.Length(1, 200))
    task = fields.String(required=True, validate=validate.Length(1, MAX_TASK_CHARACTERS))


class DelegateTasks(_Pause):
    tasks = BoundedList(fields.Nested(_Task), required=True, most=MAX_TASKS)

    @validates_schema
    def _check_ids(self, body: dict[str, Any], **_: Any) -> None:
        ids_ = [task["tool_call_id"] for task in body["tasks"]]
        if not ids_ or len(set(ids_)) < len(ids_):
            raise ValidationError("must be tasks, each with a `tool_call_id` of its own", "tasks")


class ReserveMoney(_HeldRun):
    usd = Usd(required=True)
    gives_up = StrictBoolean(load_default=False)


class CompleteRun(_LastWrite):
    content = fields.String(required=True, validate=utf8_length(0, MAX_CONTENT_BYTES))
    output = fields.Dict(load_default=None, allow_none=True)


class FailRun(_LastWrite):
    message = fields.String(required=True, validate=utf8_length(1, 8_192))
    retryable = StrictBoolean(load_default=False)
    code = fields.String(load_default=FAILED, validate=validate.OneOf(CODES))


class ReleaseRun(_Pause):
    """A return of the run to the queue."""
