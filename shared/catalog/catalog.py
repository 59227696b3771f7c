"""The catalog of what an org's runs can be made with, as one process has it: routes and personas.

Routes come from the settings and from the org's models, personas from the code and
from what the org has published. What another process changed is seen within
`CACHE_SECONDS`; something that is not known yet is looked for at once.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row, exists, or_, select

from arkloop.shared.catalog import (
    model_routes,
    org_routes,
    personas,
    published_personas,
    worker_tools,
)
from arkloop.shared.catalog.llm_providers import API_KEY_PURPOSE
from arkloop.shared.catalog.model_routes import Route, Routes
from arkloop.shared.catalog.org_routes import SealedRoute
from arkloop.shared.catalog.personas import DEFAULT_PERSONA, InvalidPersona, Persona
from arkloop.shared.errors import PersonaNotFound, RouteNotFound
from arkloop.shared.sealing import org_keys
from arkloop.shared.security.encryption import CannotOpen, NoEncryptionKey, keyring
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.recent_reads import RecentReads
from arkloop.shared.storage.tables.billing import budgets, credit_balances
from arkloop.shared.times import now

T = TypeVar("T")

log = logging.getLogger(__name__)

CACHE_SECONDS = 2.0
_MAX_ORGS = 10_000
_MAX_PERSONAS = 1_000
_MAX_KEYS = 10_000

_NO_ROUTE = "No route is configured on this server."
_ADVICE = (
    "Set OPENAI_API_KEY, ANTHROPIC_API_KEY or ARKLOOP_ROUTES, or add a provider with a default"
    " model by POST /v1/llm-providers."
)
_NO_DEFAULT = "No route is the default: name one, or set `is_default` of a model."


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfOrg:
    """The part of the catalog that belongs to one org, as read at one time."""

    routes: Mapping[str, SealedRoute]
    newest: Mapping[str, str]  # of each of its personas: key → version
    hides_builtin: frozenset[str]  # its own of a built-in's id, published before that came
    is_limited: bool


@dataclass(slots=True, eq=False)
class Catalog:
    """Built once per process; any thread may ask.

    Who asks inside a transaction passes its connection as `sql`, before it writes any of this:
    so nobody holds one connection while waiting for another.
    """

    connections: Connections
    routes_of_settings: Routes
    _priced: tuple[date | None, Routes] = (None, {})
    _orgs: RecentReads[UUID, _OfOrg] = field(
        default_factory=lambda: RecentReads(CACHE_SECONDS, _MAX_ORGS)
    )
    #: A published persona never changes, so it is kept without an end.
    _personas: dict[tuple[UUID, str], Persona] = field(default_factory=dict)
    _opened: dict[tuple[UUID, bytes, bytes | None], str | None] = field(default_factory=dict)
    _worker_tools: RecentReads[object, list[Row[Any]]] = field(
        default_factory=lambda: RecentReads(CACHE_SECONDS, _MAX_ORGS)
    )

    def __post_init__(self) -> None:
        """Read the built-in personas at the start. Raises: InvalidPersona: one is wrong."""
        personas.builtin()

    # ---- routes ----

    def route(self, org_id: UUID, route_id: str, *, sql: Connection | None = None) -> Route | None:
        """Return the org's or the server's route of this id, with its API key; None without one."""
        return self._own_route(org_id, route_id, sql) or self._server_routes().get(route_id)

    def choose_route(
        self,
        org_id: UUID,
        route_id: str | None,
        persona: Persona,
        *,
        sql: Connection | None = None,
        advises: bool = False,
    ) -> Route:
        """Choose the run's route: its own, else the persona's, else the org's default, else the
        server's.

        Raises:
            RouteNotFound: with `advises`, which is not for end users, it says how to get one.
        """
        wanted = route_id or persona.route_id
        if wanted is not None:
            found = self.route(org_id, wanted, sql=sql)
            if found is None:
                raise RouteNotFound(route_id=[f"Route {wanted!r} not found."])
            return found
        default = self._default(org_id, sql)
        if default is not None:
            return self._with_key(org_id, default)
        server_default = model_routes.default_id(self._server_routes())
        if server_default is None:
            if self._of(org_id, sql).routes:
                raise RouteNotFound(route_id=[_NO_DEFAULT])
            why = f"{_NO_ROUTE} {_ADVICE}" if advises else _NO_ROUTE
            raise RouteNotFound("No route is configured; see `details`.", route_id=[why])
        return self._server_routes()[server_default]

    def default_route_id(self, org_id: UUID) -> str | None:
        """Return the route of runs that name none, nor does their persona; None without one."""
        default = self._default(org_id, None)
        if default is not None:
            return default.route.id
        return model_routes.default_id(self._server_routes())

    def chain(self, org_id: UUID, persona: Persona, route_id: str) -> list[Route]:
        """Return the route and its fallbacks in their order, without those that no longer exist.

        The persona's own list; else, for the org's default route, those of its models that have a
        priority, the lowest first; for the server's default route likewise the server's.
        """
        route = self.route(org_id, route_id)
        if persona.fallback_route_ids:
            fallbacks = [self.route(org_id, id_) for id_ in persona.fallback_route_ids]
        else:
            fallbacks = [] if route is None else self._ranked(org_id, route)
        chain = [found for found in (route, *fallbacks) if found is not None]
        return list({found.id: found for found in chain}.values())

    def _ranked(self, org_id: UUID, route: Route) -> list[Route | None]:
        if route.is_of_org:
            own = self._of(org_id).routes.values() if route.is_default else ()
            ranked = _by_priority([sealed.route for sealed in own])
        else:
            default = model_routes.default_id(self._server_routes())
            server = self._server_routes().values() if route.id == default else ()
            ranked = _by_priority(server)
        return [self.route(org_id, other.id) for other in ranked]

    def routes(self, org_id: UUID) -> list[Route]:
        """List all routes, the server's first, as they are now and without API keys."""
        own = self._read(org_id).routes.values()
        of_server = [replace(route, api_key=None) for route in self._server_routes().values()]
        return [*of_server, *(sealed.route for sealed in own)]

    def _server_routes(self) -> Routes:
        """Return the routes of the settings, with the price library's prices of today."""
        today = now().date()
        if self._priced[0] != today:
            self._priced = (today, model_routes.priced_on(self.routes_of_settings, today))
        return self._priced[1]

    # ---- personas ----

    def persona(
        self, org_id: UUID, persona_id: str | None, *, sql: Connection | None = None
    ) -> Persona:
        """Return the persona of this id; without a version the newest, and for None the default.

        Raises:
            PersonaNotFound: there is none, or another release has published what this cannot read.
        """
        key, _, version = (persona_id or DEFAULT_PERSONA).partition("@")
        known = self._of(org_id, sql)
        if version:
            return self._exact(org_id, key, version, known, sql)
        own = known.newest.get(key)
        there = {p.version for p in personas.builtin().values() if p.key == key}
        if own is None and not there:
            own = self._read(org_id, sql).newest.get(key)
        if own is not None:
            there.add(own)
        if not there:
            raise personas.not_found(persona_id)
        return self._exact(org_id, key, personas.newest(there), known, sql)

    def _exact(
        self, org_id: UUID, key: str, version: str, known: _OfOrg, sql: Connection | None
    ) -> Persona:
        id_ = f"{key}@{version}"
        found = personas.builtin().get(id_)
        if found is not None and id_ not in known.hides_builtin:
            return found
        found = self._personas.get((org_id, id_))
        if found is not None:
            return found
        row = self._ask(org_id, sql, lambda sql: published_personas.find(sql, org_id, key, version))
        if row is None:
            raise personas.not_found(id_)
        if len(self._personas) >= _MAX_PERSONAS:
            self._personas.clear()
        try:
            found = published_personas.persona_of(row)
        except InvalidPersona as error:
            why = f"This release of the server does not support the persona {id_!r}: {error}"
            raise PersonaNotFound(persona_id=[why]) from None
        self._personas[org_id, id_] = found
        return found

    # ---- tools ----

    def worker_tools(self, org_id: UUID, pools: tuple[str, ...]) -> list[Row[Any]]:
        """Return the tools that workers of these pools have registered, by pool and name."""
        read = partial(
            self._ask, org_id, None, partial(worker_tools.of_pools, org_id=org_id, pools=pools)
        )
        return self._worker_tools.get((org_id, pools), read) if pools else []

    # ---- money ----

    def is_limited(self, org_id: UUID) -> bool:
        """Return whether the org has a budget or prepaid credits."""
        return self._of(org_id).is_limited

    # ---- what is kept ----

    def forget(self, org_id: UUID) -> None:
        """Ask the database again: something of the org was changed through this process."""
        self._orgs.forget(org_id)

    def _of(self, org_id: UUID, sql: Connection | None = None) -> _OfOrg:
        """Return the org's part of the catalog, at most `CACHE_SECONDS` old.

        One of several callers at once reads it for all. A caller with a connection does not
        wait for another caller, which might not get one.
        """
        read = partial(self._ask, org_id, sql, partial(_read, org_id=org_id))
        return self._orgs.get(org_id, read, waits=sql is None)

    def _read(self, org_id: UUID, sql: Connection | None = None) -> _OfOrg:
        return self._orgs.read(
            org_id, partial(self._ask, org_id, sql, partial(_read, org_id=org_id))
        )

    def _ask(self, org_id: UUID, sql: Connection | None, question: Callable[[Connection], T]) -> T:
        if sql is not None:
            return question(sql)
        with self.connections.of(org_id).reading() as own:
            return question(own)

    def _default(self, org_id: UUID, sql: Connection | None) -> SealedRoute | None:
        own = self._of(org_id, sql).routes.values()
        return next((sealed for sealed in own if sealed.route.is_default), None)

    def _own_route(self, org_id: UUID, route_id: str, sql: Connection | None) -> Route | None:
        sealed = self._of(org_id, sql).routes.get(route_id)
        if sealed is None and route_id not in self._server_routes():
            sealed = self._read(org_id, sql).routes.get(route_id)
        return None if sealed is None else self._with_key(org_id, sealed)

    def _with_key(self, org_id: UUID, sealed: SealedRoute) -> Route:
        """Add the decrypted key; one that cannot be decrypted is logged, and is lost."""
        if sealed.api_key is None:
            return sealed.route
        name = (org_id, sealed.api_key, sealed.org_key)
        if name not in self._opened:
            if len(self._opened) >= _MAX_KEYS:
                self._opened.clear()
            self._opened[name] = self._open(org_id, sealed)
        key = self._opened[name]
        return replace(sealed.route, api_key=key, has_lost_key=key is None)

    def _open(self, org_id: UUID, sealed: SealedRoute) -> str | None:
        assert sealed.api_key is not None
        keys = keyring(self.connections.settings.encryption_key)
        try:
            return org_keys.opened(
                keys, sealed.org_key, sealed.api_key, org_id=org_id, purpose=API_KEY_PURPOSE
            )
        except (NoEncryptionKey, CannotOpen) as error:
            log.error("cannot decrypt the API key of route %s: %s", sealed.route.id, error)
            return None


def _by_priority(routes: Iterable[Route]) -> list[Route]:
    ranked = [(route.priority, route) for route in routes if route.priority is not None]
    return [route for _, route in sorted(ranked, key=itemgetter(0))]


def _read(sql: Connection, org_id: UUID) -> _OfOrg:
    """Read an org's part of the catalog in three statements, however large it is."""
    routes = org_routes.routes_of(sql, org_id)
    newest, hides_builtin = published_personas.overview(sql, org_id)
    is_limited = sql.scalar(
        select(
            or_(
                exists().where(budgets.c.org_id == org_id),
                exists().where(credit_balances.c.org_id == org_id),
            )
        )
    )
    return _OfOrg(
        routes={sealed.route.id: sealed for sealed in routes},
        newest=newest,
        hides_builtin=hides_builtin,
        is_limited=bool(is_limited),
    )
