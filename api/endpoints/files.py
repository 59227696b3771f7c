"""`/v1/files`: images, PDFs and texts that messages refer to, and images that tools returned."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote
from uuid import UUID

from flask import Blueprint, Response, jsonify, request
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.account_types import File
from arkloop.api.http.current import actor, connections, storage
from arkloop.api.http.described import described
from arkloop.api.http.idempotency import answered_once, check_key, created
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.api.http.multipart import read_file
from arkloop.shared.errors import (
    FileMissing,
    InvalidRequest,
    RateLimitExceeded,
    StorageUnavailable,
    Unavailable,
)
from arkloop.shared.files import files, incoming, media_types
from arkloop.shared.files.storage import ObjectMissing
from arkloop.shared.times import rfc3339, rfc3339_or_none

bp = Blueprint("files", __name__)

#: Uploads of one process at a time, of all orgs and of one: each has up to 10 MiB in memory.
MAX_UPLOADS, MAX_UPLOADS_OF_ORG = 8, 4
#: Nobody knows how long the others take: most have no more than an image.
RETRY_AFTER_SECONDS = 1
#: Seconds after which a client that takes nothing is closed.
BLOCKED_WRITE_SECONDS = 60

FORM = {
    "type": "object",
    "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
    "required": ["file"],
    "additionalProperties": False,
}

_uploads: Counter[UUID] = Counter()


@bp.post("/v1/files")
@requires("data.files.write", end_users=True)
@described(
    body=FORM,
    body_type="multipart/form-data",
    returns=File,
    status=201,
    headers=["Idempotency-Key"],
    raises=[StorageUnavailable],
)
def create_file() -> Response:
    """Store the file of a form; responds 201 with what was found out about it."""
    key, who = check_key(), actor()
    with _upload_slot(who.org_id):
        name, pieces = read_file("file", incoming.MAX_BYTES)
        _check_name(name)
        with connections().transaction() as tx:
            file_id = files.create(
                tx,
                org_id=who.org_id,
                user_id=who.user_id,
                end_user_id=who.end_user_id,
                name=name,
            )
        facts = incoming.store(storage(), files.key_of(who.org_id, file_id), pieces)
    return answered_once(
        key,
        {"name": name, "sha256": facts.sha256},
        lambda tx: created(
            _shown(files.complete(tx, file_id, facts)), location=f"/v1/files/{file_id}"
        ),
    )


@bp.get("/v1/files/<id:file_id>")
@requires("data.files.read", end_users=True)
@described(returns=File)
def get_file(file_id: UUID) -> Response:
    """Show what is known about a file."""
    query_args(NoArguments())
    with connections().reading() as sql:
        return jsonify(_shown(files.find(sql, actor(), file_id)))


@bp.get("/v1/files/<id:file_id>/content")
@requires("data.files.read", end_users=True)
@described(returns={"*/*": bytes}, raises=[StorageUnavailable])
def get_file_content(file_id: UUID) -> Response:
    """Send the file's bytes as an attachment: a browser must never show them as a page."""
    query_args(NoArguments())
    with connections().reading() as sql:
        file = files.find(sql, actor(), file_id)
    return content_of(file)


@bp.delete("/v1/files/<id:file_id>")
@requires("data.files.write", end_users=True)
@described(status=204)
def delete_file(file_id: UUID) -> Response:
    """Delete a file; messages that refer to it stay, and models read that it is gone. 204."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        files.remove(tx, actor(), file_id)
    return Response(status=204)


def content_of(file: Row[Any]) -> Response:
    """Send the bytes of a file as an attachment.

    Raises:
        FileMissing: they are gone. StorageUnavailable
    """
    try:
        key = files.key_of(file.org_id, file.id)
        pieces = storage().read(key) if request.method == "GET" else iter(())
    except ObjectMissing:
        raise FileMissing() from None
    is_text = file.media_type == media_types.TEXT
    response = Response(
        _sent(pieces), content_type=file.media_type + ("; charset=utf-8" if is_text else "")
    )
    response.content_length = file.size
    name = quote(file.name, safe="")
    response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
    return response


@contextmanager
def _upload_slot(org_id: UUID) -> Iterator[None]:
    """Count the upload.

    Raises:
        RateLimitExceeded: the org has too many in this process, which is no fault of the service.
        Unavailable: the process has too many.
    """
    if _uploads[org_id] >= MAX_UPLOADS_OF_ORG:
        raise RateLimitExceeded(
            "Too many uploads of the organization at the same time; try again shortly.", limit="org"
        ).after(RETRY_AFTER_SECONDS)
    if _uploads.total() >= MAX_UPLOADS:
        raise Unavailable("Too many uploads at the same time; try again shortly.")
    _uploads[org_id] += 1
    try:
        yield
    finally:
        _uploads[org_id] -= 1
        if not _uploads[org_id]:
            del _uploads[org_id]


def _check_name(name: str) -> None:
    is_short = 1 <= len(name) <= files.MAX_NAME_CHARACTERS
    if not is_short or not name.isprintable() or set(name) & {"/", "\\"} or name in (".", ".."):
        raise InvalidRequest(
            file=[f"its name must be 1 to {files.MAX_NAME_CHARACTERS} characters, without slashes"]
        )


def _sent(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces; a client that stops reading is closed, and with it what was opened."""
    client = request.environ.get("gunicorn.socket")
    before = client.gettimeout() if client is not None else None
    return _sending(pieces, client, before)


def _sending(pieces: Iterator[bytes], client: Any, before: float | None) -> Iterator[bytes]:
    if client is not None:
        client.settimeout(BLOCKED_WRITE_SECONDS)
    try:
        yield from pieces
    finally:
        if client is not None:
            client.settimeout(before)


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "created_by_user_id": str(row.created_by_user_id),
        "name": row.name,
        "media_type": row.media_type,
        "size": row.size,
        "sha256": row.sha256,
        "created_at": rfc3339(row.created_at),
        "expires_at": rfc3339_or_none(row.expires_at),
    }
