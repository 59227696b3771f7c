"""Lists page by page: bounds, cursors, a walk that misses and repeats nothing."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import insert, text, update

from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.pages import PAGE_BYTES
from arkloop.shared.storage.tables.catalog import mcp_configs, mcp_tools, personas
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.threads import threads
from tests.clients import User, details_of, error_of

MakeThreads = Callable[[User, int], list[str]]


@pytest.fixture
def make_threads(connections: Connections) -> MakeThreads:
    """Call it for the ids of threads, newest first; many share a millisecond or all of it."""

    def make(user: User, count: int) -> list[str]:
        ids = [user.thread() for _ in range(count)]
        began = datetime(2026, 1, 1, tzinfo=UTC)
        moments = {id_: began + timedelta(microseconds=i // 3) for i, id_ in enumerate(ids)}
        with connections.transaction() as tx:
            for id_, moment in moments.items():
                tx.sql.execute(
                    text("UPDATE threads SET created_at = :moment WHERE id = :id"),
                    {"id": id_, "moment": moment},
                )
        return sorted(ids, key=lambda id_: (moments[id_], id_), reverse=True)

    return make


def walk(user: User, path: str, name: str = "id") -> list[list[str]]:
    """Walk the pages and return the ids of each. A page of several rows has 1 MiB."""
    pages = []
    while True:
        response = user.get(path)
        assert response.json is not None
        pages.append([row[name] for row in response.json])
        assert len(response.data) <= PAGE_BYTES + 1_000 or len(response.json) == 1
        if "Link" not in response.headers:
            assert "X-Next-Cursor" not in response.headers
            return pages
        link = re.fullmatch('<(.*)>; rel="next"', response.headers["Link"])
        assert link
        path = link[1]
        assert f"before={response.headers['X-Next-Cursor']}" in path


@pytest.mark.parametrize(("count", "limit"), [(0, 5), (1, 1), (7, 1), (7, 3), (9, 3), (9, 200)])
def test_a_walk_sees_every_row_once_newest_first(
    alice: User, make_threads: MakeThreads, count: int, limit: int
) -> None:
    """A walk over the pages sees every row once, also rows of one microsecond, and ends after a
    full last page.
    """
    ids = make_threads(alice, count)

    pages = walk(alice, f"/v1/threads?limit={limit}")

    assert ids == [id_ for page in pages for id_ in page]
    assert all(len(page) == limit for page in pages[:-1])


def test_rows_that_come_during_a_walk_do_not_disturb_it(
    alice: User, make_threads: MakeThreads
) -> None:
    """What was there at the beginning is seen once, whatever is added or deleted meanwhile."""
    ids = make_threads(alice, 6)
    first = alice.get("/v1/threads?limit=2")
    new = alice.thread()
    alice.delete(f"/v1/threads/{ids[0]}")
    alice.delete(f"/v1/threads/{ids[1]}")

    rest = walk(alice, f"/v1/threads?limit=2&before={first.headers['X-Next-Cursor']}")

    assert [ids[2:4], ids[4:6]] == rest
    assert new not in str(rest)


def test_50_rows_are_the_default(alice: User, make_threads: MakeThreads) -> None:
    """Without a limit the page has 50 rows, and the next link works as well."""
    make_threads(alice, 52)

    assert [50, 2] == [len(page) for page in walk(alice, "/v1/threads")]


@pytest.mark.parametrize("limit", ["0", "201", "-1", "1.0", "1e1", "%D9%A3", "", "%205", "x"])
def test_a_limit_is_1_to_200(alice: User, limit: str) -> None:
    """Anything else is a 422."""
    assert ["limit"] == list(details_of(alice.get(f"/v1/threads?limit={limit}")))


def test_a_cursor_that_was_changed_is_refused(alice: User, make_threads: MakeThreads) -> None:
    """Cut, extended, with any character flipped, or made up."""
    make_threads(alice, 2)
    cursor = alice.get("/v1/threads?limit=1").headers["X-Next-Cursor"]
    flipped = [
        cursor[:i] + ("A" if cursor[i] != "A" else "B") + cursor[i + 1 :]
        for i in range(len(cursor))
    ]
    assert 200 == alice.get(f"/v1/threads?before={cursor}").status_code
    for bad in (*flipped, cursor[:-1], cursor[1:], cursor + "A", cursor + "=", "", "x", "%00", "é"):
        assert ["before"] == list(details_of(alice.get(f"/v1/threads?before={bad}"))), bad


def test_a_cursor_of_another_list_is_refused(
    alice: User, make_threads: MakeThreads, register: Callable[[], User]
) -> None:
    """A cursor of another org, another path or another thread is refused."""
    bob = register()
    make_threads(alice, 2)
    cursor = alice.get("/v1/threads?limit=1").headers["X-Next-Cursor"]

    assert ["before"] == list(details_of(bob.get(f"/v1/threads?before={cursor}")))
    assert ["before"] == list(details_of(alice.get(f"/v1/api-keys?before={cursor}")))


def test_a_cursor_of_another_filter_is_refused(
    alice: User, make_run: Callable[..., object]
) -> None:
    """A walk keeps its filter from the first page to the last."""
    for _ in range(2):
        make_run(alice, alice.thread())
    path = "/v1/runs?status=running"
    cursor = alice.get(f"{path}&limit=1").headers["X-Next-Cursor"]

    assert 200 == alice.get(f"{path}&before={cursor}").status_code
    assert ["before"] == list(details_of(alice.get(f"/v1/runs?before={cursor}")))
    other = alice.get(f"/v1/runs?status=failed&before={cursor}")
    assert (422, "validation.error") == error_of(other)


def test_a_cursor_goes_on_with_another_limit(alice: User, make_threads: MakeThreads) -> None:
    """The client may change how much is on a page."""
    ids = make_threads(alice, 5)
    cursor = alice.get("/v1/threads?limit=1").headers["X-Next-Cursor"]

    assert [ids[1:]] == walk(alice, f"/v1/threads?limit=100&before={cursor}")


#: Of a quarter of a page, in characters that the response shows as they are, and as six bytes.
LONG, ESCAPED = "a" * (PAGE_BYTES // 4), "\x01" * (PAGE_BYTES // 4)


@pytest.mark.parametrize("content", [LONG, ESCAPED, LONG * 20], ids=["plain", "escaped", "huge"])
def test_a_page_of_long_messages_ends_at_its_bytes(
    alice: User, connections: Connections, content: str
) -> None:
    """A walk still sees each of them once; the huge ones have a page each."""
    thread_id = alice.thread()
    ids = [new_id() for _ in range(9)]
    row = {"org_id": alice.org_id, "thread_id": thread_id, "role": "assistant", "content": content}
    rows = [{**row, "id": id_, "position": place} for place, id_ in enumerate(ids, 1)]
    with connections.transaction() as tx:
        tx.sql.execute(insert(messages), rows)

    pages = walk(alice, f"/v1/threads/{thread_id}/messages?limit=200")

    assert list(map(str, ids)) == [id_ for page in reversed(pages) for id_ in page]
    assert len(pages) == (3 if content is LONG else 9)


def test_only_what_fits_a_page_is_read_from_the_database(
    alice: User, connections: Connections
) -> None:
    """A page reads one row more than fits, or two rows if each is longer than a page."""
    actor = Actor(
        org_id=alice.org_id,
        user_id=alice.id,
        role="owner",
        permissions=PERMISSIONS_OF_ROLE["owner"],
    )
    thread_id = UUID(alice.thread())
    row = {"org_id": alice.org_id, "thread_id": thread_id, "role": "assistant"}
    with connections.transaction() as tx:
        for place, content in enumerate([LONG] * 20 + [LONG * 5] * 3, 1):
            values = {"id": new_id(), "position": place, "content": content}
            tx.sql.execute(insert(messages).values(**row, **values))

        newest = threads.list_messages(tx.sql, actor, thread_id, limit=201, before=None)
        older = threads.list_messages(tx.sql, actor, thread_id, limit=201, before=21)

    assert [23, 22] == [message.position for message in newest]
    assert [20, 19, 18, 17] == [message.position for message in older]


def test_a_page_of_long_questions_ends_at_its_bytes(
    alice: User, connections: Connections, make_run: Callable[..., UUID]
) -> None:
    """Runs that wait show what they ask for, with many options too."""
    ids = [make_run(alice, alice.thread()) for _ in range(6)]
    open_request = {
        "kind": "question",
        "request_id": str(new_id()),
        "expires_at": "2026-11-25T17:01:25.187Z",
    }
    pending: list[dict[str, object]] = [{**open_request, "prompt": LONG}] * 3
    options = ["a"] * (PAGE_BYTES // 8)
    pending += [{**open_request, "prompt": "", "options": options}] * 3
    with connections.transaction() as tx:
        for id_, question in zip(ids, pending, strict=True):
            tx.sql.execute(update(runs).where(runs.c.id == id_).values(pending_input=question))

    pages = walk(alice, "/v1/runs?limit=200", "run_id")

    assert sorted(map(str, ids)) == sorted(id_ for page in pages for id_ in page)
    assert len(pages) > 1


def test_a_page_of_long_personas_ends_at_its_bytes(alice: User, connections: Connections) -> None:
    """None is left out, neither of the org's nor of those that are built in."""
    before = [id_ for page in walk(alice, "/v1/personas") for id_ in page]
    keys = [f"{first}-long" for first in "abcdefghijklmnopqrstuvwxyz"]
    row = {"org_id": alice.org_id, "version": "1", "created_by_user_id": alice.id}
    row["definition"] = {"system_prompt": "\x01" * 65_536, "unknown": LONG}
    with connections.transaction() as tx:
        tx.sql.execute(insert(personas), [{**row, "key": key} for key in keys])

    for query in ("limit=200", "limit=200&newest=true"):
        pages = walk(alice, f"/v1/personas?{query}")

        expected = sorted([*before, *(f"{key}@1" for key in keys)])
        assert expected == [id_ for page in pages for id_ in page]
        assert len(pages) > 1


def test_a_page_of_long_tools_or_commands_ends_at_its_bytes(
    alice: User, connections: Connections
) -> None:
    """An org names its MCP servers itself, and their tools describe themselves."""
    ids = [new_id() for _ in range(9)]
    config = {"org_id": alice.org_id, "transport": "stdio", "command": ["a" * 4_000] * 64}
    tool = {"description": "a" * 16_000, "hash": "0" * 64, "config_id": ids[0]}
    tool["parameters"] = {"enum": ["a"] * 4_000}
    names = [f"tool-{place:03}" for place in range(150)]
    with connections.transaction() as tx:
        rows = [{**config, "id": id_, "name": f"long-{n}"} for n, id_ in enumerate(ids)]
        tx.sql.execute(insert(mcp_configs), rows)
        tx.sql.execute(insert(mcp_tools), [{**tool, "name": name} for name in names])

    configs = walk(alice, "/v1/mcp-configs?limit=200")
    tools = walk(alice, f"/v1/mcp-configs/{ids[0]}/tools?limit=200", "name")

    assert sorted(map(str, ids)) == sorted(id_ for page in configs for id_ in page)
    assert names == [name for page in tools for name in page]
    assert len(configs) > 1
    assert len(tools) > 1
