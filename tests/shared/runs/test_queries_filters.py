"""Filters of lists on many rows: the right rows, by the right index, in the order of the list."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import RowMapping, create_engine, select, text

from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.ids import new_id
from arkloop.shared.runs import queries
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.pages import WALKED, Place
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.threads import threads
from tests.clients import User
from tests.query_plans import Plans, noted, sent
from tests.stored_runs import StoredRuns

pytestmark = pytest.mark.owner

RUNS = 30_000
THREADS = 12_000
KEY = new_id()
#: Of two orgs in turn; each tenth thread is private.
_THREADS = """
INSERT INTO threads (id, org_id, created_by_user_id, created_at, is_private, end_user_id, metadata)
SELECT gen_random_uuid(), CASE i % 5 WHEN 0 THEN :other_org ELSE :org END::uuid,
    CASE i % 5 WHEN 0 THEN :other_user ELSE :user END::uuid,
    now() - make_interval(secs => i), i % 10 = 1, 'user ' || i % 500,
    jsonb_build_object('all', 'yes', 'rare', (i % 500)::text)
FROM generate_series(1, :count) AS i
"""
_RUNS = """
INSERT INTO runs (id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id,
    route_id, model, position, state, created_at, queued_at, ended_at, error_code, end_user_id,
    cost_usd, metadata)
SELECT gen_random_uuid(), t.org_id, t.id, t.created_by_user_id,
    CASE WHEN i % 2 = 0 THEN :key ::uuid END, '', CASE WHEN i < 100 THEN 'old@' || i % 2 ELSE
    'new@1' END, CASE i % 3 WHEN 0 THEN 'a' ELSE 'b' END, 'm', i,
    CASE WHEN i % 100 = 0 THEN 'failed' ELSE 'completed' END,
    now() - make_interval(secs => :count - i), now(), now(),
    CASE WHEN i % 100 = 0 THEN 'run.timeout' END, 'user ' || i % 500,
    i % 7 / 100.0, jsonb_build_object('all', 'yes', 'half', (i % 2)::text, 'other', (i % 2)::text,
        'rare', (i % 500)::text)
FROM generate_series(1, :count) AS i
JOIN (SELECT *, row_number() OVER (ORDER BY created_at) AS n FROM threads) AS t
    ON t.n = 1 + i % (SELECT count(*) FROM threads)
"""


@pytest.fixture(scope="module")
def actors(connections: Connections) -> tuple[Actor, Actor]:
    """Two owners of an org each, which share the tables."""
    ids = {name: new_id() for name in ("org", "user", "other_org", "other_user")}
    engine = create_engine(connections.settings.database_url)  # without a limit on time
    with engine.begin() as sql:
        for org, user in (("org", "user"), ("other_org", "other_user")):
            of = {"org": ids[org], "user": ids[user], "name": f"{org} of filters"}
            sql.execute(text("INSERT INTO orgs (id, name) VALUES (:org, :name)"), of)
            sql.execute(
                text(
                    "INSERT INTO users (id, login, email, password_hash)"
                    " VALUES (:user, :name, :name, '-')"
                ),
                of,
            )
        sql.execute(text(_THREADS), {**ids, "count": THREADS})
        sql.execute(text(_RUNS), {"key": KEY, "count": RUNS})
    with engine.connect() as sql:
        vacuum = "VACUUM ANALYZE runs, threads, run_metadata, thread_metadata"
        sql.execution_options(isolation_level="AUTOCOMMIT").execute(text(vacuum))
    engine.dispose()

    def actor(org: str, user: str) -> Actor:
        permissions = PERMISSIONS_OF_ROLE["owner"]
        return Actor(org_id=ids[org], user_id=ids[user], role="owner", permissions=permissions)

    return actor("org", "user"), actor("other_org", "other_user")


def listed(connections: Connections, actor: Actor, filters: Mapping[str, Any]) -> list[UUID]:
    """Return all pages; the ids are newest first, and each page has rows or is not the last."""
    found: list[UUID] = []
    before: Place | None = None
    with connections.reading() as sql:
        while True:
            page = queries.list_of_org(sql, actor, limit=200, before=before, filters=filters)
            found.extend(row.id for row in page.rows)
            if len(page.rows) == 200:
                before = (page.rows[-1].created_at, page.rows[-1].id)
            elif page.end is None:
                return found
            else:
                before = page.end


def one_run(connections: Connections, actor: Actor, where: str) -> RowMapping:
    with connections.reading() as sql:
        query = select(runs).where(runs.c.org_id == actor.org_id, text(where)).limit(1)
        return sql.execute(query).mappings().one()


#: What a filter may look at.
COLUMNS = (
    *("id", "thread_id", "route_id", "end_user_id", "error_code", "api_key_id", "persona_id"),
    *("metadata", "created_at", "ended_at", "cost_usd"),
)


@pytest.fixture(scope="module")
def rows(
    connections: Connections, actors: tuple[Actor, Actor]
) -> Mapping[Actor, Sequence[RowMapping]]:
    """All runs of each actor's org, in the order of the list."""
    query = select(*(runs.c[name] for name in COLUMNS))
    order = query.order_by(runs.c.created_at.desc(), runs.c.id.desc())
    with connections.reading() as sql:
        return {
            actor: sql.execute(order.where(runs.c.org_id == actor.org_id)).mappings().all()
            for actor in actors
        }


Fits = Callable[[RowMapping, RowMapping], bool]
#: Name → the filters that a run of an org gives, and whether a row fits them.
FILTERS: dict[str, tuple[Callable[[RowMapping], Mapping[str, Any]], Fits]] = {
    "thread": (
        lambda run: {"thread_id": run["thread_id"], "metadata": {"all": "yes"}, "route_id": "b"},
        lambda row, run: row["thread_id"] == run["thread_id"] and row["route_id"] == "b",
    ),
    "end user": (
        lambda _: {"end_user_id": "user 7", "status": "completed"},
        lambda row, _: row["end_user_id"] == "user 7",
    ),
    "error": (
        lambda _: {"error_code": "run.timeout", "api_key_id": KEY},
        lambda row, _: row["error_code"] == "run.timeout" and row["api_key_id"] == KEY,
    ),
    "cost": (
        lambda run: {"min_cost_usd": run["cost_usd"], "route_id": "b"},
        lambda row, run: row["cost_usd"] >= run["cost_usd"] and row["route_id"] == "b",
    ),
    "duration": (
        lambda _: {"min_duration_ms": 10_000_000},
        lambda row, _: (
            row["ended_at"] is not None
            and row["ended_at"] - row["created_at"] >= timedelta(seconds=10_000)
        ),
    ),
    "end user in another thread": (
        lambda run: {"thread_id": run["thread_id"], "end_user_id": "nobody"},
        lambda row, _: False,
    ),
    "old persona": (
        lambda _: {"persona_id": "old@1"},
        lambda row, _: row["persona_id"] == "old@1",
    ),
    "persona, whatever the version": (
        lambda _: {"persona_key": "old", "status": "completed"},
        lambda row, _: row["persona_id"].startswith("old@"),
    ),
    "rare pair": (
        lambda _: {"metadata": {"all": "yes", "rare": "7"}, "status": "completed"},
        lambda row, _: row["metadata"]["rare"] == "7",
    ),
    "pairs that are never together": (
        lambda _: {"metadata": {"half": "0", "other": "1"}},
        lambda row, _: False,
    ),
    "times": (
        lambda run: {"created_after": run["created_at"], "metadata": {"half": "1"}},
        lambda row, run: row["created_at"] >= run["created_at"] and row["metadata"]["half"] == "1",
    ),
    "until": (
        lambda run: {"created_before": run["created_at"], "route_id": "a"},
        lambda row, run: row["created_at"] < run["created_at"] and row["route_id"] == "a",
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_lets_exactly_its_rows_through(
    connections: Connections, rows: Mapping[Actor, Sequence[RowMapping]], name: str
) -> None:
    """All pages together have the rows that fit, in the order of the list, of this org alone."""
    given, fits = FILTERS[name]
    for actor, every in rows.items():
        run = one_run(connections, actor, "position > 200")
        expected = [row["id"] for row in every if fits(row, run)]

        assert expected == listed(connections, actor, given(run))


BY_PAIR = "ix_run_metadata_visible_to_pair_created_at_id"


@pytest.mark.parametrize(
    ("filters", "indexes"),
    [
        ({"metadata": {"rare": "7"}}, {BY_PAIR, "pk_runs"}),
        ({"metadata": {"all": "yes"}}, {BY_PAIR, "pk_runs"}),
        ({"metadata": {"none": "such"}}, {BY_PAIR, "pk_runs"}),
        ({"end_user_id": "user 7"}, {"ix_runs_visible_to_end_user_id_created_at_id", "pk_runs"}),
        ({"error_code": "x.y"}, {"ix_runs_visible_to_error_code_created_at_id", "pk_runs"}),
        (
            {"created_after": datetime(2026, 1, 1), "status": "failed"},
            {"ix_runs_visible_to_state_created_at_id", "pk_runs"},
        ),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_filter_has_its_index(
    connections: Connections,
    actors: tuple[Actor, Actor],
    filters: Mapping[str, Any],
    indexes: set[str],
    deep: bool,
) -> None:
    """The rows of the page alone are read, in its order, whatever the value."""
    before = (datetime(2026, 1, 1), new_id()) if deep else None

    [page] = sent(
        connections,
        lambda sql: queries.list_of_org(sql, actors[0], limit=51, before=before, filters=filters),
    )

    Plans(connections, page).check({*indexes, "ix_runs_waiting_thread_id_position"})


@pytest.mark.parametrize(
    ("filters", "walked"),
    [
        (
            {"persona_key": "none", "error_code": "run.timeout"},
            {"ix_runs_visible_to_error_code_created_at_id", "pk_runs"},
        ),
        (
            {"metadata": {"all": "yes", "half": "0", "rare": "1", "other": "0"}},
            {BY_PAIR, "pk_runs"},
        ),
        ({"metadata": {"rare": "7"}, "end_user_id": "user 8"}, {BY_PAIR, "pk_runs"}),
    ],
)
def test_several_filters_look_at_a_bounded_number_of_rows(
    connections: Connections,
    actors: tuple[Actor, Actor],
    filters: Mapping[str, Any],
    walked: set[str],
) -> None:
    """The end of the walk comes from the index, and no table is read from end to end."""
    *ends, page = sent(
        connections,
        lambda sql: queries.list_of_org(sql, actors[0], limit=51, before=None, filters=filters),
    )

    assert ends
    for end in ends:
        assert walked == Plans(connections, end).indexes()
    Plans(connections, page).indexes()


def test_a_short_page_says_where_the_list_goes_on(
    connections: Connections,
    actors: tuple[Actor, Actor],
    rows: Mapping[Actor, Sequence[RowMapping]],
) -> None:
    """Nothing fits among the newest rows: the page is empty, and its cursor leads to the rest."""
    filters = {"persona_id": "old@1"}
    with connections.reading() as sql:
        page = queries.list_of_org(sql, actors[0], limit=51, before=None, filters=filters)

    last = rows[actors[0]][WALKED - 1]
    assert [] == page.rows
    assert page.end == (last["created_at"], last["id"])


def test_threads_are_filtered(connections: Connections, actors: tuple[Actor, Actor]) -> None:
    """Metadata and end users filter the threads of one org, in one page each."""
    for actor in actors:
        with connections.reading() as sql:
            every = threads.list_(sql, actor, limit=THREADS, before=None).rows
            for filters in (
                {"metadata": {"all": "yes", "rare": "7"}},
                {"end_user_id": "user 7"},
                {"end_user_id": "user 7", "metadata": {"rare": "7"}},
            ):
                page = threads.list_(sql, actor, limit=100, before=None, filters=filters)

                assert None is page.end
                assert [row.id for row in every if row.end_user_id == "user 7"] == [
                    row.id for row in page.rows
                ]


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"metadata": {"rare": "7"}}, "ix_thread_metadata_visible_to_pair_created_at_id"),
        ({"metadata": {"all": "yes"}}, "ix_thread_metadata_visible_to_pair_created_at_id"),
        ({"end_user_id": "user 7"}, "ix_threads_visible_to_end_user_id_created_at_id"),
        ({"external_id": "none"}, "uq_threads_visible_to_external_id"),
    ],
)
def test_a_filter_of_threads_has_its_index(
    connections: Connections, actors: tuple[Actor, Actor], filters: Mapping[str, Any], index: str
) -> None:
    """The threads of the page alone are read, or the few that a rare value has."""
    [page] = sent(
        connections,
        lambda sql: threads.list_(sql, actors[0], limit=51, before=None, filters=filters),
    )

    Plans(connections, page).check(
        {index, "pk_threads", "uq_runs_unended_thread_id"},
        few={index, "pk_threads"} if "all" not in filters.get("metadata", {}) else set(),
    )


@pytest.mark.parametrize("deep", [False, True])
def test_the_lists_of_an_end_user_have_their_indexes(
    connections: Connections, actors: tuple[Actor, Actor], deep: bool
) -> None:
    """A client token reads the rows of its end user, however many the org has."""
    end_user = replace(actors[0], end_user_id="user 7")
    before = (datetime(2026, 1, 1), new_id()) if deep else None
    of_runs = "ix_runs_visible_to_end_user_id_created_at_id"
    of_threads = "ix_threads_visible_to_end_user_id_created_at_id"
    # Whether a run's thread is theirs is looked up for each run, or in all threads of the end user.
    few = {"pk_runs", "pk_threads", "uq_runs_unended_thread_id", of_threads}
    few.add("ix_runs_waiting_thread_id_position")
    for list_, index in ((queries.list_of_org, of_runs), (threads.list_, of_threads)):
        with noted(connections) as statements, connections.reading() as sql:
            list_(sql, end_user, limit=51, before=before)
        assert statements
        for statement in statements:
            found = Plans(connections, statement).indexes()
            assert index in found <= few | {index}, statement


def test_pairs_follow_their_object(
    connections: Connections, alice: User, stored: StoredRuns
) -> None:
    """A change of metadata, of who sees it, and the deletion: the filter finds what is there."""
    bob = Actor(org_id=alice.org_id, user_id=new_id(), role="member", permissions=frozenset())
    thread_id, path = alice.thread(metadata={"a": "1"}), ""
    path = f"/v1/threads/{thread_id}"
    stored.create(UUID(thread_id), metadata={"a": "1"})

    def found(value: str) -> tuple[int, int, int, int]:
        counts = []
        with connections.reading() as sql:
            for actor in (stored.actor, bob):
                for list_ in (threads.list_, queries.list_of_org):
                    filters = {"metadata": {"a": value}}
                    page = list_(sql, actor, limit=10, before=None, filters=filters)
                    counts.append(len(page.rows))
        return tuple(counts)  # type: ignore[return-value]  # four of them

    looks = [found("1")]
    alice.patch(path, {"is_private": True})
    looks.append(found("1"))
    alice.patch(path, {"metadata": {"a": "2"}})
    looks += [found("1"), found("2")]
    with connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM runs WHERE thread_id = :id"), {"id": thread_id})
    looks.append(found("1"))

    assert [(1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 0)] == looks
    with connections.reading() as sql:
        left = "SELECT count(*) FROM run_metadata WHERE id NOT IN (SELECT id FROM runs)"
        assert 0 == sql.scalar(text(left))
