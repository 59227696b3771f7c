"""`X-Stream-Cursor` of a timeline: where the stream of the thread continues what the page has."""

from typing import Any
from uuid import UUID

from sqlalchemy import event

from tests.clients import User
from tests.stored_runs import StoredRuns


def test_a_run_that_begins_while_the_timeline_is_read_is_on_the_page(
    alice: User, stored: StoredRuns
) -> None:
    """The cursor is never that of a run which neither the page nor its stream shows."""
    thread = alice.thread()
    alice.say(thread, "Hello")
    begun: list[UUID] = []

    def begin(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not begun and "WITH waiting AS" in statement:  # the places of the page are read
            begun.append(stored.create(UUID(thread)))

    engine = stored.connections.engine
    event.listen(engine, "after_cursor_execute", begin)
    try:
        response = alice.get(f"/v1/threads/{thread}/timeline")
    finally:
        event.remove(engine, "after_cursor_execute", begin)

    [run_id] = begun
    assert f"{run_id}:0" == response.headers["X-Stream-Cursor"]
    assert str(run_id) == (response.json or [])[-1].get("run_id")
