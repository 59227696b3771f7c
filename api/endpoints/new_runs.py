"""Requests that create a run: in a thread, with a message or a new thread, or as a retry."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from flask import Blueprint, Response, current_app, request
from marshmallow import ValidationError, fields, validate
from sqlalchemy import Connection

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.delivery import DELIVERED, requested_delivery
from arkloop.api.endpoints.messages import CreateMessage
from arkloop.api.endpoints.threads import CreateThread
from arkloop.api.http.content import MAX_CONTENT_BYTES, MessageContent
from arkloop.api.http.current import actor, catalog, trace_id
from arkloop.api.http.described import described
from arkloop.api.http.end_users import chosen_persona, refuse_fields
from arkloop.api.http.fields import (
    Check,
    CheckedLater,
    ClientId,
    Id,
    JsonSchema,
    Metadata,
    Moment,
    OnBusyField,
)
from arkloop.api.http.idempotency import created, idempotent
from arkloop.api.http.json_body import NoArguments, read_body
from arkloop.api.http.schema import Schema
from arkloop.shared import times
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.errors import (
    BudgetExhausted,
    FileMissing,
    InvalidRequest,
    InvalidState,
    NameTaken,
    NotActive,
    PersonaNotFound,
    QueueFull,
    RouteNotFound,
    RunLimitExceeded,
    RunNotFound,
    StreamLimitExceeded,
    ThreadBusy,
    ThreadNotFound,
)
from arkloop.shared.ids import new_id
from arkloop.shared.runs import creation, overrides
from arkloop.shared.runs.creation import (
    Created,
    LastRunDeleted,
    NewMessage,
    NewRun,
    NewThread,
    RunCreator,
)
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Transaction

bp = Blueprint("new_runs", __name__)

#: The latest time for which a run can be created.
LATEST = timedelta(days=366)


def _of_form(form: re.Pattern[str]) -> Check:
    def check(text: str) -> None:
        if text and not form.fullmatch(text):
            raise ValidationError(f"must match {form.pattern}")

    return Check(check, {"pattern": f"^({form.pattern})?$"})


#: Errors of every request that creates a run.
CREATING = (
    *(PersonaNotFound, RouteNotFound, FileMissing, BudgetExhausted),
    *(ThreadBusy, QueueFull, NotActive),
    *(RunLimitExceeded, StreamLimitExceeded),
)
#: And of one that responds with the run itself, which may be one from before.
DELIVERING = (*CREATING, RunNotFound)

# Schemas are made once: making one copies its fields, which was a tenth of creating a run.
_MESSAGE = CreateMessage()


class Message(fields.Field[NewMessage]):
    """A text, or an object as `POST …/messages` takes it."""

    json_schema: ClassVar[JsonSchema] = {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": MAX_CONTENT_BYTES},
            {
                "type": "object",
                "properties": {
                    "content": MessageContent.json_schema,
                    "metadata": Metadata().json_schema,
                },
                "required": ["content"],
                "additionalProperties": False,
            },
        ]
    }

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> NewMessage:
        if isinstance(value, str):
            value = {"content": value}
        if not isinstance(value, dict):
            raise ValidationError("must be a string or an object with `content`")
        return NewMessage(**_MESSAGE.load(value))


def _override(name: str) -> CheckedLater:
    return CheckedLater(overrides.OVERRIDES[name].json_schema)


class CreateRun(Schema):
    """Empty or null is not given."""

    message = Message(allow_none=True)
    on_disconnect = fields.String(allow_none=True, validate=validate.OneOf(["continue", "cancel"]))
    route_id = fields.String(allow_none=True, validate=_of_form(model_routes.ROUTE_ID))
    persona_id = fields.String(allow_none=True, validate=_of_form(personas.PERSONA_ID))
    end_user_id = ClientId(allow_none=True)
    metadata = Metadata(load_default=dict)
    on_busy = OnBusyField(allow_none=True)
    not_before = Moment(allow_none=True)
    # The overrides, which depend on the persona: `overrides.check` does.
    instructions = _override("instructions")
    variables = _override("variables")
    model_settings = _override("model_settings")
    tools = _override("tools")
    output_schema = _override("output_schema")
    limits = _override("limits")


class CreateRunAnywhere(CreateRun):
    """A run in the thread `thread_id`, or in a new one, for which `thread` has the fields."""

    thread_id = Id(allow_none=True)
    thread = fields.Nested(CreateThread, allow_none=True)


_RUN, _RUN_ANYWHERE = CreateRun(), CreateRunAnywhere()
#: What the org decides, not its end users. Its tools rely on the metadata.
OF_ORG = ("route_id", "metadata", *sorted({*personas.OVERRIDES} - creation.END_USER_OVERRIDES))


@bp.post("/v1/runs")
@requires("data.runs.write", end_users=True)
@described(body=CreateRunAnywhere, raises=[*DELIVERING, ThreadNotFound, NameTaken], **DELIVERED)
def create_run() -> Response:
    """Create a run, with a message and perhaps a thread; responds 201 with their ids."""
    body = read_body(_RUN_ANYWHERE)
    thread_id, thread = body.get("thread_id"), body.get("thread")
    if thread_id is not None and thread is not None:
        raise InvalidRequest(thread=["must be left out if thread_id is given"])
    if thread_id is not None:
        return _create(body, thread_id)
    if body.get("message") is None:
        raise InvalidRequest(message=["is required for a new thread"])
    opened = NewThread(**(thread or {}))
    if opened.end_user_id is None:
        opened = replace(opened, end_user_id=body.get("end_user_id"))
    return _create(body, new_id(), opened)


@bp.post("/v1/threads/<id:thread_id>/runs")
@requires("data.runs.write", end_users=True)
@described(body=CreateRun, body_optional=True, raises=DELIVERING, **DELIVERED)
def create_run_in_thread(thread_id: UUID) -> Response:
    """Create a run, perhaps with a message; responds 201 with its ids. The body is optional."""
    return _create(read_body(_RUN, optional=True), thread_id)


@bp.post("/v1/threads/<id:thread_id>:retry")
@requires("data.runs.write", end_users=True)
@described(
    body=NoArguments,
    body_optional=True,
    raises=[*DELIVERING, InvalidState, LastRunDeleted],
    **DELIVERED,
)
def retry_run(thread_id: UUID) -> Response:
    """Retry the thread's last message with a new run; responds as `create_run` does."""
    read_body(NoArguments(), optional=True)
    return requested_delivery(None).respond(_retry(thread_id))


@idempotent
def _retry(tx: Transaction, thread_id: UUID) -> Response:
    trace = trace_id()
    return _created(creation.retry(tx, actor(), thread_id, catalog(), trace_id=trace))


def _create(body: Mapping[str, Any], thread_id: UUID, opened: NewThread | None = None) -> Response:
    is_said = opened is not None or body.get("message") is not None
    if opened is not None:
        refuse_fields({"thread.metadata": opened.metadata}, "thread.metadata")
    if is_said:
        actor().check_permits("data.threads.write")
    delivery = requested_delivery(body.get("on_disconnect"))
    if "Idempotency-Key" in request.headers:
        return delivery.respond(_create_once(body, thread_id, opened))
    new = new_run(body, thread_id, opened)
    create: RunCreator = current_app.extensions["arkloop.create_run"]
    return delivery.respond(_created(create(new)))


@idempotent
def _create_once(
    tx: Transaction, body: Mapping[str, Any], thread_id: UUID, opened: NewThread | None
) -> Response:
    new = new_run(body, thread_id, opened, tx.sql)
    return _created(creation.create(tx, new))


def new_run(
    body: Mapping[str, Any],
    thread_id: UUID,
    opened: NewThread | None,
    sql: Connection | None = None,
) -> NewRun:
    """Return the run that a body of `CreateRun` asks for, in a thread or one that is `opened`.

    Raises:
        PersonaNotFound, RouteNotFound, InvalidRequest
        Forbidden: an end user has given what the org decides, or chosen another persona.
    """
    refuse_fields(body, *OF_ORG)
    org_id = actor().org_id
    persona = catalog().persona(org_id, chosen_persona(body.get("persona_id")), sql=sql)
    route = catalog().choose_route(
        org_id, body.get("route_id") or None, persona, sql=sql, advises=actor().end_user_id is None
    )
    given = {name: body[name] for name in personas.OVERRIDES if name in body}
    # Its time may have come meanwhile, or the client's clock is behind: then it waits all the same.
    not_before = _not_before(body)
    return NewRun(
        actor=actor(),
        thread_id=thread_id,
        thread=opened,
        message=body.get("message"),
        persona=persona,
        route=route,
        trace_id=trace_id(),
        options=overrides.check(persona, route, given),
        end_user_id=body.get("end_user_id"),
        metadata=body["metadata"],
        on_busy=body.get("on_busy") or (None if not_before is None else OnBusy.ENQUEUE),
        not_before=not_before,
    )


def _not_before(body: Mapping[str, Any]) -> datetime | None:
    """Return when the run may start. Raises: InvalidRequest: too late, or with an `on_busy`."""
    moment: datetime | None = body.get("not_before")
    if moment is None:
        return None
    if moment > times.now() + LATEST:
        raise InvalidRequest(not_before=["must be at most one year ahead"])
    if body.get("on_busy") not in (None, OnBusy.ENQUEUE):
        raise InvalidRequest(on_busy=["must be enqueue, or left out, if not_before is given"])
    return moment


def _created(made: Created) -> Response:
    shown: dict[str, Any] = {"run_id": str(made.run_id), "trace_id": made.trace_id}
    if made.position is not None:
        merged = {"is_merged": True} if made.is_merged else {}
        shown["queue"] = {"position": made.position, **merged}
    if made.offered is not None:
        message_id, fallback_run_id = map(str, made.offered)
        shown["steer"] = {"message_id": message_id, "fallback_run_id": fallback_run_id}
    if request.path == "/v1/runs":
        shown["thread_id"] = str(made.thread_id)
    return created(shown, location=f"/v1/runs/{made.run_id}")
