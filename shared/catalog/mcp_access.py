"""Access to MCP servers that require OAuth: what people have granted, and what they are asked for.

A *grant* has the tokens of one owner for one server, and what is needed to refresh them; a
*request* waits for somebody to visit its page, and then has the code that came back. Both are
sealed here, and only the processes that speak to the server read what is in them.

The owner is the run's end user, or else the user who created the run; `OPERATOR` is the org itself,
whose access is used to list the tools.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, select, true, update
from sqlalchemy.dialects.postgresql import insert

from arkloop.shared import origins
from arkloop.shared.config import Settings
from arkloop.shared.errors import McpStateInvalid, OrgSuspended, Unavailable
from arkloop.shared.sealing import org_keys
from arkloop.shared.security import encryption
from arkloop.shared.storage import org_urls
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.catalog import mcp_authorizations, mcp_configs, mcp_grants

log = logging.getLogger(__name__)

CALLBACK_PATH = "/v1/mcp-oauth/callback"
OPERATOR = "operator"
#: A page that was not visited by then cannot be used any more.
REQUEST_EXPIRES = timedelta(days=1)

#: A run that waits, and the hash of the state in the address of its page, by which `is_page` finds
#: the page without a key.
HashedPage = tuple[UUID, bytes]

GRANT_PURPOSE, REQUEST_PURPOSE = "mcp_grants.grant", "mcp_authorizations.request"


class ServerChanged(Exception):
    """A server that was deleted, or got another address, since access to it was asked for."""


def owner_of(end_user_id: str | None, user_id: UUID | None) -> str:
    """Return the owner of what is granted during a run."""
    return f"user:{user_id}" if end_user_id is None else f"end_user:{end_user_id}"


def redirect_uri(settings: Settings, own_url: str | None) -> str | None:
    """Return the address that authorization servers send people back to, None without one.

    `own_url` is that of the org. The SDK writes it into pages in the form that browsers send.
    """
    origin = own_url or settings.public_url
    sent = None if origin is None else origins.as_sent(origin)
    return org_urls.address(settings, sent, CALLBACK_PATH)


# ---- grants --------------------------------------------------------------------------


def grant_of(
    sql: Connection, settings: Settings, org_id: UUID, config_id: UUID, owner: str
) -> dict[str, Any] | None:
    """Return what the owner has granted.

    Raises:
        encryption.NoEncryptionKey
    """
    sealed = sql.scalar(
        select(mcp_grants.c.grant_encrypted).where(
            mcp_grants.c.config_id == config_id, mcp_grants.c.owner == owner
        )
    )
    return _open(sql, settings, sealed, org_id, GRANT_PURPOSE)


def registered_at(client: Mapping[str, Any] | None) -> int:
    """Return when a client was registered, by our clock, in seconds; 0 if that is not known.

    Earlier releases stored what the authorization server said, in milliseconds, for example.
    """
    at: int = (client or {}).get("client_id_issued_at") or 0
    return at if 0 < at < 10_000_000_000 else 0


def expect_grant(tx: Transaction, org_id: UUID, config_id: UUID, owner: str) -> None:
    """Make the row in which `store_grant` stores a first grant; the config is locked.

    Until then it counts as none, here and in earlier releases.
    """
    nothing = _seal(tx, None, org_id, GRANT_PURPOSE)
    values = {"config_id": config_id, "owner": owner, "grant_encrypted": nothing}
    statement = insert(mcp_grants).values(**values, obtained_at=datetime.fromtimestamp(0, UTC))
    tx.sql.execute(statement.on_conflict_do_nothing(index_elements=["config_id", "owner"]))


def store_grant(
    tx: Transaction, org_id: UUID, config_id: UUID, owner: str, grant: Mapping[str, Any]
) -> None:
    """Store a grant in place of an older one; `obtained_at` is a part of it, in seconds.

    Does nothing if the owner has a newer one, or access was withdrawn or the server moved since.
    """
    obtained_at = datetime.fromtimestamp(grant["obtained_at"], UTC)
    of, config = mcp_grants.c, mcp_configs.c
    older = (of.config_id == config_id, of.owner == owner, of.obtained_at < obtained_at)
    url = grant.get("server_url", config.url)  # earlier releases store grants without it
    is_there = select(config.id).where(config.id == config_id, config.url == url).exists()
    sealed = _seal(tx, grant, org_id, GRANT_PURPOSE)
    registered = registered_at(grant.get("client"))
    new = {
        "grant_encrypted": sealed,
        "obtained_at": obtained_at,
        "client_registered_at": datetime.fromtimestamp(registered, UTC) if registered else None,
    }
    tx.sql.execute(update(mcp_grants).where(*older, is_there).values(**new))


def forget(tx: Transaction, config_id: UUID, owner: str | None = None) -> list[HashedPage]:
    """Forget all that was granted and asked for, or all of one owner.

    Returns the pages that were open, as `close_open` does.
    """
    grants, requests = (
        delete(table).where(
            table.c.config_id == config_id, true() if owner is None else table.c.owner == owner
        )
        for table in (mcp_grants, mcp_authorizations)
    )
    closed = close_open(tx, config_id, owner)
    tx.sql.execute(requests)
    tx.sql.execute(grants)  # last, with the row of a code that was just taken
    return closed


# ---- requests ------------------------------------------------------------------------


def request(
    tx: Transaction,
    org_id: UUID,
    config_id: UUID,
    owner: str,
    run_id: UUID | None,
    made: Mapping[str, Any],
) -> str | None:
    """Store a request, with its `url` and `state`, and return the address of its page.

    If the run has one already that waits for a visit, that one stays, and its address is returned,
    unless its page leads back to a former public URL, which may be another cell's: it is replaced.
    None if the request is stored for another run.

    Raises:
        ServerChanged: `made["server_url"]`, if there is one, is not its address any more.
    """
    url = tx.sql.scalar(_locked(config_id))  # of two at once, one is the first
    if url is None or url != made.get("server_url", url):
        raise ServerChanged()
    now = tx.sql.scalar(select(func.now()))
    is_over = mcp_authorizations.c.expires_at <= now
    tx.sql.execute(delete(mcp_authorizations).where(_of_config(config_id), is_over))
    earlier = open_request(tx.sql, tx.connections.settings, org_id, config_id, owner, run_id)
    if earlier is not None:
        urls = (str(one["url"]) for one in (earlier, made))
        back, back_now = (_query_of(url).get("redirect_uri") for url in urls)
        # Earlier releases have stored pages with two queries, which authorization servers refuse.
        if back == back_now and str(earlier["url"]).count("?") < 2:
            return str(earlier["url"])
        is_open = mcp_authorizations.c.answered_at.is_(None)
        of_run = _of_run(config_id, owner, run_id)
        tx.sql.execute(delete(mcp_authorizations).where(*of_run, is_open))
    stored = tx.sql.scalar(
        insert(mcp_authorizations)
        .values(
            state_hash=_hash(made["state"]),
            config_id=config_id,
            owner=owner,
            run_id=run_id,
            request_encrypted=_seal(tx, made, org_id, REQUEST_PURPOSE),
            expires_at=func.now() + REQUEST_EXPIRES,
        )
        .on_conflict_do_nothing(index_elements=["state_hash"])
        .returning(mcp_authorizations.c.state_hash)
    )
    return None if stored is None else str(made["url"])


def open_request(
    sql: Connection,
    settings: Settings,
    org_id: UUID,
    config_id: UUID,
    owner: str,
    run_id: UUID | None,
) -> dict[str, Any] | None:
    """Return the request of the run, or of discoveries, that waits for somebody to visit its page.

    Raises:
        encryption.NoEncryptionKey
    """
    sealed = sql.scalar(
        select(mcp_authorizations.c.request_encrypted).where(
            *_of_run(config_id, owner, run_id),
            mcp_authorizations.c.answered_at.is_(None),
            mcp_authorizations.c.expires_at > func.now(),
        )
    )
    return _open(sql, settings, sealed, org_id, REQUEST_PURPOSE)


def hold_open(sql: Connection, config_id: UUID, run_id: UUID) -> bool:
    """Keep the run's open request from being answered or closed until the transaction ends.

    False if it has none: it was answered or closed before.
    """
    held = select(mcp_authorizations.c.state_hash).where(
        _of_config(config_id),
        mcp_authorizations.c.run_id == run_id,
        mcp_authorizations.c.answered_at.is_(None),
    )
    return sql.scalar(held.with_for_update(read=True)) is not None


def is_page(url: str, state_hash: bytes) -> bool:
    """Return whether the address is that of the page of the request with this state."""
    return state_hash in map(_hash, _query_of(url).get("state", []))


def open_pages(sql: Connection, settings: Settings, configs: Iterable[Row[Any]]) -> dict[UUID, str]:
    """Return the addresses that an admin has to visit for these servers, by their configs.

    One that leads back to a former public URL is none of them: the next discovery replaces it.
    """
    pages = {}
    for config in configs:
        if config.oauth is None:
            continue
        try:
            found = open_request(sql, settings, config.org_id, config.id, OPERATOR, None)
        except encryption.NoEncryptionKey:
            return {}
        back_now = redirect_uri(settings, config.own_url)
        if found is not None and _query_of(found["url"]).get("redirect_uri") in (None, [back_now]):
            pages[config.id] = str(found["url"])
    return pages


def answer(
    tx: Transaction, state: str, code: str | None, issuer: str | None
) -> tuple[Row[Any], str]:
    """Take what an authorization server says; return the request's row and its page's address.

    Without a code access was denied, and the request is over.

    Raises:
        McpStateInvalid: no such request is open: it never was, has expired, or was answered before.
        OrgSuspended: the request stays open.
        Unavailable: this process has no key.
    """
    found = tx.sql.execute(
        select(mcp_authorizations, mcp_configs.c.org_id, orgs.c.suspended_at)
        .join(mcp_configs, mcp_configs.c.id == mcp_authorizations.c.config_id)
        .join(orgs, orgs.c.id == mcp_configs.c.org_id)
        .where(
            mcp_authorizations.c.state_hash == _hash(state),
            mcp_authorizations.c.answered_at.is_(None),
            mcp_authorizations.c.expires_at > func.now(),
        )
        .with_for_update(of=mcp_authorizations)
    ).one_or_none()
    if found is None:
        raise McpStateInvalid()
    if found.suspended_at is not None:
        raise OrgSuspended()
    settings = tx.connections.settings
    try:
        made = _open(tx.sql, settings, found.request_encrypted, found.org_id, REQUEST_PURPOSE)
    except encryption.NoEncryptionKey:
        raise Unavailable("ARKLOOP_ENCRYPTION_KEY is not set on this server.") from None
    if made is None:
        raise McpStateInvalid()
    is_it = mcp_authorizations.c.state_hash == found.state_hash
    if code is None:
        tx.sql.execute(delete(mcp_authorizations).where(is_it))
    else:
        answered = {**made, "code": code, "iss": issuer}
        sealed = _seal(tx, answered, found.org_id, REQUEST_PURPOSE)
        tx.sql.execute(
            update(mcp_authorizations)
            .where(is_it)
            .values(request_encrypted=sealed, answered_at=func.now())
        )
    return found, str(made["url"])


def take_answered(
    tx: Transaction, org_id: UUID, config_id: UUID, owner: str, run_id: UUID | None
) -> dict[str, Any] | None:
    """Return the request of the run whose code has come, once: a code is for one use.

    What the code is exchanged for can be stored until access is withdrawn.

    Raises:
        encryption.NoEncryptionKey
    """
    is_it = (*_of_run(config_id, owner, run_id), mcp_authorizations.c.answered_at.is_not(None))
    if tx.sql.scalar(select(mcp_authorizations.c.state_hash).where(*is_it)) is None:
        return None
    tx.sql.scalar(_locked(config_id))  # first, as where configs are changed
    sealed = tx.sql.scalar(
        delete(mcp_authorizations).where(*is_it).returning(mcp_authorizations.c.request_encrypted)
    )
    made = _open(tx.sql, tx.connections.settings, sealed, org_id, REQUEST_PURPOSE)
    if made is not None:
        expect_grant(tx, org_id, config_id, owner)
    return made


def close_open(tx: Transaction, config_id: UUID, owner: str | None) -> list[HashedPage]:
    """Close requests that wait for a visit, of one owner or of all; return their pages.

    Their runs are left to the caller: see `commands.answer_visits`.
    """
    closed = tx.sql.execute(
        delete(mcp_authorizations)
        .where(
            _of_config(config_id),
            true() if owner is None else mcp_authorizations.c.owner == owner,
            mcp_authorizations.c.run_id.is_not(None),
            mcp_authorizations.c.answered_at.is_(None),
        )
        .returning(mcp_authorizations.c.run_id, mcp_authorizations.c.state_hash)
    )
    return [(run_id, state_hash) for run_id, state_hash in closed.all()]


# ---- pieces --------------------------------------------------------------------------


def _of_config(config_id: UUID) -> Any:
    return mcp_authorizations.c.config_id == config_id


def _of_run(config_id: UUID, owner: str, run_id: UUID | None) -> tuple[Any, ...]:
    is_of_run = mcp_authorizations.c.run_id.is_not_distinct_from(run_id)
    return _of_config(config_id), mcp_authorizations.c.owner == owner, is_of_run


def _locked(config_id: UUID) -> Any:
    return (
        select(mcp_configs.c.url)
        .where(mcp_configs.c.id == config_id)
        .with_for_update(key_share=True)
    )


def _query_of(url: str) -> dict[str, list[str]]:
    # Not by `urlsplit`, which refuses some of servers' addresses.
    return parse_qs(url.partition("#")[0].partition("?")[2])


def _hash(state: str) -> bytes:
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).digest()


def _seal(tx: Transaction, value: Mapping[str, Any] | None, org_id: UUID, purpose: str) -> bytes:
    keyring = encryption.keyring(tx.connections.settings.encryption_key)
    return org_keys.seal(tx, keyring, json.dumps(value), org_id=org_id, purpose=purpose)


def _open(
    sql: Connection, settings: Settings, sealed: bytes | None, org_id: UUID, purpose: str
) -> dict[str, Any] | None:
    """Return what is sealed, None without it, or under a key that is gone: people can be asked."""
    if sealed is None:
        return None
    keyring = encryption.keyring(settings.encryption_key)
    try:
        text = org_keys.open_(sql, keyring, sealed, org_id=org_id, purpose=purpose)
    except encryption.CannotOpen as error:
        log.warning("cannot decrypt %s of organization %s: %s", purpose, org_id, error)
        return None
    value: dict[str, Any] | None = json.loads(text)
    return value
