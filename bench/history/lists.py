"""The time that a page of a list takes over HTTP, next to the bare SQL of the same page."""

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any
from uuid import UUID

import httpx2
import psycopg
from sqlalchemy import Connection, event

from arkloop.shared.accounts import api_keys
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.runs import queries
from arkloop.shared.runs.states import STATUSES
from arkloop.shared.threads import threads
from bench.figure import Figure, Limit, percentile
from bench.history.seeding import History, Org
from bench.service import Service

COUNT = 200
WARM_UP = 12
DEEP_PAGE = 100
#: Milliseconds: of the first page of all runs, and of those of a status.
TARGET_P99 = 20.0
Query = Callable[[Connection], object]


class Lists:
    """A keep-alive client of one web process, and a direct connection to Postgres."""

    def __init__(self, service: Service, written: History, count: int = COUNT) -> None:
        self._written = written
        self._count = count
        self._connections = service.connect()
        self._http = httpx2.Client(base_url=service.urls[0], trust_env=False, timeout=60)
        url = service.postgres.url.replace("+psycopg", "", 1)
        self._sql = psycopg.connect(url, autocommit=True, prepare_threshold=3)
        self._keys: dict[UUID, dict[str, str]] = {}

    def close(self) -> None:
        self._http.close()
        self._sql.close()

    def measure(self) -> Iterator[Figure]:
        """Measure every list as its owner sees it, and those with most to omit as others do."""
        main, private = self._written.main, self._written.private
        owner = owner_of(main)
        who = {
            "owner": owner,
            "member": _actor(main, 1, "member"),
            "owner among private threads": owner_of(private),
        }
        for name, actor in who.items():
            yield from self._runs(name, actor)
            yield self._threads(name, actor)
        yield from self._in_threads(owner)

    def page(self, actor: Actor, path: str) -> httpx2.Response:
        """Return the response to a GET, which is 200."""
        response = self._http.get(path, headers=self._headers(actor))
        assert response.status_code == 200, response.text
        return response

    def _runs(self, name: str, actor: Actor) -> Iterator[Figure]:
        for limit in (50, 200):
            yield self._figure(
                f"GET /v1/runs?limit={limit}, {name}",
                actor,
                [f"/v1/runs?limit={limit}"],
                lambda sql, limit=limit: queries.list_of_org(  # type: ignore[misc]  # its default has no type
                    sql, actor, limit=limit + 1, before=None
                ),
            )
        deep = self._walk(actor, "/v1/runs?limit=50", DEEP_PAGE)
        row = self.page(actor, deep[0]).json()
        if row:
            before = self._place_of(UUID(row[0]["run_id"]))
            yield self._figure(
                f"GET /v1/runs, page {DEEP_PAGE} and on, {name}",
                actor,
                deep,
                lambda sql: queries.list_of_org(sql, actor, limit=51, before=before),
            )
        for status in STATUSES:
            yield self._figure(
                f"GET /v1/runs?status={status}, {name}",
                actor,
                [f"/v1/runs?status={status}"],
                lambda sql, status=status: queries.list_of_org(  # type: ignore[misc]  # its default has no type
                    sql, actor, limit=51, before=None, filters={"status": status}
                ),
            )

    def _threads(self, name: str, actor: Actor) -> Figure:
        return self._figure(
            f"GET /v1/threads, {name}",
            actor,
            ["/v1/threads"],
            lambda sql: threads.list_(sql, actor, limit=51, before=None),
        )

    def _in_threads(self, actor: Actor) -> Iterator[Figure]:
        some, largest = self._written.some_threads, self._written.largest_thread
        assert largest is not None
        for name, ids in (("some threads", some), ("the largest thread", [largest])):
            yield self._figure(
                f"GET /v1/threads/{{id}}/runs, {name}",
                actor,
                [f"/v1/threads/{one}/runs" for one in ids],
                lambda sql, ids=ids: queries.list_of_thread(  # type: ignore[misc]  # its default has no type
                    sql, actor, ids[0], limit=51, before=None
                ),
            )
            yield self._figure(
                f"GET /v1/threads/{{id}}/messages, {name}",
                actor,
                [f"/v1/threads/{one}/messages" for one in ids],
                lambda sql, ids=ids: threads.list_messages(  # type: ignore[misc]  # its default has no type
                    sql, actor, ids[0], limit=51, before=None
                ),
            )
        yield self._figure(
            "GET /v1/runs/{id}",
            actor,
            [f"/v1/runs/{one}" for one in self._written.some_runs],
            lambda sql: queries.get(sql, actor, self._written.some_runs[0]),
        )

    def _figure(self, name: str, actor: Actor, paths: list[str], query: Query) -> Figure:
        """Time the requests in turn; then what `query` sends, by psycopg alone."""
        turns = cycle(paths)
        waited = _timed(self._count, lambda: self.page(actor, next(turns)))
        with self._connections.reading() as sql:
            statements = _sent(sql, lambda: query(sql))

        def bare() -> None:
            for statement, parameters in statements:
                self._sql.execute(statement, parameters).fetchall()

        alone = _timed(self._count, bare)
        return Figure(
            name=name,
            unit="ms",
            numbers=milliseconds(waited),
            count=len(waited),
            at_most={"p99": TARGET_P99} if name.startswith("GET /v1/runs?") else {},
            limit=Limit(
                name="the same SQL by psycopg", of="p50", value=percentile(alone, 0.5) * 1000
            ),
            scale=("runs stored", float(self._written.runs)),
        )

    def _walk(self, actor: Actor, path: str, pages: int) -> list[str]:
        """Return the paths of the pages from there on, found by their cursors."""
        found: list[str] = []
        for number in range(pages + self._count):
            if number >= pages:
                found.append(path)
            following = self.page(actor, path).links.get("next")
            if following is None:
                break
            path = following["url"]
        return found or [path]

    def _place_of(self, run_id: UUID) -> tuple[Any, UUID]:
        row = self._sql.execute("SELECT created_at FROM runs WHERE id = %s", [run_id]).fetchone()
        assert row is not None
        return row[0], run_id

    def _headers(self, actor: Actor) -> dict[str, str]:
        if actor.user_id not in self._keys:
            with self._connections.transaction() as tx:
                _, key = api_keys.create(tx, actor, name="bench")
            self._keys[actor.user_id] = {"Authorization": f"Bearer {key}"}
        return self._keys[actor.user_id]


def milliseconds(seconds: list[float]) -> dict[str, float]:
    return {"p50": percentile(seconds, 0.5) * 1000, "p99": percentile(seconds, 0.99) * 1000}


def _timed(count: int, act: Callable[[], object]) -> list[float]:
    waited = []
    for number in range(count + WARM_UP):
        began = time.perf_counter()
        act()
        if number >= WARM_UP:  # plans are chosen anew until then
            waited.append(time.perf_counter() - began)
    return waited


def _sent(sql: Connection, act: Callable[[], object]) -> list[tuple[str, Any]]:
    """Return what `act` sends to the driver."""
    statements: list[tuple[str, Any]] = []

    def note(*details: Any) -> None:
        statements.append((details[2], details[3]))

    event.listen(sql, "before_cursor_execute", note)
    try:
        act()
    finally:
        event.remove(sql, "before_cursor_execute", note)
    return statements


def owner_of(org: Org) -> Actor:
    return _actor(org, 0, "owner")


def _actor(org: Org, number: int, role: str) -> Actor:
    return Actor(
        org_id=org.id,
        user_id=org.members[number],
        role=role,
        permissions=PERMISSIONS_OF_ROLE[role],
    )
