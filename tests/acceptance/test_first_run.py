"""The thin thread through the whole house: message, run, task, claim, events, stream."""

from uuid import UUID

from arkloop.shared.events import event_log
from tests.caller import Caller, text_of, types
from tests.system import System


def test_a_message_is_answered_and_every_event_of_it_is_stored_and_streamed(
    system: System, user: Caller
) -> None:
    """Create → task → claim → events in Postgres → the same events in the stream → the answer."""
    thread_id = user.thread("Hello there")
    created = user.http.post(f"/v1/threads/{thread_id}/runs")
    run_id = created.json()["run_id"]

    events = user.events(run_id)

    assert 201 == created.status_code
    assert f"/v1/runs/{run_id}" == created.headers["Location"]
    assert {"run_id", "trace_id"} == set(created.json())
    assert "run.started" == events[0]["type"]
    assert list(range(1, len(events) + 1)) == [event["seq"] for event in events]
    assert ["message.completed", "run.cost", "run.completed"] == types(events)[-3:]
    assert "You said: Hello there" == text_of(events)
    with system.connections.reading() as sql:
        stored = event_log.read_table(sql, UUID(run_id), 0)
    assert "".join(_frame(event.seq, event.payload) for event in stored).encode() == user.raw(
        run_id
    ).removeprefix(b": ok\nretry: 1000\n")
    assert "completed" == user.get_run(run_id)["status"]
    assert [
        ("user", "Hello there", False),
        ("assistant", "You said: Hello there", False),
    ] == user.messages(thread_id)


def _frame(seq: int, payload: str) -> str:
    return f"data: {payload}\nid: {seq}\n\n"
