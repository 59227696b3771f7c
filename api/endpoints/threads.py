"""`/v1/threads`: conversations."""

from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.run_types import Thread
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import described
from arkloop.api.http.end_users import refuse_fields
from arkloop.api.http.fields import (
    ClientId,
    Id,
    Metadata,
    MetadataChange,
    OnBusyField,
    StrictBoolean,
)
from arkloop.api.http.idempotency import created, idempotent
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, ClientDataQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.errors import NameTaken, ThreadBusy, ThreadNotFound
from arkloop.shared.runs import thread_changes, visible_runs
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.threads import threads
from arkloop.shared.times import rfc3339

bp = Blueprint("threads", __name__)


class CreateThread(Schema):
    """Null means none."""

    title = fields.String(allow_none=True, validate=validate.Length(1, 200))
    is_private = StrictBoolean()
    end_user_id = ClientId(allow_none=True)
    external_id = ClientId(allow_none=True)
    on_busy = OnBusyField(allow_none=True)
    metadata = Metadata()


class ThreadsQuery(ClientDataQuery):
    external_id = ClientId()
    parent_run_id = Id()


class ChangeThread(CreateThread):
    """`metadata` is merged; fields that are left out stay."""

    metadata = MetadataChange()


@bp.post("/v1/threads")
@requires("data.threads.write", end_users=True)
@idempotent
@described(
    body=CreateThread,
    body_optional=True,
    returns=Thread,
    status=201,
    also={200: Thread},
    raises=[ThreadNotFound, NameTaken],
)
def create_thread(tx: Transaction) -> Response:
    """Create a thread; responds 201 with it, or 200 with the one that has its `external_id`."""
    fields = read_body(CreateThread(), optional=True)
    refuse_fields(fields, "metadata")
    if fields.get("external_id") is None:
        thread, is_new = threads.create(tx, actor(), **fields), True
    else:
        thread, is_new = threads.find_or_create(tx, actor(), **fields)
    if not is_new:
        return jsonify(_shown(thread))
    return created(_shown(thread), location=f"/v1/threads/{thread.id}")


@bp.get("/v1/threads")
@requires("data.threads.read", end_users=True)
@described(query=ThreadsQuery, returns=list[Thread])
def list_threads() -> Response:
    """List threads, newest first."""
    args = page_args(ByTime, ThreadsQuery())
    with connections().reading() as sql:
        found = threads.list_(
            sql, actor(), limit=args.limit + 1, before=args.before, filters=args.filters
        )
    return page(found.rows, args, show=_shown, cursor_of=ByTime.of, end=ByTime.at(found.end))


@bp.get("/v1/threads/<id:thread_id>")
@requires("data.threads.read", end_users=True)
@described(returns=Thread)
def get_thread(thread_id: UUID) -> Response:
    """Show a thread."""
    query_args(NoArguments())
    with connections().reading() as sql:
        return jsonify(_shown(threads.get(sql, actor(), thread_id)))


@bp.patch("/v1/threads/<id:thread_id>")
@requires("data.threads.write", also=["data.threads.read"], end_users=True)
@described(body=ChangeThread, returns=Thread, raises=[NameTaken])
def change_thread(thread_id: UUID) -> Response:
    """Change a thread; fields that are missing in the body keep their values."""
    body = read_body(ChangeThread())
    refuse_fields(body, "metadata")
    if body.get("is_private"):
        visible_runs.hide_ahead(connections(), actor(), thread_id)
    with connections().transaction() as tx:
        thread = thread_changes.change(tx, actor(), thread_id, **body)
    if "is_private" in body and thread.runs_due_at is not None:
        visible_runs.finish(connections(), thread_id)
    return jsonify(_shown(thread))


@bp.delete("/v1/threads/<id:thread_id>")
@requires("data.threads.write", end_users=True)
@described(status=204, raises=[ThreadBusy])
def delete_thread(thread_id: UUID) -> Response:
    """Delete a thread; responds 204, or 409 while a run is active."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        is_left = thread_changes.delete(tx, actor(), thread_id)
    if is_left:
        visible_runs.finish(connections(), thread_id)
    return Response(status=204)


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "parent_run_id": str(row.parent_run_id) if row.parent_run_id else None,
        "created_by_user_id": str(row.created_by_user_id),
        "title": row.title,
        "is_private": row.is_private,
        "end_user_id": row.end_user_id,
        "external_id": row.external_id,
        "on_busy": row.on_busy or OnBusy.REJECT,
        "metadata": row.metadata,
        "active_run_id": str(row.active_run_id) if row.active_run_id else None,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }
