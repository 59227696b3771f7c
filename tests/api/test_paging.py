"""Lists page by page: bounds, cursors, a walk that misses and repeats nothing."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from shared.connections import Connections
from tests.clients import User, details_of, error_of

MakeThreads = Callable[[User, int], list[str]]


@pytest.fixture
def make_threads(connections: Connections) -> MakeThreads:
    """Call it for ids of so many threads, newest first; many share a millisecond or all of it."""

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


def walk(user: User, path: str) -> list[list[str]]:
    """The ids of each page, until there is no next one."""
    pages = []
    while True:
        response = user.get(path)
        assert response.json is not None
        pages.append([row["id"] for row in response.json])
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
    """Also rows of one microsecond, and where the last page is full."""
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
    """Of another org, another path, another thread."""
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
    """How much is on a page is the client's to change."""
    ids = make_threads(alice, 5)
    cursor = alice.get("/v1/threads?limit=1").headers["X-Next-Cursor"]

    assert [ids[1:]] == walk(alice, f"/v1/threads?limit=100&before={cursor}")
