"""An org's tools behind HTTP: their definitions, where they are, and the secrets of their calls.

The signing secret is made here, shown once, and replaced by `rotate`; for a while after that calls
are signed by the former one, too.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, and_, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql import ColumnElement

from arkloop.shared import portable_schema
from arkloop.shared.catalog.personas import RESERVED_NAMES, tools_of_server
from arkloop.shared.config import Settings
from arkloop.shared.errors import InvalidRequest, NameTaken, ToolNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.json_schema import InvalidSchema, JsonSchema
from arkloop.shared.sealing import org_keys
from arkloop.shared.security import egress, encryption, signatures
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import Place, after, fitting, newest, newest_first
from arkloop.shared.storage.tables.catalog import http_tools

MAX_TOOLS = 100  # of one org
MAX_PARAMETERS_BYTES = 16_384
TIMEOUT_SECONDS = 60.0
MAX_TIMEOUT_SECONDS = 600
MAX_OVERLAP_SECONDS = 7 * 86_400

HEADERS_PURPOSE, SECRET_PURPOSE = "http_tools.headers", "http_tools.secret"
_SEALED = ("headers_encrypted", "secret_encrypted", "former_secret_encrypted")
#: All but the secrets.
_SHOWN = [column for column in http_tools.c if column.name not in _SEALED]


def create(
    tx: Transaction,
    org_id: UUID,
    *,
    name: str,
    description: str,
    parameters: Mapping[str, Any],
    url: str,
    idempotent: bool,
    timeout_seconds: float,
    headers: Mapping[str, str] | None = None,
) -> tuple[Row[Any], str]:
    """Create a tool; returns its row and its signing secret, which nobody can read again.

    Raises:
        NameTaken, InvalidRequest: see `change`; or the org has `MAX_TOOLS` already.
    """
    given = {"name": name, "parameters": parameters, "url": url}
    # One at a time in an org, so that each counts those of the others. Before the headers are
    # sealed, which may lock the org's key: other creates have this order.
    org_locks.lock(tx, org_id)
    values = _checked(tx, org_id, {**given, "headers": headers})
    count = select(func.count()).where(http_tools.c.org_id == org_id)
    if (tx.sql.scalar(count) or 0) >= MAX_TOOLS:
        raise InvalidRequest(name=[f"limit reached: {MAX_TOOLS} tools per organization"])
    tool_id, secret = new_id(), signatures.new_secret()
    _write(
        tx,
        http_tools.insert().values(
            id=tool_id,
            org_id=org_id,
            description=description,
            idempotent=idempotent,
            timeout_seconds=timeout_seconds,
            secret_encrypted=_sealed(tx, org_id, SECRET_PURPOSE, secret, "signing_secret"),
            **values,
        ),
    )
    return find(tx.sql, org_id, tool_id), secret


def change(tx: Transaction, org_id: UUID, tool_id: UUID, changes: Mapping[str, Any]) -> Row[Any]:
    """Change fields of a tool; `headers` are all of them, or None for none.

    Calls that begin later are made by the new values, those of runs that have the tool already
    included. Stored headers go only where they were given for.

    Raises:
        ToolNotFound
        NameTaken: the org has another tool of this name.
        InvalidRequest: a name of a built-in tool, a schema that cannot be used, an address that
            may not be reached, headers that are not given again, or no key to encrypt them.
    """
    # Locked: one who gives headers and one who changes the address must not miss each other.
    tx.sql.execute(select(http_tools.c.id).where(_is(org_id, tool_id)).with_for_update())
    row = find(tx.sql, org_id, tool_id)
    values = _checked(tx, org_id, changes)
    moved = changes.get("url", row.url) != row.url
    if moved and row.header_names and "headers" not in changes:
        raise InvalidRequest(headers=["must be resent when `url` changes"])
    statement = update(http_tools).where(http_tools.c.id == tool_id)
    _write(tx, statement.values(**values, updated_at=func.now()))
    return find(tx.sql, org_id, tool_id)


def rotate(
    tx: Transaction, org_id: UUID, tool_id: UUID, overlap_seconds: float
) -> tuple[Row[Any], str]:
    """Replace the signing secret; returns the row and the new one.

    For `overlap_seconds` calls are signed by the one before, too. Of three secrets within that
    time the oldest is dropped.

    Raises:
        ToolNotFound
    """
    secret = signatures.new_secret()
    sealed = _sealed(tx, org_id, SECRET_PURPOSE, secret, "signing_secret")
    written = tx.sql.execute(
        update(http_tools)
        .where(_is(org_id, tool_id))
        .values(
            former_secret_encrypted=http_tools.c.secret_encrypted,
            former_secret_until=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, overlap_seconds),
            secret_encrypted=sealed,
            updated_at=func.now(),
        )
    )
    if written.rowcount == 0:
        raise ToolNotFound()
    return find(tx.sql, org_id, tool_id), secret


def remove(tx: Transaction, org_id: UUID, tool_id: UUID) -> None:
    """Delete the tool; it is not called again. Raises: ToolNotFound."""
    if tx.sql.execute(delete(http_tools).where(_is(org_id, tool_id))).rowcount == 0:
        raise ToolNotFound()


def find(sql: Connection, org_id: UUID, tool_id: UUID) -> Row[Any]:
    """Find the tool, without its secrets. Raises: ToolNotFound."""
    row = sql.execute(select(*_SHOWN).where(_is(org_id, tool_id))).one_or_none()
    if row is None:
        raise ToolNotFound()
    return row


def list_(sql: Connection, org_id: UUID, *, limit: int, before: Place | None) -> list[Row[Any]]:
    """List tools as `find` returns them, newest first."""
    query = select(*_SHOWN).where(http_tools.c.org_id == org_id)
    page = fitting(
        newest(query, http_tools, limit=limit, is_deep=before is not None),
        size=lambda of: func.octet_length(func.concat(of.c.description, of.c.parameters)),
        order=newest_first,
    )
    return list(sql.execute(page, after(before)))


def parameters_of(row: Row[Any]) -> dict[str, Any]:
    """Return the JSON Schema of a tool's arguments."""
    parameters: dict[str, Any] = json.loads(row.parameters)
    return parameters


def missing_of(sql: Connection, org_id: UUID, names: Iterable[str]) -> list[str]:
    """Return those of the names that no tool of the org has."""
    wanted = list(names)
    if not wanted:
        return []
    query = select(http_tools.c.name).where(
        http_tools.c.org_id == org_id, http_tools.c.name.in_(wanted)
    )
    there = set(sql.scalars(query))
    return [name for name in wanted if name not in there]


# ---- for workers ---------------------------------------------------------------------


def of_names(sql: Connection, org_id: UUID, names: Iterable[str]) -> list[Row[Any]]:
    """Return the tools of these names, with their sealed secrets."""
    query = _whole().where(http_tools.c.org_id == org_id, http_tools.c.name.in_(names))
    return list(sql.execute(query.order_by(http_tools.c.name)))


def of_id(sql: Connection, tool_id: UUID) -> Row[Any] | None:
    """Return one tool as `of_names` does; None if it was deleted."""
    return sql.execute(_whole().where(http_tools.c.id == tool_id)).one_or_none()


def headers_of(settings: Settings, row: Row[Any]) -> dict[str, str]:
    """Return the headers of a row of `of_names`.

    Raises:
        encryption.NoEncryptionKey, encryption.CannotOpen
    """
    if row.headers_encrypted is None:
        return {}
    headers: dict[str, str] = json.loads(
        _opened(settings, row, HEADERS_PURPOSE, row.headers_encrypted)
    )
    return headers


def secrets_of(settings: Settings, row: Row[Any]) -> list[str]:
    """Return the signing secrets of a row of `of_names` that are valid now, the newest first.

    A former one that cannot be decrypted, such as one from before the org's key was erased, is left
    out.

    Raises:
        encryption.NoEncryptionKey, encryption.CannotOpen
    """
    secrets = [_opened(settings, row, SECRET_PURPOSE, row.secret_encrypted)]
    if row.has_former_secret:
        with suppress(encryption.CannotOpen):
            secrets.append(_opened(settings, row, SECRET_PURPOSE, row.former_secret_encrypted))
    return secrets


def _whole() -> Any:
    is_valid = http_tools.c.former_secret_until > func.now()
    return select(
        http_tools,
        func.coalesce(is_valid, False).label("has_former_secret"),
        org_keys.wrapped_key(http_tools.c.org_id).label("org_key"),
    )


def _checked(tx: Transaction, org_id: UUID, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns for these fields. Raises: InvalidRequest."""
    values = dict(given)
    if values.get("name") in (*tools_of_server(), *RESERVED_NAMES):
        raise InvalidRequest(name=["is the name of a built-in tool"])
    if "parameters" in values:
        values["parameters"] = _schema_text(values["parameters"])
    if "url" in values:
        try:
            egress.check_url(
                values["url"], egress.Policy.of(tx.connections.settings.allowed_networks)
            )
        except egress.Refused as refused:
            raise InvalidRequest(url=[str(refused)]) from None
        if "#" in values["url"]:
            raise InvalidRequest(url=["must have no fragment"])
    if "headers" in values:
        headers = values.pop("headers") or {}
        sealed = None
        if headers:
            text = json.dumps(dict(headers))
            sealed = _sealed(tx, org_id, HEADERS_PURPOSE, text, "headers")
        values |= {"headers_encrypted": sealed, "header_names": sorted(headers)}
    return values


def _schema_text(parameters: Mapping[str, Any]) -> str:
    """Return the JSON that is stored. Raises: InvalidRequest: it cannot be a tool's schema."""
    if parameters.get("type") != "object":
        raise InvalidRequest(parameters=['must be a JSON Schema with "type": "object"'])
    text = json.dumps(parameters, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(parameters=[f"must have at most {MAX_PARAMETERS_BYTES:,} bytes"])
    try:
        JsonSchema(parameters)
        portable_schema.check(parameters)
    except InvalidSchema as error:
        raise InvalidRequest(parameters=[str(error)]) from None
    return text


def _sealed(tx: Transaction, org_id: UUID, purpose: str, text: str, field: str) -> bytes:
    try:
        keyring = encryption.keyring(tx.connections.settings.encryption_key)
        return org_keys.seal(tx, keyring, text, org_id=org_id, purpose=purpose)
    except encryption.NoEncryptionKey as error:
        raise InvalidRequest(**{field: [str(error)]}) from None


def _opened(settings: Settings, row: Row[Any], purpose: str, sealed: bytes) -> str:
    keyring = encryption.keyring(settings.encryption_key)
    return org_keys.opened(keyring, row.org_key, sealed, org_id=row.org_id, purpose=purpose)


def _write(tx: Transaction, statement: Any) -> None:
    try:
        with tx.sql.begin_nested():
            tx.sql.execute(statement)
    except IntegrityError as error:
        if "uq_http_tools_org_id_name" not in str(error.orig):
            raise
        raise NameTaken(name=["is already in use"]) from None


def _is(org_id: UUID, tool_id: UUID) -> ColumnElement[bool]:
    return and_(http_tools.c.id == tool_id, http_tools.c.org_id == org_id)
