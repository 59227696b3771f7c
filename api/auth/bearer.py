"""Authentication: bearer tokens (RFC 6750) to actors, and what each endpoint requires of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar, cast
from uuid import UUID

from flask import current_app, g, request
from sqlalchemy import Connection, Row

from arkloop.api.auth import access_tokens, client_tokens, request_limits
from arkloop.api.http import path_ids
from arkloop.api.http.described import mark
from arkloop.shared import logs
from arkloop.shared.accounts import accounts, api_keys, org_settings
from arkloop.shared.actors import OPERATE, PERMISSIONS_OF_ROLE, WORK_PERMISSIONS, Actor
from arkloop.shared.errors import Forbidden, OrgSuspended, Unauthorized, Unavailable
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.recent_reads import RecentReads
from arkloop.shared.times import now

#: A token that was revoked, or a role that was changed, is believed no longer than this.
CACHE_SECONDS = 2
_MAX_CACHED = 10_000
#: `last_used_at` is this exact.
_LAST_USED_STEP = timedelta(minutes=1)

_FOR_WORKERS = "A key whose scopes are for workers alone cannot be used for this endpoint."

P = ParamSpec("P")
R = TypeVar("R")


def requires(
    permission: str | None = None,
    *,
    also: Sequence[str] = (),
    end_users: bool = False,
    is_heartbeat: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let the endpoint be called only with a valid token that has `permission` and those of `also`.

    In this order: 401, 429, 422 for an id in the path that is none, 403. End users, who come with a
    client token, may call it only with `end_users`: then all that it reads and writes is limited to
    what this actor sees. With `is_heartbeat` it renews a lease: see `RequestLimits.count`.
    """

    required = () if permission is None else (permission, *also)

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            g.actor = actor = authenticator().identify(bearer_token())
            logs.bind(org_id=str(actor.org_id))
            request_limits.count(actor, is_heartbeat=is_heartbeat)
            path_ids.check(kwargs)
            if actor.end_user_id is not None and not end_users:
                raise Forbidden("Client tokens cannot be used for this endpoint.")
            actor.check_permits(*required)
            if permission is None and actor.permissions and actor.permissions <= WORK_PERMISSIONS:
                raise Forbidden(_FOR_WORKERS)
            return view(*args, **kwargs)

        mark(checked, "permission", permission or "")
        mark(checked, "also", also)
        mark(checked, "end_users", end_users)
        return checked

    return decorate


def authenticator() -> "Authenticator":
    """Return this process's authenticator; streams keep it, as they outlive the request context."""
    return cast(Authenticator, current_app.extensions["arkloop.auth"])


def bearer_token() -> str:
    """Return the token from `Authorization: Bearer`. Raises: Unauthorized: nothing of that form."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized()
    return token


@dataclass(frozen=True, slots=True)
class _Used:
    """A key that was used, for its `last_used_at`."""

    kind: ClassVar[str] = "key used"
    subject: UUID

    @staticmethod
    def send(connections: Connections, group: "Sequence[_Used]") -> None:
        for one in group:
            with connections.transaction() as tx:
                api_keys.mark_used(tx, one.subject)


class Authenticator:
    """Checks tokens against the database, at most once in `CACHE_SECONDS` each."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._keys: RecentReads[object, Row[Any] | None] = RecentReads(CACHE_SECONDS, _MAX_CACHED)
        self._members: RecentReads[object, Row[Any] | None] = RecentReads(
            CACHE_SECONDS, _MAX_CACHED
        )
        self._limits: RecentReads[UUID, OrgLimits] = RecentReads(CACHE_SECONDS, _MAX_CACHED)

    def identify(self, token: str) -> Actor:
        """Return the actor that the token stands for.

        Raises:
            Unauthorized: it is not in force, or its org is suspended.
            Unavailable
        """
        return self.with_limits(self._identify(token))

    def with_limits(self, actor: Actor) -> Actor:
        """Return the actor with the limits of its org; while Postgres is out of reach, with those
        of the settings.
        """
        settings, org_id = self.connections.settings, actor.org_id

        def read() -> OrgLimits:
            with self.connections.reading() as sql:
                return org_settings.limits_of(sql, settings, org_id)

        try:
            return replace(actor, limits=self._limits.get(org_id, read))
        except Unavailable:
            return actor

    def _identify(self, token: str) -> Actor:
        if token.startswith(api_keys.PREFIX):
            return self._by_api_key(token)
        if token.startswith(client_tokens.PREFIX):
            return self._end_user(client_tokens.verify(self.connections.settings, token))
        claims = access_tokens.verify(self.connections.settings, token)
        member = self._member(claims.user_id, claims.org_id, claims.session_id)
        if member is None:
            raise Unauthorized()
        _check_org(member)
        return Actor(
            org_id=claims.org_id,
            user_id=claims.user_id,
            role=member.role,
            permissions=_permissions(member),
            session_id=claims.session_id,
            expires_at=claims.expires_at,
        )

    def still_valid(self, actor: Actor) -> bool:
        """Return whether the actor may keep reading; a revocation, or the suspension of the org,
        takes effect within `CACHE_SECONDS`.

        While Postgres is out of reach nothing can be revoked: only the token's own end counts.
        """
        try:
            self.check(actor)
        except Unauthorized:
            return False
        return True

    def still_allows(self, actor: Actor, permission: str) -> bool:
        """Return whether the actor, no end user, is still valid and has the permission.

        A change of the role takes effect within `CACHE_SECONDS`, too. Raises: Unavailable.
        """
        try:
            self.check(actor)
            return permission in self.permissions_of(actor)
        except Unauthorized:
            return False

    def check(self, actor: Actor) -> None:
        """Check that the actor is still valid. Raises: Unauthorized."""
        if actor.expires_at is not None and actor.expires_at <= now():
            raise Unauthorized()
        try:
            row = self._behind(actor)
        except Unavailable:
            return
        if row is None:
            raise Unauthorized()
        _check_org(row)

    def permissions_of(self, actor: Actor) -> frozenset[str]:
        """Return what the key or login behind a ticket or a client token allows now.

        It is empty if the key or login is not in force. Raises: OrgSuspended.
        """
        row = self._behind(actor)
        if row is None:
            return frozenset()
        _check_org(row)
        return _permissions(row) if actor.api_key_id is None else api_keys.permissions_of(row)

    def _behind(self, actor: Actor) -> Row[Any] | None:
        """Return the row of the key or login that the actor comes from; None if not in force."""
        if (key_id := actor.api_key_id) is not None:
            return self._api_key(key_id, lambda sql: api_keys.find_by_id(sql, key_id))
        return self._member(actor.user_id, actor.org_id, actor.session_id)

    def up_to_date(self, actor: Actor) -> Actor:
        """Return the actor of a ticket with the rights that its key or login has now."""
        if actor.end_user_id is None:
            return replace(actor, permissions=self.permissions_of(actor))
        return self._end_user(actor)

    def forget(self) -> None:
        """Ask the database again for everyone: something was revoked through this process."""
        self._keys.forget()
        self._members.forget()

    def _end_user(self, actor: Actor) -> Actor:
        """Narrow an end user's rights to those of the token's issuer. Raises: Unauthorized."""
        of_issuer = self.permissions_of(actor)
        if not of_issuer:
            raise Unauthorized()
        return replace(
            actor,
            permissions=actor.permissions & of_issuer,
            issuer_writes_all="admin" in of_issuer,
        )

    def _by_api_key(self, key: str) -> Actor:
        if not api_keys.is_well_formed(key):
            raise Unauthorized()
        row = self._api_key(api_keys.hash_of(key), lambda sql: api_keys.find(sql, key))
        if row is None or (row.expires_at is not None and row.expires_at <= now()):
            raise Unauthorized()
        _check_org(row)
        return Actor(
            org_id=row.org_id,
            user_id=row.user_id,
            role=row.role,
            permissions=api_keys.permissions_of(row),
            api_key_id=row.id,
            expires_at=row.expires_at,
        )

    def _api_key(
        self, name: object, find: Callable[[Connection], Row[Any] | None]
    ) -> Row[Any] | None:
        def read() -> Row[Any] | None:
            with self.connections.reading() as sql:
                row = find(sql)
            if row is not None and (
                row.last_used_at is None or row.last_used_at < now() - _LAST_USED_STEP
            ):
                self.connections.notify(_Used(row.id))
            return row

        return self._keys.get(name, read)

    def _member(self, user_id: UUID, org_id: UUID, session_id: UUID | None) -> Row[Any] | None:
        def read() -> Row[Any] | None:
            with self.connections.reading() as sql:
                return accounts.membership(
                    sql, user_id=user_id, org_id=org_id, session_id=session_id
                )

        return self._members.get((user_id, org_id, session_id), read)


def _check_org(row: Row[Any]) -> None:
    """Check the org of a key or login. Raises: OrgSuspended."""
    if row.suspended_at is not None:
        raise OrgSuspended()


def _permissions(member: Row[Any]) -> frozenset[str]:
    of_role = PERMISSIONS_OF_ROLE[member.role]
    return of_role | {OPERATE} if member.is_operator else of_role
