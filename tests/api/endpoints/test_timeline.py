"""`/v1/threads/{id}/timeline`: pages, what is left of old runs, and who sees it."""

import json
import re
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, text, update

from arkloop.shared.events.types import (
    MessageCompleted,
    MessageDelta,
    RunError,
    RunSteered,
    RunWaitingForInput,
    ToolCallRequested,
    ToolResult,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import offered_messages, timeline
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.pages import PAGE_BYTES
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages
from tests.clients import Register, User, details_of, error_of
from tests.stored_runs import StoredRuns

Shown = dict[str, Any]


def pages(user: User, thread: str, query: str) -> list[list[Shown]]:
    """Return all pages of the timeline, the newest first."""
    path = f"/v1/threads/{thread}/timeline?{query}"
    found: list[list[Shown]] = []
    while True:
        response = user.get(path)
        assert 200 == response.status_code, response.text
        found.append(list(response.json or []))
        if (cursor := response.headers.get("X-Next-Cursor")) is None:
            return found
        path = f"/v1/threads/{thread}/timeline?{query}&before={cursor}"


def whole(user: User, thread: str, query: str = "") -> list[Shown]:
    return [entry for page in reversed(pages(user, thread, query)) for entry in page]


def turn(number: int, said: str, output: str | None = None) -> list[Any]:
    """Build the events of a turn, with a call if it has an `output`."""
    said_it = MessageCompleted(str(UUID(int=number)), said, Usage())
    if output is None:
        return [said_it]
    id_ = f"call_{number}"
    result = ToolResult(id_, "look", output, False, 1)
    return [said_it, ToolCallRequested(id_, "look", {"n": number}), result]


def answered(alice: User, stored: StoredRuns, thread: str, *happened: Any) -> UUID:
    """Let a message be answered by a run with these events; returns the run."""
    alice.say(thread, "Hello")
    claim = stored.held(stored.create(UUID(thread)))
    stored.write(claim, *happened)
    assert stored.finish(claim, message=(new_id(), "the answer"))
    return claim.run_id


def test_a_run_is_shown_after_its_message(alice: User, stored: StoredRuns) -> None:
    """It has every field of the contract."""
    thread = alice.thread()
    run_id = answered(alice, stored, thread, MessageDelta("the "), *turn(1, "the answer"))

    message, run = whole(alice, thread)

    [said, answer] = alice.get(f"/v1/threads/{thread}/messages").json or []
    assert {"type": "message", **said} == message
    in_full = alice.get(f"/v1/runs/{run_id}").json or {}
    same = (
        "status",
        "phase",
        "queue",
        "persona_id",
        "route_id",
        "model",
        "created_by_user_id",
        "end_user_id",
        "metadata",
        "pending_input",
    )
    same += ("message_id", "stop_reason", "error", "usage", "cost_usd", "created_at", "started_at")
    expected = {
        "type": "run",
        "run_id": str(run_id),
        "seq": in_full["last_seq"],
        "superseded_by": None,
        "first_turn": 0,
        "turns": [
            {
                "message_id": str(UUID(int=1)),
                "reasoning": "",
                "text": "the answer",
                "tool_calls": [],
                "questions": [],
                "usage": {
                    **dict.fromkeys(("input_tokens", "output_tokens", "cache_read_tokens"), 0),
                    "source": "reported",
                },
            }
        ],
        "ended_at": in_full["completed_at"],
        **{name: in_full[name] for name in same},
    }
    assert expected == run
    assert answer["id"] == run["message_id"]


def test_a_run_that_has_not_started_is_there(alice: User, stored: StoredRuns) -> None:
    """A queued run comes after its message, without turns; what is to be read begins with 1."""
    thread = alice.thread()
    alice.say(thread)
    stored.create(UUID(thread))

    _, run = whole(alice, thread)

    assert ("queued", 0, []) == (run["phase"], run["seq"], run["turns"])


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_what_waits_for_its_thread_is_at_the_end(
    alice: User, stored: StoredRuns, limit: int
) -> None:
    """Messages and runs in the order in which they will be answered, until they are withdrawn; the
    thread's stream continues with the run before them.
    """
    thread = alice.thread()
    alice.say(thread, "one")
    claim = stored.held(stored.create(UUID(thread)))
    waiting = []
    for said in ("two", "three", "four"):
        body = {"message": said, "on_busy": "enqueue"}
        waiting.append((alice.post(f"/v1/threads/{thread}/runs", body).json or {})["run_id"])
    alice.say(thread, "by the way")
    assert 200 == alice.post(f"/v1/runs/{waiting[1]}:cancel").status_code

    entries = whole(alice, thread, f"limit={limit}")
    first = alice.get(f"/v1/threads/{thread}/timeline?limit={limit}")

    shown = [entry.get("content") or entry["run_id"] for entry in entries]
    active = str(claim.run_id)
    assert ["one", active, "by the way", "two", waiting[0], "four", waiting[2]] == shown
    assert [None, 1, 2] == [(e["queue"] or {}).get("position") for e in entries if "queue" in e]
    assert ["queued", "queued"] == [e["phase"] for e in entries if e.get("queue")]
    assert f"{active}:1" == first.headers["X-Stream-Cursor"]
    assert stored.finish(claim, with_followers=True)
    moved = whole(alice, thread, f"limit={limit}")
    assert shown == [entry.get("content") or entry["run_id"] for entry in moved]


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_a_message_for_the_active_run_is_shown(
    alice: User, stored: StoredRuns, connections: Connections, limit: int
) -> None:
    """It stands behind the run until that has ended, whether it was delivered or not."""
    thread = alice.thread()
    alice.say(thread, "one")
    claim = stored.held(stored.create(UUID(thread)))

    def send(said: str, on_busy: str) -> Shown:
        body = {"message": said, "on_busy": on_busy}
        return alice.post(f"/v1/threads/{thread}/runs", body).json or {}

    def shown() -> list[str]:
        entries = whole(alice, thread, f"limit={limit}")
        return [entry.get("content") or entry["run_id"] for entry in entries]

    delivered = UUID(send("two", "steer")["steer"]["message_id"])
    waiting = send("three", "enqueue")["run_id"]
    left = send("four", "steer")["steer"]["fallback_run_id"]
    active = str(claim.run_id)
    expected = ["one", active, "two", "three", waiting, "four"]
    assert expected == shown()
    stored.write(claim, RunSteered(str(delivered), "two"))
    with connections.transaction() as tx:
        offered_messages.settle(tx, claim, [delivered])
    assert expected == shown()
    transcript = alice.get(f"/v1/threads/{thread}/timeline?render=text").text
    assert ["one", "two", "three", "four"] == re.findall("User:\n    (.+)", transcript)

    assert stored.finish(claim, with_followers=True)
    assert ["one", "two", active, "three", waiting, "four", left] == shown()


def test_the_stream_continues_with_the_last_run(alice: User, stored: StoredRuns) -> None:
    """Its cursor is on the first page, whether the run is or not; none before the first run."""
    thread = alice.thread()
    path = f"/v1/threads/{thread}/timeline"
    assert "X-Stream-Cursor" not in alice.get(path).headers
    run_id = answered(alice, stored, thread, *turn(1, "x"))
    alice.say(thread)

    pages = [alice.get(path), alice.get(f"{path}?limit=1"), alice.get(f"{path}?render=text")]

    assert [f"{run_id}:3"] * 3 == [page.headers["X-Stream-Cursor"] for page in pages]
    older = alice.get(f"{path}?limit=1&before={pages[1].headers['X-Next-Cursor']}")
    assert "X-Stream-Cursor" not in older.headers


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_pages_are_parts_of_the_whole(alice: User, stored: StoredRuns, limit: int) -> None:
    """Messages and runs together, in the order of the conversation, none twice."""
    thread = alice.thread()
    ids = [str(answered(alice, stored, thread, *turn(i, f"answer {i}"))) for i in range(3)]
    alice.say(thread, "one more")

    found = pages(alice, thread, f"limit={limit}")

    entries = [entry for page in reversed(found) for entry in page]
    assert ["message", "run"] * 3 + ["message"] == [entry["type"] for entry in entries]
    assert ids == [entry["run_id"] for entry in entries if entry["type"] == "run"]
    assert -(-7 // limit) == len(found)
    assert {limit} | {len(found[-1])} >= {len(page) for page in found}


def test_a_retry_is_named_by_the_runs_that_it_replaces(alice: User, stored: StoredRuns) -> None:
    """All runs of the round: a failed one, the one after it, and the first retry by the second."""
    thread = alice.thread()
    alice.say(thread)
    failed = stored.held(stored.create(UUID(thread)))
    stored.finish(failed, RunState.FAILED, error=RunError("run.timeout", "Too slow.", True))
    second = answered(alice, stored, thread, *turn(1, "x"))
    retries = []
    for number in (2, 3):
        claim = stored.held(UUID((alice.post(f"/v1/threads/{thread}:retry").json or {})["run_id"]))
        stored.write(claim, *turn(number, "y"))
        stored.finish(claim, message=(new_id(), "y"))
        retries.append(str(claim.run_id))

    entries = [entry for entry in whole(alice, thread) if entry["type"] == "run"]
    shown = {entry["run_id"]: entry["superseded_by"] for entry in entries}
    assert {
        str(failed.run_id): None,  # of an earlier round
        str(second): retries[0],
        retries[0]: retries[1],
        retries[1]: None,
    } == shown


def test_answers_of_forgotten_runs_are_messages(
    alice: User, stored: StoredRuns, connections: Connections
) -> None:
    """What retention has left is shown: what was said, but for what a retry has replaced."""
    thread = alice.thread()
    run_ids = [answered(alice, stored, thread, *turn(i, "gone")) for i in range(2)]
    with connections.transaction() as tx:
        of_run = messages.c.run_id == run_ids[0]
        tx.sql.execute(update(messages).where(of_run).values(superseded_at=func.now()))
        tx.sql.execute(delete(runs).where(runs.c.id.in_(run_ids)))

    entries = whole(alice, thread)

    assert ["user", "user", "assistant"] == [entry["role"] for entry in entries]
    assert "the answer" == entries[-1]["content"]


def test_a_large_run_is_on_several_pages(alice: User, stored: StoredRuns) -> None:
    """Its last turns come first; joined, the parts of a run are the run, and nothing is twice."""
    thread = alice.thread()
    long = [event for i in range(5) for event in turn(i, f"turn {i}", "é" * 60_000)]
    answered(alice, stored, thread, *turn(9, "before"))
    run_id = answered(alice, stored, thread, *long)
    answered(alice, stored, thread, *turn(10, "after"))

    found = pages(alice, thread, "limit=5")

    entries = [entry for page in reversed(found) for entry in page]
    parts = [entry for entry in entries if entry.get("run_id") == str(run_id)]
    assert [0, 1, 3] == [part["first_turn"] for part in parts]
    texts = [turn["text"] for part in parts for turn in part["turns"]]
    assert [f"turn {i}" for i in range(5)] == texts
    kinds = ["message", "run", "message", "run", "run", "run", "message", "run"]
    assert kinds == [entry["type"] for entry in entries]
    assert PAGE_BYTES > max(len(json.dumps(page)) for page in found)


def test_a_long_conversation_ends_a_page_early(alice: User) -> None:
    """Messages of together more than 1 MiB are on several pages."""
    thread = alice.thread()
    for number in range(6):
        alice.say(thread, f"{number}" + "x" * 260_000)

    found = pages(alice, thread, "limit=50")

    assert [4, 2] == [len(page) for page in found]


def test_a_run_of_many_events_is_read_in_parts(
    alice: User, stored: StoredRuns, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts contain all of the reasoning and of an unfinished text, whatever their size."""
    thread = alice.thread()
    first = answered(alice, stored, thread, *turn(1, "first"))
    alice.say(thread)
    claim = stored.held(stored.create(UUID(thread)))
    with connections.transaction() as tx:
        tx.sql.execute(
            text(
                "INSERT INTO run_events (run_id, seq, type, payload)"
                " SELECT :run_id, i, 'message.' || kind, jsonb_build_object('seq', i, 'type',"
                " 'message.' || kind, 'data', jsonb_build_object('content', i || ' '))::text"
                " FROM generate_series(2, 5000) AS i,"
                " LATERAL (SELECT CASE WHEN i < 4000 THEN 'thinking' ELSE 'delta' END) AS of (kind)"
            ),
            {"run_id": claim.run_id},
        )
    entries = whole(alice, thread)
    monkeypatch.setattr(timeline, "READ_EVENTS", 700)
    monkeypatch.setattr(timeline, "READ_BYTES", 10_000)

    again = whole(alice, thread)

    assert entries == again
    assert [str(first), str(claim.run_id)] == [e["run_id"] for e in entries if e["type"] == "run"]
    [of_run] = entries[-1]["turns"]
    assert "".join(f"{i} " for i in range(2, 4000)) == of_run["reasoning"]
    assert "".join(f"{i} " for i in range(4000, 5001)) == of_run["text"]
    assert 5000 == entries[-1]["seq"]


def test_a_transcript(alice: User, stored: StoredRuns) -> None:
    """It is plain text with authors, calls, results and questions; replaced runs are left out."""
    thread = alice.thread()
    answered(alice, stored, thread, *turn(1, "replaced"))
    retry = UUID((alice.post(f"/v1/threads/{thread}:retry").json or {})["run_id"])
    claim = stored.held(retry)
    asked = RunWaitingForInput(
        request_id=str(new_id()),
        kind="question",
        prompt="Which?",
        options=["a", "b"],
        expires_at="",
    )
    stored.write(claim, *turn(2, "Let me look.", "two\nlines"), asked)
    error = RunError("run.timeout", "Too slow.", retryable=True)
    stored.finish(claim, RunState.FAILED, error=error)

    response = alice.get(f"/v1/threads/{thread}/timeline?render=text")

    assert "text/plain; charset=utf-8" == response.headers["Content-Type"]
    assert (
        "User:\n    Hello\n\n"
        "Assistant:\n    Let me look.\n\n"
        'Call of look:\n    {"n": 2}\n\n'
        "Result of look:\n    two\n    lines\n\n"
        "Question:\n    Which? (a, b)\n\n"
        "[failed: run.timeout: Too slow.]\n"
    ) == response.text
    older = alice.get(f"/v1/threads/{thread}/timeline?render=text&limit=1")
    cursor = older.headers["X-Next-Cursor"]
    rest = alice.get(f"/v1/threads/{thread}/timeline?render=text&limit=9&before={cursor}")
    assert ("User:\n    Hello\n", None) == (rest.text, rest.headers.get("X-Next-Cursor"))


def test_an_empty_thread(alice: User) -> None:
    """An empty list, and an empty text."""
    thread = alice.thread()

    assert [] == whole(alice, thread)
    assert "" == alice.get(f"/v1/threads/{thread}/timeline?render=text").text


def test_who_sees_a_timeline(alice: User, register: Register, stored: StoredRuns) -> None:
    """Everybody who sees the thread does, with the scopes for messages and for runs."""
    thread = alice.thread(is_private=True)
    answered(alice, stored, thread, *turn(1, "x"))
    path = f"/v1/threads/{thread}/timeline"

    assert (404, "threads.not_found") == error_of(register().get(path))
    assert (404, "threads.not_found") == error_of(register(org_of=alice, role="admin").get(path))
    for scope in ("data.threads.read", "data.runs.read"):
        assert (403, "auth.forbidden") == error_of(alice.api_key(scope).get(path))
    assert 200 == alice.api_key("data.threads.read", "data.runs.read").get(path).status_code
    assert 204 == alice.delete(f"/v1/threads/{thread}").status_code
    assert (404, "threads.not_found") == error_of(alice.get(path))


@pytest.mark.parametrize("query", ["render=html", "limit=0", "before=x", "after=1"])
def test_bad_parameters_are_named(alice: User, query: str) -> None:
    """Each is refused by its name."""
    response = alice.get(f"/v1/threads/{alice.thread()}/timeline?{query}")

    assert [query.partition("=")[0]] == list(details_of(response))
