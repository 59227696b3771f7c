"""Messages of a chat that were sent by another protocol, and those of long runs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, event

from arkloop.api.protocols import call_ids, projection
from arkloop.api.protocols.ai_sdk_dialects import Dialect
from arkloop.api.protocols.ai_sdk_messages import assistant_message
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from tests.api.protocols import ui_chats
from tests.api.protocols.recorded_runs import NAMES, RUN_ID, events_of
from tests.api.protocols.said import with_earlier_lines
from tests.api.protocols.ui_chats import shown
from tests.clients import User
from tests.stored_runs import StoredRuns


def test_a_message_is_shown_without_the_lines_that_the_server_put_there(
    alice: User, stored: StoredRuns
) -> None:
    """They are for the model; lines that the author has written are shown."""
    thread = alice.post("/v1/threads", {"external_id": "chat-7"}).json or {}
    with_earlier_lines(alice, stored, thread["id"])

    said = [one["parts"] for one in shown(alice, "chat-7") if one["role"] == "user"]

    assert ["Hi!", "Hm?"] == [parts[-1]["text"] for parts in said[1:]]
    assert [1, 1, 2] == [len(parts) for parts in said]
    assert said[0][0]["text"].endswith("\n\nI am Ann.")
    assert "User: Hm." in said[0][0]["text"]


def chat_of(alice: User, stored: StoredRuns, *texts: str) -> str:
    """Return a chat with a run for each of these texts, in as many events as it has letters."""
    chat = ui_chats.new_id()
    for text in texts:
        run_id = UUID(ui_chats.run_of(ui_chats.post(alice, ui_chats.message(), chat=chat)))
        claim = stored.held(run_id)
        stored.write(claim, *map(MessageDelta, text))
        stored.finish(claim, with_followers=True)
    return chat


def texts_of(alice: User, chat: str) -> list[str]:
    answers = [one["parts"] for one in shown(alice, chat) if one["role"] == "assistant"]
    return ["".join(part.get("text", "") for part in parts) for parts in answers]


@contextmanager
def lent(connections: Connections) -> Iterator[list[list[int]]]:
    """Record each connection that is lent, as the events that it is to read at most: for each of
    its statements.
    """
    loans: list[list[int]] = []

    def lend(*_: Any) -> None:
        loans.append([])

    def note(*details: Any) -> None:
        if "run_events.seq >" in details[2]:
            loans[-1].append(details[3]["param_1"])

    event.listen(connections.engine, "checkout", lend)
    event.listen(connections.engine, "before_cursor_execute", note)
    try:
        yield loans
    finally:
        event.remove(connections.engine, "checkout", lend)
        event.remove(connections.engine, "before_cursor_execute", note)


def test_runs_are_folded_without_a_connection(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of long runs would keep it from the other requests of the process for seconds."""
    monkeypatch.setattr(projection, "_PAGE_EVENTS", 2)
    texts = ["abc", "de", "fghij"]
    chat = chat_of(alice, stored, *texts)
    while_folding = ui_chats.lent_while_folding(monkeypatch, stored.connections)

    with lent(stored.connections) as loans:
        assert texts == texts_of(alice, chat)

    assert {0} == set(while_folding)
    read = [loan for loan in loans if loan]
    assert len(read) > len(texts)
    # What one statement has not read is left to the next ones of the loan.
    assert {2} == {loan[0] for loan in read}
    assert {(2,), (2, 1)} == set(map(tuple, read))


def test_short_runs_are_read_with_one_connection(alice: User, stored: StoredRuns) -> None:
    """Each loan can be refused while the pool is overloaded, and with it the whole page."""
    chat = chat_of(alice, stored, "abc", "de", "f")
    [_, second, _] = [UUID(one["id"]) for one in shown(alice, chat) if one["role"] == "assistant"]
    with stored.connections.transaction() as tx:  # a run without events is left out
        tx.sql.execute(delete(run_events).where(run_events.c.run_id == second))

    with lent(stored.connections) as loans:
        assert ["abc", "f"] == texts_of(alice, chat)

    assert [3] == [len(loan) for loan in loans if loan]


@pytest.mark.parametrize("version", ["5.0.0", "6.0.0", "7.0.0", "7.0.70"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_lost_an_event_is_shown(name: str, version: str) -> None:
    """All messages of its chat could not be loaded otherwise; parts of other calls stay."""
    dialect = Dialect.of(version)
    assert dialect is not None
    recorded = events_of(name)
    events = [StoredEvent(one["seq"], one["type"], json.dumps(one)) for one in recorded]
    whole = assistant_message(RUN_ID, events, dialect)["parts"]
    for lost in recorded:
        left = [one for one in events if one.seq != lost["seq"]]
        parts = assistant_message(RUN_ID, left, dialect)["parts"]
        if lost["type"] == "tool.call":
            call_id = call_ids.shown(RUN_ID, lost["data"]["tool_call_id"])
            assert all(part in parts for part in whole if part.get("toolCallId") != call_id)
