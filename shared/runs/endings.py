"""The ends of runs as their workers write them: many in one statement, each by its fence.

Status, terminal event, usage, charge and the thread's message of a run are stored together or not
at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select

from shared import fault_points, ids
from shared.billing import budgets
from shared.billing.credits import credits_of
from shared.claim import Claim
from shared.events import event_log, types
from shared.events.types import TOKEN_FIELDS, RunError, StoredEvent
from shared.runs.states import RunState
from shared.runs.transitions import Totals, keep_usage, usage_columns
from shared.storage.arrays import TextArray
from shared.storage.connections import Transaction
from shared.storage.tables.runs import runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the run of a claim ends.

    `stored` are the events not stored yet, of which the last is the terminal one. `message` is
    (id, content) of what the thread keeps; it is partial unless the run has completed.
    `stop_reason` is that of a completed run, `error` that of a failed one. `is_held`: the run may
    have reserved money, so that it ends by `end_held`.
    """

    claim: Claim
    state: RunState
    stored: Sequence[StoredEvent]
    totals: Totals
    message: tuple[UUID, str] | None = None
    stop_reason: str | None = None
    error: RunError | None = None
    is_held: bool = False
    #: The run's events were looked for since Postgres was restarted or failed over.
    is_verified: bool = False

    @property
    def size(self) -> int:
        """Characters, about."""
        said = len(self.message[1]) if self.message else 0
        return said + sum(len(event.payload) for event in self.stored)


class Outcome(Enum):
    """What became of an ending; nothing was stored unless it is `ENDED`."""

    ENDED = "ended"
    CANCELLED = "cancelled"  # the run is being cancelled, which is another end
    LOST = "lost"  # the claim is over
    LOCKED = "locked"  # somebody has locked the row for a moment: try again
    MOVED = "moved"  # Postgres was restarted or failed over, and has the run's events: try again


# Rows are locked in the order of their ids. One that somebody else has locked must not hold up
# the ends of the others. Events that are there already were stored by a try whose answer got lost.
_END = """
WITH ending AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(fences)s::bigint[], %(states)s::text[],
        %(stop_reasons)s::text[], %(error_codes)s::text[], %(error_messages)s::text[],
        %(error_retryables)s::boolean[],
        %(input_tokens)s::bigint[], %(output_tokens)s::bigint[], %(cache_read_tokens)s::bigint[],
        %(cache_write_tokens)s::bigint[], %(reasoning_tokens)s::bigint[],
        %(usage_sources)s::text[], %(costs)s::numeric[],
        %(message_ids)s::uuid[], %(contents)s::text[], %(entry_ids)s::uuid[], %(charges)s::bigint[],
        %(servers)s::timestamptz[]
    ) AS e (id, fence, state, stop_reason, error_code, error_message, error_retryable, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
            usage_source, cost_usd, message_id, content, entry_id, charge, server)
), held AS (
    SELECT r.id FROM runs r JOIN ending e ON e.id = r.id
    WHERE r.fence = e.fence AND r.state = 'executing'
        AND (r.cancel_requested_at IS NULL OR e.state = 'cancelled')
        AND (e.server IS NULL OR e.server = pg_postmaster_start_time())
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
), ended AS (
    UPDATE runs r SET
        state = e.state,
        ended_at = clock_timestamp(),
        stop_reason = e.stop_reason,
        error_code = e.error_code,
        error_message = e.error_message,
        error_retryable = e.error_retryable,
        input_tokens = e.input_tokens,
        output_tokens = e.output_tokens,
        cache_read_tokens = e.cache_read_tokens,
        cache_write_tokens = e.cache_write_tokens,
        reasoning_tokens = e.reasoning_tokens,
        usage_source = e.usage_source,
        cost_usd = e.cost_usd
    FROM ending e JOIN held ON held.id = e.id
    WHERE r.id = e.id
    RETURNING r.id, r.org_id, r.thread_id, r.position, r.created_by_user_id, r.api_key_id,
        r.persona_id, r.ended_at, e.state, e.message_id, e.content, e.entry_id, e.charge
), written AS (
    INSERT INTO run_events (run_id, seq, type, payload)
    SELECT v.run_id, v.seq, v.type, v.payload
    FROM unnest(%(run_ids)s::uuid[], %(seqs)s::bigint[], %(types)s::text[], %(payloads)s::text[])
         AS v (run_id, seq, type, payload)
    JOIN ended ON ended.id = v.run_id
    ON CONFLICT DO NOTHING
), said AS (
    INSERT INTO messages (id, org_id, thread_id, run_id, position, role, content, partial)
    SELECT message_id, org_id, thread_id, id, position, 'assistant', content, state <> 'completed'
    FROM ended WHERE message_id IS NOT NULL
), used AS (
    INSERT INTO run_usage (run_id, route_id, org_id, user_id, api_key_id, persona_key, model,
        input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
        usage_source, cost_usd, ended_at, month)
    SELECT r.id, u.route_id, r.org_id, r.created_by_user_id, r.api_key_id,
        split_part(r.persona_id, '@', 1), u.model, u.input_tokens, u.output_tokens,
        u.cache_read_tokens, u.cache_write_tokens, u.reasoning_tokens, u.usage_source, u.cost_usd,
        r.ended_at, date_trunc('month', r.ended_at AT TIME ZONE 'UTC')::date
    FROM ended r JOIN unnest(
        %(of_runs)s::uuid[], %(of_route_ids)s::text[], %(of_models)s::text[],
        %(of_input_tokens)s::bigint[], %(of_output_tokens)s::bigint[],
        %(of_cache_read_tokens)s::bigint[], %(of_cache_write_tokens)s::bigint[],
        %(of_reasoning_tokens)s::bigint[], %(of_usage_sources)s::text[], %(of_costs)s::numeric[]
    ) AS u (run_id, route_id, model, input_tokens, output_tokens, cache_read_tokens,
            cache_write_tokens, reasoning_tokens, usage_source, cost_usd) ON u.run_id = r.id
), charged AS (
    INSERT INTO ledger_entries (id, org_id, kind, run_id, debit_account, credit_account, credits)
    SELECT entry_id, org_id, 'usage', id, 'receivable', 'revenue', charge
    FROM ended WHERE charge > 0
)
SELECT id FROM ended
"""


def end(tx: Transaction, endings: Sequence[Ending]) -> list[Outcome]:
    """End the runs, as many as can be, and publish after the commit; the outcome of each.

    What they have used is counted, and charged as owed, in the same statement.
    """
    batch = {ending.claim.run_id: ending.stored for ending in endings}
    rows = tx.sql.exec_driver_sql(_END, {**_columns(endings), **event_log.columns(batch.items())})
    ended = {row.id for row in rows}
    published = {run_id: stored for run_id, stored in batch.items() if run_id in ended}
    if published:
        tx.after_commit.append(lambda: fault_points.reach("worker.ended"))
        tx.after_commit.append(event_log.news(tx.connections, published))
    missing = [ending for ending in endings if ending.claim.run_id not in ended]
    why = _why_not(tx.sql, missing) if missing else {}
    moved = [
        replace(ending, is_verified=True)
        for ending in missing
        if why[ending.claim.run_id] is Outcome.MOVED
    ]
    if moved:
        ids_moved = [ending.claim.run_id for ending in moved]
        why |= dict(zip(ids_moved, end(tx, moved), strict=True))
    return [why.get(ending.claim.run_id, Outcome.ENDED) for ending in endings]


def end_held(tx: Transaction, ending: Ending) -> Outcome:
    """As `end`, for a run that may have reserved money: lets go of it in the same transaction."""
    [outcome] = end(tx, [ending])
    if outcome is Outcome.ENDED:
        run_id, totals = ending.claim.run_id, ending.totals
        keep_usage(tx.sql, run_id, totals)
        budgets.release(
            tx,
            org_id=ending.claim.org_id,
            run_id=run_id,
            cost_usd=totals.cost_usd,
            own_usd=totals.own_usd,
        )
    return outcome


#: Columns of free text, and of what operators and customers named.
_TEXTS = frozenset(
    {"stop_reasons", "error_codes", "error_messages", "contents", "of_route_ids", "of_models"}
)


def _columns(endings: Sequence[Ending]) -> dict[str, Any]:
    totals = [ending.totals.columns() for ending in endings]
    counted = [ending for ending in endings if not ending.is_held]
    used = usage_columns([ending.totals for ending in counted])
    errors = [ending.error for ending in endings]
    messages = [ending.message for ending in endings]
    columns: dict[str, Sequence[Any]] = {
        "ids": [ending.claim.run_id for ending in endings],
        "fences": [ending.claim.fence for ending in endings],
        "states": [ending.state.value for ending in endings],
        "stop_reasons": [ending.stop_reason for ending in endings],
        "error_codes": [error and error.code for error in errors],
        "error_messages": [error and types.clean(error.message) for error in errors],
        "error_retryables": [error and error.retryable for error in errors],
        **{name: [of_run[name] for of_run in totals] for name in TOKEN_FIELDS},
        "usage_sources": [of_run["usage_source"] for of_run in totals],
        "costs": [of_run["cost_usd"] for of_run in totals],
        "message_ids": [message and message[0] for message in messages],
        "contents": [message and types.clean(message[1]) for message in messages],
        "entry_ids": [ids.new_id() for _ in endings],
        "servers": [
            None
            if ending.is_verified or ending.claim.server is None
            # Quoted: it has a space.
            else f'"{ending.claim.server.isoformat()}"'
            for ending in endings
        ],
        "charges": [
            0 if ending.is_held else credits_of(of_run["cost_usd"] - ending.totals.own_usd)
            for ending, of_run in zip(endings, totals, strict=True)
        ],
        "of_runs": [ending.claim.run_id for ending in counted for _ in ending.totals.routes],
        **{f"of_{name}": values for name, values in used.items()},
    }
    return {
        name: TextArray(values) if name in _TEXTS else _array(values)
        for name, values in columns.items()
    }


def _array(values: Sequence[Any]) -> str:
    """In Postgres' own notation."""
    return "{" + ",".join("NULL" if value is None else str(value) for value in values) + "}"


def _why_not(sql: Connection, missing: Sequence[Ending]) -> dict[UUID, Outcome]:
    """Read without a lock: a claim that is over stays so, and so does the wish to cancel."""
    rows = sql.execute(
        select(
            runs.c.id,
            runs.c.fence,
            runs.c.state,
            runs.c.cancel_requested_at,
            func.pg_postmaster_start_time().label("server"),
        ).where(runs.c.id.in_([ending.claim.run_id for ending in missing]))
    )
    found = {row.id: row for row in rows}
    outcomes: dict[UUID, Outcome] = {}
    for ending in missing:
        run_id = ending.claim.run_id
        row = found.get(run_id)
        if row is None or row.fence != ending.claim.fence or row.state != RunState.EXECUTING:
            outcomes[run_id] = Outcome.LOST
        elif row.cancel_requested_at is not None and ending.state != RunState.CANCELLED:
            outcomes[run_id] = Outcome.CANCELLED
        elif not ending.is_verified and ending.claim.server not in (None, row.server):
            is_lost = event_log.is_cut_off(sql, run_id, ending.stored[0].seq)
            outcomes[run_id] = Outcome.LOST if is_lost else Outcome.MOVED
        else:
            outcomes[run_id] = Outcome.LOCKED
    return outcomes
