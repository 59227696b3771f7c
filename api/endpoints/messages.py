"""`/v1/threads/{id}/messages`: what was said in a thread."""

from typing import Any
from uuid import UUID

from flask import Blueprint, Response
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.run_types import Message
from arkloop.api.http.content import MessageContent
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import Metadata
from arkloop.api.http.idempotency import created, idempotent
from arkloop.api.http.json_body import read_body
from arkloop.api.http.paging import ByPosition, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.errors import FileMissing
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.threads import threads
from arkloop.shared.threads.content import as_given
from arkloop.shared.times import rfc3339

bp = Blueprint("messages", __name__)


class CreateMessage(Schema):
    content = MessageContent(required=True)
    metadata = Metadata()


@bp.post("/v1/threads/<id:thread_id>/messages")
@requires("data.threads.write", end_users=True)
@idempotent
@described(body=CreateMessage, returns=Message, status=201, raises=[FileMissing])
def create_message(tx: Transaction, thread_id: UUID) -> Response:
    """Add a message; responds 201, also while a run is active, which does not see the message."""
    message = threads.add_message(tx, actor(), thread_id, **read_body(CreateMessage()))
    return created(shown(message), location=f"/v1/threads/{thread_id}/messages")


@bp.get("/v1/threads/<id:thread_id>/messages")
@requires("data.threads.read", end_users=True)
@described(query=PageQuery, returns=list[Message])
def list_messages(thread_id: UUID) -> Response:
    """List the latest page in the order of the conversation; `before` leads to older ones."""
    args = page_args(ByPosition)
    with connections().reading() as sql:
        rows = threads.list_messages(
            sql,
            actor(),
            thread_id,
            limit=args.limit + 1,
            before=args.before.position if args.before else None,
        )
    return page(
        rows,
        args,
        show=shown,
        cursor_of=lambda row: ByPosition(row.position),
        oldest_first=True,
    )


def shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "thread_id": str(row.thread_id),
        "run_id": str(row.run_id) if row.run_id else None,
        "created_by_user_id": str(row.created_by_user_id) if row.created_by_user_id else None,
        "role": row.role,
        "content": row.content if row.parts is None else as_given(row.parts),
        "metadata": row.metadata,
        "partial": row.partial,
        "created_at": rfc3339(row.created_at),
    }
