"""Claims of agent workers, with all that an agent needs of its run."""

import json
import logging
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.agents import call_approvals
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import PersonaNotFound
from arkloop.shared.events import event_log, types
from arkloop.shared.events.types import RunError
from arkloop.shared.runs import (
    agent_costs,
    agent_delegation,
    agent_endings,
    agent_queue,
    agent_workers,
    checkpoints,
    claims,
    held_runs,
    overrides,
    sub_runs,
    unbegun_calls,
    whole_results,
)
from arkloop.shared.runs.agent_workers import AgentWorker
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import agent_runs, runs
from arkloop.shared.threads.history_messages import Message, messages_before
from arkloop.shared.times import rfc3339

log = logging.getLogger(__name__)

#: Runs that a worker gets once more in one response.
MAX_OWN = 16
#: What one response has of runs, or a little more; those that are left come with the next one.
MAX_RESPONSE_CHARACTERS = 8 * 1024 * 1024
#: Of a run's own turns, the newest, which are whole. Of long texts and outputs before them
#: agents get so much.
MAX_TURN_BYTES = 8 * 1024 * 1024
MAX_OLD_CHARACTERS = 1024
_MARK = "\n[cut: newer turns of the run have 8 MiB]"
_STARTED_SEQ = 1  # of `run.started`, which the claim has written
_READ_TURNS = statement(__package__, "agent_turns")
_TURN_TYPES = (
    types.MessageCompleted.type,
    types.ToolCallRequested.type,
    types.ToolResult.type,
    types.RunWaitingForInput.type,
    types.RunInputReceived.type,
)


def persona_of(catalog: Catalog, run: RowMapping, sql: Connection) -> Persona:
    """Return the persona of a run, with its overrides; `sql` is the caller's connection.

    Raises:
        PersonaNotFound
    """
    persona = catalog.persona(run["org_id"], run["persona_id"], sql=sql)
    return overrides.apply(persona, run["options"])


def take(
    connections: Connections,
    worker: AgentWorker,
    catalog: Catalog,
    *,
    held: Collection[UUID] | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return the worker's runs that it does not know of, then at most `limit` in all.

    The response that had brought a run of its own was lost. `held` are those that it knows;
    None: only claim queued runs.

    Raises:
        Unavailable: some may have been claimed; the worker gets them with its next request.
    """
    with connections.reading() as sql:
        owned, queued = agent_queue.find(sql, worker.org_id, worker.agent, worker.id, limit)
    taken = [run_id for run_id in owned if held is not None and run_id not in held][:MAX_OWN]
    wanted = queued[: max(0, limit - len(taken))]
    if wanted:
        with connections.statement() as tx:
            agent_workers.renew(tx, worker)
        taken += claims.claim(connections, wanted, worker.id, have_agent=True)
    found: list[dict[str, Any]] = []
    characters = 0
    for run_id in taken:
        one = _hand_over(connections, worker, run_id, catalog)
        if one is None:
            continue
        found.append(one)
        characters += len(json.dumps(one, ensure_ascii=False)) if len(taken) > 1 else 0
        if characters > MAX_RESPONSE_CHARACTERS:
            break
    return found


def _hand_over(
    connections: Connections, worker: AgentWorker, run_id: UUID, catalog: Catalog
) -> dict[str, Any] | None:
    """Return what the agent gets of a claimed run; None if the run is not the worker's any more.

    Text that was streamed and not finished becomes void. A run whose persona cannot be read ends.
    """
    with connections.transaction() as tx:
        run = (
            tx.sql.execute(
                select(*runs.c)
                .where(
                    runs.c.id == run_id,
                    runs.c.owner == worker.id,
                    runs.c.state == RunState.EXECUTING,
                )
                .with_for_update()
            )
            .mappings()
            .one_or_none()
        )
        if run is None:
            return None
        try:
            persona = persona_of(catalog, run, tx.sql)
        except PersonaNotFound as error:
            # Refusing the poll would stop the worker, and leave it the other runs that it claimed.
            _fail(tx, run, error)
            return None
        if lost := event_log.open_events(tx.sql, run_id):
            reset = types.MessageReset(lost[0].seq, "resumed")
            event_log.store(tx, {run_id: event_log.number(tx, run_id, [reset])})
        held = held_runs.of_row(tx, run)
        deadline_at = _deadline(run, persona, held.now)
        _note_deadline(tx, run, persona, deadline_at)
        # Without a reason, too: its worker may have executed it, and not have been able to end it.
        is_continued = bool(run["resume_reason"]) or held.last_seq > _STARTED_SEQ
        if is_continued:
            agent_delegation.write_results(held)
            agent_costs.give_back(held, persona)  # a lost worker may have reserved more
        turns, answers, approvals, cut = _turns(tx.sql, run) if is_continued else ([], [], [], [])
        whole = whole_results.read(tx.sql, run_id, cut) if cut else {}
        open_calls, ledger = _open_calls(turns), unbegun_calls.Ledger(set(), set())
        if approvals or open_calls:
            ledger = unbegun_calls.read(tx.sql, run_id)
        checkpoint = checkpoints.load(tx.sql, run_id) if is_continued else None
        return {
            "run_id": str(run_id),
            "thread_id": str(run["thread_id"]),
            "org_id": str(run["org_id"]),
            "end_user_id": run["end_user_id"],
            "metadata": run["metadata"],
            "trace_id": run["trace_id"],
            "fence": run["fence"],
            "next_seq": held.last_seq + 1,
            "attempt": run["attempt"],
            "cancel_requested": run["cancel_requested_at"] is not None,
            "persona_id": run["persona_id"],
            "instructions": persona.system_prompt,
            "model": run["model"],
            "model_settings": dict(persona.model_settings),
            "output_schema": persona.output_schema,
            "messages": [
                *messages_before(tx.sql, run["thread_id"], run["position"]),
                *_by_turn(turns),
            ],
            "last_turn": _said_last(turns),
            "sub_run_results": [{"tool_call_id": id_, "output": whole.get(id_)} for id_ in cut],
            "answers": answers,
            "approvals": approvals,
            "begun": sorted(ledger.begun),
            "unbegun": sorted(ledger.unbegun & open_calls),
            "checkpoint": None if checkpoint is None else json.loads(checkpoint),
            "deadline_at": rfc3339(deadline_at),
        }


def _fail(tx: Transaction, run: RowMapping, error: PersonaNotFound) -> None:
    """End a run whose persona cannot be read, as the service's own workers do."""
    log.error("run %s: %s", run["id"], error.details["persona_id"][0])
    sub_runs.lock_parents(tx, [run], wait=True)
    held = held_runs.of_row(tx, run)
    if run["cancel_requested_at"] is not None:
        agent_endings.end(held, RunState.CANCELLED)
        return
    message = (
        f"This server does not have persona {run['persona_id']!r}, or its release does not"
        " support it, which a deploy can cause; see the server logs."
    )
    agent_endings.end(held, RunState.FAILED, RunError("worker.crashed", message, True))


def _deadline(run: RowMapping, persona: Persona, now: datetime) -> datetime:
    # As in claim.sql: the clock may have been set back since the run started.
    waited = timedelta(milliseconds=max(0, run["waiting_ms"]))
    since: datetime = min(now, run["started_at"] + waited)
    return since + timedelta(seconds=persona.timeout_seconds)


def _note_deadline(
    tx: Transaction, run: RowMapping, persona: Persona, deadline_at: datetime
) -> None:
    values = {"deadline_at": deadline_at, "lands": agent_endings.lands(persona)}
    tx.sql.execute(
        upsert(agent_runs)
        .values(run_id=run["id"], **values)
        .on_conflict_do_update(index_elements=["run_id"], set_=values)
    )


def _turns(
    sql: Connection, run: RowMapping
) -> tuple[Sequence[Message], list[Message], list[Message], list[str]]:
    """Return the finished turns of earlier attempts, people's answers and approvals, and the calls
    whose sub-runs have results of which the turns have a part.

    None is left out: what a worker does not know it does again.
    """
    rows = sql.exec_driver_sql(
        _READ_TURNS,
        {
            "run_id": run["id"],
            "types": list(_TURN_TYPES),
            "most_bytes": MAX_TURN_BYTES,
            "most_characters": MAX_OLD_CHARACTERS,
            "mark": _MARK,
        },
    )
    turns: list[Message] = []
    asked: dict[str, Message] = {}
    calls: dict[str, Message] = {}
    answers: list[Message] = []
    approvals: list[Message] = []
    cut: list[str] = []
    for row in rows:
        data = event_log.data_of(row.payload)
        match row.type:
            case types.MessageCompleted.type:
                turns.append({"role": "assistant", "content": data["content"]})
            case types.ToolCallRequested.type:
                call = {
                    "id": data["tool_call_id"],
                    "name": data["name"],
                    "arguments": data["arguments"],
                }
                calls[call["id"]] = call
                turn = next((t for t in reversed(turns) if t["role"] == "assistant"), None)
                if turn is not None:  # else the worker has given out tasks without a turn
                    turn.setdefault("tool_calls", []).append(call)
            case types.ToolResult.type:
                is_part = data.get("characters") or data["output"].endswith(_MARK)
                if data["name"] == types.DELEGATE and is_part:
                    cut.append(data["tool_call_id"])
                turns.append(
                    {
                        "role": "tool",
                        "content": data["output"],
                        "tool_call_id": data["tool_call_id"],
                        "name": data["name"],
                        **({"is_error": True} if data["is_error"] else {}),
                    }
                )
            case types.RunWaitingForInput.type:
                asked[data["request_id"]] = data
            case types.RunInputReceived.type:
                request, answer = asked.get(data["request_id"]), data["content"]
                if request is None:
                    continue
                call_id = request.get("tool_call_id")
                if request["kind"] != call_approvals.KIND:
                    given = {"key": call_id, "question": request["prompt"], "answer": answer}
                    answers.append(given)
                elif call_id in calls:
                    asked_of = calls[call_id]["arguments"]
                    approvals.append(
                        {"tool_call_id": call_id, "arguments": asked_of, "answer": answer}
                    )
    for one in approvals:
        if (edited := call_approvals.edited(one["answer"])) is not None:
            calls[one["tool_call_id"]]["arguments"] = edited
    return turns, answers, approvals, cut


def _by_turn(turns: Sequence[Message]) -> list[Message]:
    """Return the turns, each followed by the results of its calls.

    An agent may have begun another turn before a call of the last one had its result.
    """
    found: list[list[Message]] = []
    of_call: dict[str, list[Message]] = {}
    for message in turns:
        if message["role"] == "tool" and message["tool_call_id"] in of_call:
            of_call[message["tool_call_id"]].append(message)
            continue
        found.append([message])
        of_call.update((call["id"], found[-1]) for call in message.get("tool_calls", ()))
    return [message for turn in found for message in turn]


def _open_calls(turns: Sequence[Message]) -> set[str]:
    """Return the ids of the calls without a result."""
    calls = {call["id"] for message in turns for call in message.get("tool_calls", ())}
    return calls - {message.get("tool_call_id") for message in turns}


def _said_last(turns: Sequence[Message]) -> str | None:
    """Return the text of the last finished turn; None if it called a tool, and without one.

    Results of calls of the turns before it may follow: those that the agent has left get one at
    the run's end.
    """
    last = next((turn for turn in reversed(turns) if turn["role"] == "assistant"), None)
    if last is None or "tool_calls" in last:
        return None
    said: str = last["content"]
    return said
