"""The database's rows of runs, compared to the model, and to what they were before."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Column, Connection, select

from arkloop.shared.billing.credits import credits_of
from arkloop.shared.events.event_log import data_of
from arkloop.shared.events.types import TERMINAL_TYPES
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.billing import ledger_entries, run_usage
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import inputs, runs, tool_calls
from arkloop.shared.storage.tables.threads import messages
from tests.shared.runs.life_cycle_model import ModelRun, ModelThread

Rows = dict[UUID, list[Any]]


@dataclass
class Observer:
    """Remembers what must never change."""

    payloads: dict[UUID, list[str]] = field(default_factory=lambda: defaultdict(list))
    fences: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))

    def check(self, sql: Connection, threads: Sequence[ModelThread]) -> None:
        """Check that the database is as the model, in everything that the model knows."""
        of_runs = [run for thread in threads for run in thread.runs]
        ids = [run.id for run in of_runs]
        row_of = _rows(sql, runs.c.id, ids)
        events_of = _rows(sql, run_events.c.run_id, ids)
        inputs_of = _rows(sql, inputs.c.run_id, ids)
        calls_of = _rows(sql, tool_calls.c.run_id, ids)
        used_of = _rows(sql, run_usage.c.run_id, ids)
        charged_of = _rows(sql, ledger_entries.c.run_id, ids)
        said_in = _rows(sql, messages.c.thread_id, [thread.id for thread in threads])
        for run in of_runs:
            self._check_row(run, row_of[run.id][0])
            self._check_events(run, events_of[run.id])
            _check_inputs(run, inputs_of[run.id])
            _check_calls(run, calls_of[run.id])
            _check_money(run, row_of[run.id][0], used_of[run.id], charged_of[run.id])
            _check_message(run, said_in[run.thread.id])
        for thread in threads:
            visible = [row for row in said_in[thread.id] if row.superseded_at is None]
            visible.sort(key=lambda row: row.position)
            assert thread.visible == [row.content for row in visible]

    def _check_row(self, run: ModelRun, row: Any) -> None:
        """Check the state and all that depends on it; the fence never falls."""
        assert run.state == row.state
        assert run.attempts == row.attempt
        assert run.is_cancelling == (row.cancel_requested_at is not None)
        assert run.error == row.error_code
        assert run.state.is_terminal == (row.ended_at is not None)
        waits = run.state == RunState.WAITING
        assert waits == (row.pending_input is not None) == (row.input_expires_at is not None)
        assert row.fence >= self.fences[run.id]
        self.fences[run.id] = row.fence
        if run.state == RunState.EXECUTING:
            assert run.owner is not None and run.owner.id == row.owner
            assert run.holder is None or run.holder.claimed.claim.fence == row.fence
        if run.state.is_terminal:
            if run.has_estimate:
                run.tokens, run.has_estimate = _estimated(run, row), False
            assert run.tokens == row.input_tokens

    def _check_events(self, run: ModelRun, rows: list[Any]) -> None:
        """Check the numbers 1, 2, …: earlier events are unchanged, and the end is there once, as
        the last.
        """
        rows.sort(key=lambda row: row.seq)
        assert list(range(1, len(rows) + 1)) == [row.seq for row in rows]
        payloads = [row.payload for row in rows]
        assert self.payloads[run.id] == payloads[: len(self.payloads[run.id])]
        self.payloads[run.id] = payloads
        assert run.types == [row.type for row in rows]
        if "message.reset" in run.types:
            assert run.open_text == _open_text(rows)
        ends = [row.seq for row in rows if row.type in TERMINAL_TYPES]
        assert ([len(rows)] if run.state.is_terminal else []) == ends


def _estimated(run: ModelRun, row: Any) -> int:
    """Return the tokens with those of the lost call: its prompt has some, if not many."""
    assert run.tokens < row.input_tokens < run.tokens + 10_000
    assert "estimated" == row.usage_source
    return int(row.input_tokens)


def _open_text(rows: list[Any]) -> str:
    """Return what a client shows of the open turn: text from a reset's `from_seq` on is void."""
    shown: dict[int, str] = {}
    for row in rows:
        data = data_of(row.payload)
        if row.type == "message.completed":
            shown.clear()
        elif row.type == "message.reset":
            shown = {seq: text for seq, text in shown.items() if seq < data["from_seq"]}
        elif row.type == "message.delta":
            shown[row.seq] = data["content"]
    return "".join(shown.values())


def _check_inputs(run: ModelRun, rows: list[Any]) -> None:
    """Check that each is read by one claim, whose events say so."""
    expected = {
        (request_id, content, request_id not in run.unread)
        for request_id, content in run.answers.items()
    }
    assert expected == {(row.request_id, row.content, row.consumed_at is not None) for row in rows}
    assert len(run.answers) - len(run.unread) == run.types.count("run.input_received")


def _check_calls(run: ModelRun, rows: list[Any]) -> None:
    expected = {call: run.outputs.get(call) for call in run.begun_by}
    assert expected == {row.tool_call_id: row.output for row in rows}


def _check_message(run: ModelRun, said: list[Any]) -> None:
    """Check what the run left in its thread: nothing, or one message at the run's place."""
    left = [(row.content, row.partial, row.position) for row in said if row.run_id == run.id]
    assert ([(*run.message, run.position)] if run.message else []) == left


def _check_money(run: ModelRun, row: Any, used: list[Any], charged: list[Any]) -> None:
    """Check that it is billed once, with its end; not before, and not without a model call."""
    is_counted = run.state.is_terminal and run.tokens > 0
    assert [(run.tokens, row.cost_usd)] * is_counted == [
        (one.input_tokens, one.cost_usd) for one in used
    ]
    assert [credits_of(row.cost_usd)] * is_counted == [entry.credits for entry in charged]


def _rows(sql: Connection, key: Column[Any], wanted: Sequence[UUID]) -> Rows:
    found: Rows = defaultdict(list)
    for row in sql.execute(select(key.table).where(key.in_(wanted))):
        found[getattr(row, key.name)].append(row)
    return found
