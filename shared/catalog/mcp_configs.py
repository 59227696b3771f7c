"""An org's MCP servers: how they are reached, which tools they have, and which may be used.

Tools are pinned. What the first discovery finds is approved with it: an admin has just named
this server. Whatever appears or changes later is offered to a model only when an admin has
approved exactly this description, by its hash.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Connection, Row, Text, and_, case, cast, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql import ColumnElement

from arkloop.shared.catalog import mcp_access, mcp_secrets
from arkloop.shared.config import Settings
from arkloop.shared.errors import (
    InvalidRequest,
    McpConfigNotFound,
    McpToolChanged,
    McpToolNotFound,
    NameTaken,
)
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.security import egress
from arkloop.shared.storage import org_locks, org_urls
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.notifications import Discover
from arkloop.shared.storage.pages import Place, after, fitting, newest
from arkloop.shared.storage.tables.accounts import SUSPENDED_ORGS
from arkloop.shared.storage.tables.catalog import mcp_configs, mcp_tools

STREAMABLE_HTTP = "streamable_http"
STDIO = "stdio"
TRANSPORTS = (STREAMABLE_HTTP, STDIO)
MAX_CONFIGS = 100  # of one org
#: Age at which a list of tools is stale, and at which a failed discovery is repeated.
FRESH, RETRY = timedelta(minutes=5), timedelta(seconds=30)

#: All but the secrets.
_SHOWN = [column for column in mcp_configs.c if not column.name.endswith("_encrypted")]
_OWN_URL = org_urls.own(mcp_configs.c.org_id).label("own_url")


class Described(Protocol):
    """A tool as its server describes it; `problem`: why it can never be offered."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...
    @property
    def hash(self) -> str: ...
    @property
    def problem(self) -> str | None: ...


# ---- configs -------------------------------------------------------------------------


def create(
    tx: Transaction,
    org_id: UUID,
    *,
    name: str,
    transport: str,
    url: str | None = None,
    command: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    oauth: Mapping[str, str] | None = None,
) -> Row[Any]:
    """Create a server's config; its tools are listed after the commit.

    Raises:
        NameTaken, InvalidRequest: see `change`; or the org has `MAX_CONFIGS` already.
    """
    given = {"url": url, "command": command, "headers": headers, "oauth": oauth}
    _check(tx.connections.settings, transport, {n: v for n, v in given.items() if v is not None})
    needed = "url" if transport == STREAMABLE_HTTP else "command"
    if given[needed] is None:
        raise InvalidRequest(**{needed: [f"is required for the transport {transport}"]})
    # One at a time in an org, so that each counts those of the others.
    org_locks.lock(tx, org_id)
    count = select(func.count()).where(mcp_configs.c.org_id == org_id)
    if (tx.sql.scalar(count) or 0) >= MAX_CONFIGS:
        raise InvalidRequest(name=[f"limit reached: {MAX_CONFIGS} MCP servers per organization"])
    config_id = new_id()
    _write(
        tx,
        mcp_configs.insert().values(
            id=config_id,
            org_id=org_id,
            name=name,
            transport=transport,
            url=url,
            command=None if command is None else list(command),
            **mcp_secrets.header_values(tx, org_id, headers or {}),
            **mcp_secrets.oauth_values(tx, org_id, oauth),
        ),
    )
    discover(tx, config_id)
    return find(tx.sql, org_id, config_id)


def change(
    tx: Transaction, org_id: UUID, config_id: UUID, changes: Mapping[str, Any]
) -> tuple[Row[Any], list[mcp_access.HashedPage]]:
    """Change `name`, `url`, `command`, `oauth` or `headers` (all of them, or None for none).

    Approvals stay: they are for descriptions, wherever these come from. Stored secrets go only
    where they were given for: with another address headers and a client's secret are given again,
    and people have to grant access again. Returns the config, and the pages that this has closed.

    Raises:
        McpConfigNotFound
        NameTaken: the org has another server of this name.
        InvalidRequest: a field of the other transport, an address that may not be asked, headers
            that are not given again, or headers, and no key to encrypt them.
    """
    # Locked: one who gives headers and one who changes the address must not miss each other.
    tx.sql.execute(select(mcp_configs.c.id).where(_is(org_id, config_id)).with_for_update())
    row = find(tx.sql, org_id, config_id)
    _check(tx.connections.settings, row.transport, changes)
    moved = changes.get("url", row.url) != row.url
    if moved and row.header_names and "headers" not in changes:
        raise InvalidRequest(headers=["must be resent when `url` changes"])
    if moved and row.has_client_secret and "oauth" not in changes:
        raise InvalidRequest(oauth=["must be resent when `url` changes"])
    closed: list[mcp_access.HashedPage] = []
    if moved or "oauth" in changes:  # it was for another server, or another client
        closed = mcp_access.forget(tx, config_id)
    values = dict(changes)
    if "headers" in values:
        values |= mcp_secrets.header_values(tx, org_id, values.pop("headers") or {})
    if "oauth" in values:
        values |= mcp_secrets.oauth_values(tx, org_id, values["oauth"])
    statement = update(mcp_configs).where(mcp_configs.c.id == config_id)
    _write(tx, statement.values(**values, updated_at=func.now()))
    discover(tx, config_id)
    return find(tx.sql, org_id, config_id), closed


def remove(tx: Transaction, org_id: UUID, config_id: UUID) -> list[mcp_access.HashedPage]:
    """Forget the server and its tools; returns the closed pages. Raises: McpConfigNotFound."""
    is_it = _is(org_id, config_id)
    # Locked: no run asks for access between the two statements.
    if tx.sql.scalar(select(mcp_configs.c.id).where(is_it).with_for_update()) is None:
        raise McpConfigNotFound()
    closed = mcp_access.forget(tx, config_id)
    tx.sql.execute(delete(mcp_configs).where(is_it))
    return closed


def find(sql: Connection, org_id: UUID, config_id: UUID) -> Row[Any]:
    """Find the config with its `tool_count`, without its headers. Raises: McpConfigNotFound."""
    row = sql.execute(_shown().where(_is(org_id, config_id))).one_or_none()
    if row is None:
        raise McpConfigNotFound()
    return row


def list_(sql: Connection, org_id: UUID, *, limit: int, before: Place | None) -> list[Row[Any]]:
    """List configs as `find` returns them, newest first."""
    query = _shown().where(mcp_configs.c.org_id == org_id)
    page = fitting(
        newest(query, mcp_configs, limit=limit, is_deep=before is not None),
        # Half: the text has spaces that the response leaves out.
        size=lambda of: func.coalesce(func.octet_length(cast(of.c.command, Text)) / 2, 0),
        order=lambda of: [of.c.created_at.desc(), of.c.id.desc()],
    )
    return list(sql.execute(page, after(before)))


def discover(tx: Transaction, config_id: UUID) -> None:
    """Have a worker list the server's tools soon, or the next run that needs them."""
    # An attempt that began before is not the one that was asked for: see `_is_still`.
    again = {"tried_at": None, "updated_at": func.now()}
    tx.sql.execute(update(mcp_configs).where(mcp_configs.c.id == config_id).values(again))
    tx.after_commit.append(Discover(config_id))


# ---- tools ---------------------------------------------------------------------------


def tools(
    sql: Connection, org_id: UUID, config_id: UUID, *, limit: int, after_name: str | None
) -> list[Row[Any]]:
    """List the known tools of the server, by name; `is_present` marks those it still has.

    Raises:
        McpConfigNotFound
    """
    find(sql, org_id, config_id)
    query = _tools().where(mcp_configs.c.id == config_id)
    if after_name is not None:
        query = query.where(mcp_tools.c.name > after_name)
    page = fitting(
        query.order_by(mcp_tools.c.name).limit(limit),
        size=lambda of: func.octet_length(of.c.description),
        order=lambda of: [of.c.name],
    )
    return list(sql.execute(page))


def approve(
    tx: Transaction, org_id: UUID, config_id: UUID, approvals: Mapping[str, str]
) -> list[Row[Any]]:
    """Let tools be offered, each as it is described under the hash given; all or none.

    Raises:
        McpConfigNotFound, McpToolNotFound
        McpToolChanged: a tool has another hash by now; details name it.
    """
    find(tx.sql, org_id, config_id)
    of_config = and_(mcp_tools.c.config_id == config_id, mcp_tools.c.name.in_(approvals))
    # In one order, and locked: a discovery meanwhile changes them before or after.
    locked = select(mcp_tools.c.name, mcp_tools.c.hash).where(of_config)
    found = tx.sql.execute(locked.order_by(mcp_tools.c.name).with_for_update()).all()
    hashes = {row.name: row.hash for row in found}
    for name, hash_ in approvals.items():
        if name not in hashes:
            raise McpToolNotFound(name=name)
        if hashes[name] != hash_:
            raise McpToolChanged(name=name, hash=hashes[name])
    tx.sql.execute(
        update(mcp_tools)
        .where(of_config)
        .values(approved_hash=mcp_tools.c.hash, approved_at=func.now())
    )
    query = _tools().where(mcp_configs.c.id == config_id, mcp_tools.c.name.in_(approvals))
    return list(tx.sql.execute(query.order_by(mcp_tools.c.name)))


# ---- for workers ---------------------------------------------------------------------


def of_names(sql: Connection, org_id: UUID, names: Iterable[str]) -> list[Row[Any]]:
    """Return the configs of these names; those with `is_stale` need a new list of tools."""
    query = _with_secret().where(mcp_configs.c.org_id == org_id, mcp_configs.c.name.in_(names))
    return list(sql.execute(query.order_by(mcp_configs.c.name)))


def of_id(sql: Connection, config_id: UUID) -> Row[Any] | None:
    """Return one config as `of_names` does; None if it is gone, or its org is suspended."""
    is_open = mcp_configs.c.org_id.not_in(SUSPENDED_ORGS)
    return sql.execute(_with_secret().where(mcp_configs.c.id == config_id, is_open)).one_or_none()


def offered(sql: Connection, config_ids: Iterable[UUID], *, limit: int) -> list[Row[Any]]:
    """List the tools of these configs that a model may be offered, by `config_name` and name.

    The first `limit` of them.
    """
    query = _tools().where(mcp_configs.c.id.in_(config_ids), _is_offered())
    return list(sql.execute(query.order_by(mcp_configs.c.name, mcp_tools.c.name).limit(limit)))


def record(
    tx: Transaction, config_id: UUID, found: Sequence[Described], *, as_of: datetime | None
) -> None:
    """Store what a server said of its tools; the first time that approves them.

    `as_of`: the `updated_at` of the config that was asked; None: whichever there is. Does nothing
    if the config is gone, or another one by now.
    """
    # The row's lock: of two discoveries at once, one is the first.
    query = select(mcp_configs.c.discovered_at).where(_is_still(config_id, as_of))
    first = tx.sql.execute(query.with_for_update()).one_or_none()
    if first is None:
        return
    tx.sql.execute(
        update(mcp_configs)
        .where(mcp_configs.c.id == config_id)
        .values(tried_at=func.now(), discovered_at=func.now(), discovery_error=None)
    )
    names = [tool.name for tool in found]
    # A server could make up names without end: those that nobody approved are not kept.
    tx.sql.execute(
        delete(mcp_tools).where(
            mcp_tools.c.config_id == config_id,
            mcp_tools.c.approved_hash.is_(None),
            mcp_tools.c.name.not_in(names),
        )
    )
    if not found:
        return
    pinned = first.discovered_at is None
    values = [
        {
            "config_id": config_id,
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
            "hash": tool.hash,
            "problem": tool.problem,
            "approved_hash": tool.hash if pinned else None,
            "approved_at": func.now() if pinned else None,
        }
        for tool in sorted(found, key=lambda tool: tool.name)
    ]
    statement = insert(mcp_tools).values(values)
    described = ("description", "parameters", "hash", "problem")
    seen = {name: statement.excluded[name] for name in described}
    tx.sql.execute(
        statement.on_conflict_do_update(
            index_elements=["config_id", "name"], set_={**seen, "seen_at": func.now()}
        )
    )


def record_failure(tx: Transaction, config_id: UUID, why: str, *, as_of: datetime | None) -> None:
    """Store that the server did not tell its tools, if it is the one of `as_of`, as for `record`.

    Those it had stay as they are.
    """
    tx.sql.execute(
        update(mcp_configs)
        .where(_is_still(config_id, as_of))
        .values(tried_at=func.now(), discovery_error=why)
    )


def _check(settings: Settings, transport: str, given: Mapping[str, Any]) -> None:
    if transport == STDIO and not settings.mcp_stdio:
        raise InvalidRequest(transport=["stdio is not allowed here; see ARKLOOP_MCP_STDIO"])
    wrong = ("command",) if transport == STREAMABLE_HTTP else ("url", "headers", "oauth")
    if found := [name for name in wrong if name in given]:
        raise InvalidRequest(
            **{name: [f"is not supported for the transport {transport}"] for name in found}
        )
    if "url" in given:
        try:
            egress.check_url(given["url"], egress.Policy.of(settings.allowed_networks))
        except egress.Refused as refused:
            raise InvalidRequest(url=[str(refused)]) from None
        if "#" in given["url"]:
            raise InvalidRequest(url=["must have no fragment"])


def _write(tx: Transaction, statement: Any) -> None:
    try:
        with tx.sql.begin_nested():
            tx.sql.execute(statement)
    except IntegrityError as error:
        if "uq_mcp_configs_org_id_name" not in str(error.orig):
            raise
        raise NameTaken(name=["is already in use"]) from None


def _is(org_id: UUID, config_id: UUID) -> ColumnElement[bool]:
    return and_(mcp_configs.c.id == config_id, mcp_configs.c.org_id == org_id)


def _shown() -> Any:
    count = (
        select(func.count())
        .select_from(mcp_tools)
        .where(mcp_tools.c.config_id == mcp_configs.c.id, _is_offered())
        .scalar_subquery()
    )
    has_secret = mcp_configs.c.client_secret_encrypted.is_not(None)
    more = (has_secret.label("has_client_secret"), count.label("tool_count"), _OWN_URL)
    return select(*_SHOWN, *more)


def _is_still(config_id: UUID, as_of: datetime | None) -> ColumnElement[bool]:
    is_it = mcp_configs.c.id == config_id
    return is_it if as_of is None else and_(is_it, mcp_configs.c.updated_at == as_of)


def _with_secret() -> Any:
    tried_at = mcp_configs.c.tried_at
    age = case((mcp_configs.c.discovery_error.is_not(None), RETRY), else_=FRESH)
    is_stale = or_(tried_at.is_(None), tried_at < func.now() - age)
    org_key = org_keys.wrapped_key(mcp_configs.c.org_id).label("org_key")
    return select(mcp_configs, is_stale.label("is_stale"), org_key, _OWN_URL)


def _tools() -> Any:
    return select(
        mcp_tools,
        mcp_configs.c.name.label("config_name"),
        _is_present().label("is_present"),
        _is_offered().label("is_offered"),
    ).join(mcp_configs, mcp_configs.c.id == mcp_tools.c.config_id)


def _is_present() -> ColumnElement[bool]:
    return func.coalesce(mcp_tools.c.seen_at >= mcp_configs.c.discovered_at, False)


def _is_offered() -> ColumnElement[bool]:
    is_approved = mcp_tools.c.approved_hash == mcp_tools.c.hash
    return and_(func.coalesce(is_approved, False), mcp_tools.c.problem.is_(None), _is_present())
