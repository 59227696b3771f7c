"""The personas that orgs publish; a published one never changes."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, case, collate, func, literal, select, tuple_, union_all
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import Numeric

from arkloop.shared.actors import Actor
from arkloop.shared.catalog import http_tools
from arkloop.shared.catalog.personas import (
    KEY,
    InvalidPersona,
    Persona,
    builtin,
    from_stored,
    to_stored,
    tools_of_server,
    understood,
)
from arkloop.shared.errors import InvalidRequest, PersonaPublished
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import fitting
from arkloop.shared.storage.tables.catalog import mcp_configs, personas

#: Versions of all keys of one org.
MAX_PERSONAS = 10_000
#: The fields that may be long.
_LONG = ("system_prompt", "output_schema", "client_tools")


def publish(
    tx: Transaction, actor: Actor, key: str, version: str | None, definition: Mapping[str, Any]
) -> Row[Any]:
    """Publish a version of a persona; without `version` the number after the newest of the key.

    The caller has read the definition by `personas.read`, and knows that its routes exist.

    Raises:
        PersonaPublished: this version is there, of the org or built in.
        InvalidRequest: the org has no such tool or MCP server, too many personas, or there is no
            next number.
    """
    # One at a time in an org, so that two get different numbers.
    org_locks.lock(tx, actor.org_id)
    _check_tools(tx.sql, actor.org_id, definition.get("tools") or [])
    _check_mcp(tx.sql, actor.org_id, definition.get("mcp") or [])
    _check_delegates(tx.sql, actor.org_id, key, definition.get("delegates") or [])
    count = tx.sql.execute(
        select(func.count()).where(personas.c.org_id == actor.org_id)
    ).scalar_one()
    if count >= MAX_PERSONAS:
        raise InvalidRequest(body=[f"limit reached: {MAX_PERSONAS:,} personas per organization"])
    version = version or _next_version(tx.sql, actor.org_id, key)
    if f"{key}@{version}" in builtin():
        raise PersonaPublished(version=[f"{key}@{version} is built in"])
    row = tx.sql.execute(
        upsert(personas)
        .values(
            org_id=actor.org_id,
            key=key,
            version=version,
            definition=to_stored(definition),
            created_by_user_id=actor.user_id,
        )
        .on_conflict_do_nothing()
        .returning(*personas.c)
    ).one_or_none()
    if row is None:
        raise PersonaPublished(version=[f"{key}@{version} is already published"])
    return row


def list_(
    sql: Connection,
    org_id: UUID,
    *,
    limit: int,
    after: tuple[str, str] | None = None,
    among: Collection[tuple[str, str]] | None = None,
) -> list[Row[Any]]:
    """List the org's own personas by key and version, in the order of their characters' codes.

    With `among`, those of these keys and versions.
    """
    name = (collate(personas.c.key, "C"), collate(personas.c.version, "C"))
    query = select(personas).where(personas.c.org_id == org_id)
    if among is not None:
        query = query.where(tuple_(personas.c.key, personas.c.version).in_(among))
    if after is not None:
        query = query.where(tuple_(*name) > tuple_(*after))
    page = fitting(
        query.order_by(*name).limit(limit),
        size=lambda of: func.octet_length(
            func.concat(*(of.c.definition[name].astext for name in _LONG))
        ),
        order=lambda of: [collate(of.c.key, "C"), collate(of.c.version, "C")],
    )
    return list(sql.execute(page))


def find(sql: Connection, org_id: UUID, key: str, version: str) -> Row[Any] | None:
    """Find the row of exactly this version of the org, or None."""
    return sql.execute(
        select(personas).where(
            personas.c.org_id == org_id, personas.c.key == key, personas.c.version == version
        )
    ).one_or_none()


def persona_of(row: Row[Any]) -> Persona:
    """Read the persona of a row.

    Raises:
        InvalidPersona: it is of a release that knows other fields, tools or limits.
    """
    # Without compiling its schemas: an earlier release may have taken what this one refuses.
    persona, problems = understood(row.key, row.version, from_stored(row.definition))
    if problems:
        raise InvalidPersona(problems)
    return persona


def overview(sql: Connection, org_id: UUID) -> tuple[dict[str, str], frozenset[str]]:
    """Return the newest version of each of the org's keys, and its ids that built-in personas have
    too.

    One statement, which reads the index alone; newest as `personas.newest` says.
    """
    number = case(
        (personas.c.version.regexp_match("^[0-9]+$"), personas.c.version.cast(Numeric)), else_=-1
    )
    by_age = (number.desc(), collate(personas.c.version, "C").desc())
    latest = (
        select(personas.c.key, personas.c.version)
        .where(personas.c.org_id == org_id)
        .ext(distinct_on(personas.c.key))
        .order_by(personas.c.key, *by_age)
    )
    ids = [persona.id for persona in builtin().values()]
    hiding = select(personas.c.key, personas.c.version).where(
        personas.c.org_id == org_id,
        tuple_(personas.c.key, personas.c.version).in_([id_.split("@") for id_ in ids]),
    )
    rows = sql.execute(
        union_all(
            select(literal(False).label("hides"), latest.subquery()),
            select(literal(True).label("hides"), hiding.subquery()),
        )
    ).all()
    newest = {row.key: row.version for row in rows if not row.hides}
    return newest, frozenset(f"{row.key}@{row.version}" for row in rows if row.hides)


def _next_version(sql: Connection, org_id: UUID, key: str) -> str:
    own = sql.scalars(
        select(personas.c.version).where(personas.c.org_id == org_id, personas.c.key == key)
    )
    numbers = [
        int(version)
        for version in (*own, *(p.version for p in builtin().values() if p.key == key))
        if version.isdecimal()
    ]
    version = str(max(numbers, default=0) + 1)
    if not KEY.fullmatch(version):
        raise InvalidRequest(version=["is required: no higher version number can be generated"])
    return version


def _check_tools(sql: Connection, org_id: UUID, names: Iterable[str]) -> None:
    own = [name for name in names if name not in tools_of_server()]
    if missing := http_tools.missing_of(sql, org_id, own):
        raise InvalidRequest(tools=[f"unknown tool {name!r}" for name in missing])


def _check_delegates(sql: Connection, org_id: UUID, own_key: str, names: Iterable[str]) -> None:
    """Check that the personas exist; one may name its own key, for a version that comes."""
    wanted = [name for name in names if name != own_key]
    known = {*builtin(), *(id_.partition("@")[0] for id_ in builtin())}
    rows = sql.execute(
        select(personas.c.key, personas.c.version).where(
            personas.c.org_id == org_id, personas.c.key.in_([n.partition("@")[0] for n in wanted])
        )
    )
    for key, version in rows:
        known |= {key, f"{key}@{version}"}
    if missing := [name for name in wanted if name not in known]:
        raise InvalidRequest(delegates=[f"unknown persona {name!r}" for name in missing])


def _check_mcp(sql: Connection, org_id: UUID, names: Iterable[str]) -> None:
    wanted = list(names)
    there = set(
        sql.scalars(
            select(mcp_configs.c.name).where(
                mcp_configs.c.org_id == org_id, mcp_configs.c.name.in_(wanted)
            )
        )
    )
    if missing := [name for name in wanted if name not in there]:
        raise InvalidRequest(mcp=[f"unknown MCP server {name!r}" for name in missing])
