"""Files that clients send within a message, in base64: stored, so that the message names them."""

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from flask import g
from sqlalchemy import Connection

from arkloop.api.http.content import MAX_PARTS
from arkloop.api.http.current import actor, connections, storage
from arkloop.shared.errors import (
    ArkloopError,
    Forbidden,
    InvalidRequest,
    StorageUnavailable,
    Unavailable,
)
from arkloop.shared.files import files, incoming, media_types
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.threads.content import Part

#: Of a request whose messages may have files in them.
MAX_BODY_BYTES = 8 * 1024 * 1024
REMEDY = "Upload large files by POST /v1/files, and refer to them."

_FILE_URL = re.compile(r"(?:https?://[^/]+)?(?:/[^?#]*)?/v1/files/([0-9a-f-]{36})/content")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,(?P<data>[A-Za-z0-9+/=\s]*)")
_NAME = re.compile(rf"(?!\.{{1,2}}$)[^/\\]{{1,{files.MAX_NAME_CHARACTERS}}}")


def url_of(file_id: str) -> str:
    """Return where the content of a file is, for protocols that have URLs alone."""
    return f"/v1/files/{file_id}/content"


def file_at(url: str) -> str | None:
    """Return the id of the file whose `url_of` this is, whatever a page has put in front of it."""
    found = _FILE_URL.fullmatch(url)
    return None if found is None else found[1]


def check_count(field: str, parts: Sequence[Any]) -> None:
    """Check that a message has no more parts than it may, before files of them are stored.

    Raises: InvalidRequest
    """
    if len(parts) > MAX_PARTS:
        raise InvalidRequest(**{field: [f"must have 1 to {MAX_PARTS} parts"]})


def stored(field: str, data: str, name: Any = None, *, is_image: bool) -> UUID:
    """Store what a client has sent as a `data:` URL or in base64; returns the file's id.

    It expires unless `mark_used` keeps it: call this within `kept_if_used`. `field` is the place in
    the request, and `name` the file's, if the client gives one. `is_image` is what its part says.

    Raises:
        InvalidRequest, Forbidden, BodyTooLarge, StorageUnavailable
    """
    if "data.files.write" not in actor().permissions:
        raise Forbidden("Sending a file requires the scope data.files.write.")
    shown = name if isinstance(name, str) else "file"
    if not _NAME.fullmatch(shown) or not shown.isprintable():
        raise InvalidRequest(**{field: ["`filename` must be 1 to 200 characters, without slashes"]})
    content, who = _decoded(field, data), actor()
    media_type = media_types.of_head(content[: media_types.HEAD_BYTES])
    if is_image and media_type not in media_types.IMAGES:
        raise InvalidRequest(**{field: ["must be a PNG, JPEG, GIF or WebP image"]})
    if not is_image and media_type in media_types.IMAGES:
        raise InvalidRequest(**{field: [f"is {media_type}: its part must be an image"]})
    with connections().transaction() as tx:
        file_id = files.create(
            tx, org_id=who.org_id, user_id=who.user_id, end_user_id=who.end_user_id, name=shown
        )
    try:
        facts = incoming.store(storage(), files.key_of(who.org_id, file_id), [content])
    except InvalidRequest as error:
        raise InvalidRequest(**{field: error.details["file"]}) from None
    with connections().transaction() as tx:
        files.complete(tx, file_id, facts, kept_for=files.PENDING)
    g.sent_files.append(file_id)
    return file_id


@contextmanager
def kept_if_used() -> Iterator[None]:
    """Remove what is stored within, unless `mark_used` is called: a request may be refused, or be
    one that was sent before.
    """
    g.sent_files, g.are_used = [], False
    try:
        yield
    except StorageUnavailable:  # while files are stored, which is before there is a message
        _remove()
        raise
    except Unavailable:
        raise  # the message may have been committed, and its files with it; else they expire
    except ArkloopError:
        _remove()
        raise
    if not g.are_used:
        _remove()


def are_stored() -> bool:
    """Return whether this request has stored files."""
    return bool(g.sent_files)


def mark_used(tx: Transaction) -> None:
    """Keep what this request has stored: the transaction creates a message that refers to it."""
    if g.sent_files:
        files.keep(tx, g.sent_files)
    g.are_used = True


def digest(data: str) -> str | None:
    """Return the SHA-256 of what a client has sent, as files have it; None if it is malformed."""
    try:
        return hashlib.sha256(_decoded("", data)).hexdigest()
    except InvalidRequest:
        return None


def digests_of(sql: Connection, contents: Iterable[Sequence[Part]]) -> dict[str, str]:
    """Return the digests of the files to which these contents refer, by their ids.

    Stored parts have them; those of other parts are read.
    """
    parts = [part for content in contents for part in content if "file_id" in part]
    digests = {part["file_id"]: part["sha256"] for part in parts if "sha256" in part}
    ids = {UUID(part["file_id"]) for part in parts if part["file_id"] not in digests}
    found = files.of_ids(sql, actor().org_id, ids) if ids else []
    return digests | {str(row.id): row.sha256 for row in found}


def discard(file_ids: Collection[UUID]) -> None:
    """Remove some of what this request has stored, which its message cannot refer to."""
    with connections().transaction() as tx:
        files.remove_all(tx, created_by_user_id=actor().user_id, file_ids=file_ids)
    g.sent_files = [file_id for file_id in g.sent_files if file_id not in file_ids]


def _remove() -> None:
    if g.sent_files:
        # While Postgres is away they stay, as those of a message that never came.
        with suppress(Unavailable), connections().transaction() as tx:
            files.remove_all(tx, created_by_user_id=actor().user_id, file_ids=g.sent_files)


def _decoded(field: str, data: str) -> bytes:
    if data.startswith("data:"):
        match = _DATA_URL.fullmatch(data)
        if match is None:
            raise InvalidRequest(**{field: ["must be a data URL in base64"]})
        data = match["data"]
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError:
        raise InvalidRequest(**{field: ["must be base64"]}) from None
