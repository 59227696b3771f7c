"""A long history, written by COPY: what a busy service has stored before retention sets in.

One org has nearly all of it. Its threads have one run or many, a third of them are private, and
its newest runs are all in private threads of one user, so that nobody else sees them. A second
org has nothing but private threads. Nearly all runs have ended; those that have not belong to a
worker that is never lost and wait for a person who has time.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any
from uuid import UUID

import psycopg

from bench.history.event_lines import CONTENT, events_of

#: Pieces of text of a run: the fewest and the most.
DELTAS = (2, 10)
#: Runs whose events are stored side by side, as those of one moment are.
AT_ONCE = 64
MEMBERS = 40
SPAN = timedelta(days=80)
#: Parts of all runs.
PART_OF_PRIVATE_ORG = 0.05
PART_OF_OTHER_ORGS = 0.02
PART_OF_NEWEST_PRIVATE = 0.02
PART_OF_LARGEST_THREAD = 0.01
OTHER_ORGS = 20

#: Indexes and keys that are quicker to make afterwards.
_INDEXES = """
SELECT c.relname AS name, pg_get_indexdef(i.indexrelid) AS definition, t.relname AS table_name,
    pg_get_constraintdef(k.oid) AS key
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u')
WHERE t.relname IN ('threads', 'messages', 'runs', 'run_events')
    AND t.relnamespace = 'public'::regnamespace
    AND NOT EXISTS (
        SELECT FROM pg_constraint f WHERE f.conindid = i.indexrelid AND f.contype = 'f'
    )
ORDER BY t.relname, c.relname
"""


@dataclass(frozen=True, slots=True)
class Org:
    id: UUID
    members: list[UUID]  # the owner is the first


@dataclass(slots=True)
class History:
    """The rows that were written; `long_run` is a finished run with very many events."""

    main: Org
    private: Org
    others: list[Org]
    runs: int = 0
    long_run: UUID | None = None
    largest_thread: UUID | None = None
    some_runs: list[UUID] = field(default_factory=list)
    some_threads: list[UUID] = field(default_factory=list)


def seed(url: str, main: UUID, *, runs: int, long_run_events: int) -> History:
    """Write `runs` runs and their events for the org `main`, which has an owner already.

    The last run was created five minutes ago, the first 80 days earlier. Ends with all indexes, and
    statistics for the planner.
    """
    with psycopg.connect(url.replace("+psycopg", "", 1)) as sql:
        sql.execute("SET session_replication_role = replica")  # no triggers, no foreign keys
        sql.execute("SET statement_timeout = 0")
        sql.execute("SET maintenance_work_mem = '1GB'")
        # Else the vacuum at the end may come before the commit is on disk, and marks nothing.
        sql.execute("SET synchronous_commit = on")
        written = _orgs(sql, main)
        writer = _Writer(written, runs, datetime.now(UTC) - timedelta(minutes=5))
        with _without_indexes(sql):
            writer.copy_runs(sql)
            writer.copy_events(sql)
            if long_run_events:
                writer.copy_long_run(sql, long_run_events)
        sql.commit()
        sql.autocommit = True
        # Also the visibility map, as autovacuum would have left it.
        sql.execute("VACUUM (ANALYZE) threads, messages, runs, run_events, users, memberships")
    return written


@contextmanager
def _without_indexes(sql: psycopg.Connection[Any]) -> Iterator[None]:
    """Drop what rows are checked against one by one, and make it again from all of them."""
    dropped = sql.execute(_INDEXES).fetchall()
    for name, _definition, table, key in dropped:
        if key is None:
            sql.execute(f'DROP INDEX "{name}"')
        else:
            sql.execute(f'ALTER TABLE "{table}" DROP CONSTRAINT "{name}"')
    yield
    for name, definition, table, key in dropped:
        if key is None:
            sql.execute(definition)
        else:
            sql.execute(f'ALTER TABLE "{table}" ADD CONSTRAINT "{name}" {key}')


def _orgs(sql: psycopg.Connection[Any], main: UUID) -> History:
    owner = sql.execute(
        "SELECT user_id FROM memberships WHERE org_id = %s AND role = 'owner'", [main]
    ).fetchone()
    assert owner is not None
    before = datetime.now(UTC) - timedelta(days=300)

    def org(name: str, members: int, org_id: UUID | None = None) -> Org:
        if org_id is None:
            org_id = _id(before)
            sql.execute("INSERT INTO orgs (id, name) VALUES (%s, %s)", [org_id, name])
        users = [_id(before) for _ in range(members)]
        for number, user_id in enumerate(users):
            login = f"{name}-{number}-{user_id.hex[-6:]}"
            sql.execute(
                "INSERT INTO users (id, login, email, password_hash) VALUES (%s, %s, %s, '-')",
                [user_id, login, f"{login}@example.com"],
            )
            role = "member" if number or org_id == main else "owner"
            sql.execute(
                "INSERT INTO memberships (user_id, org_id, role) VALUES (%s, %s, %s)",
                [user_id, org_id, role],
            )
        return Org(org_id, [owner[0], *users] if org_id == main else users)

    return History(
        main=org("main", MEMBERS, main),
        private=org("private", MEMBERS),
        others=[org(f"other-{number}", 3) for number in range(OTHER_ORGS)],
    )


def _id(moment: datetime) -> UUID:
    """Make a UUIDv7 of that time."""
    return UUID(int=int(_hex_id(int(moment.timestamp() * 1000), random), 16))


def _hex_id(milliseconds: int, chance: random.Random | Any) -> str:
    bits = chance.getrandbits(74)
    return f"{milliseconds:012x}7{bits & 0xFFF:03x}{0x8000000000000000 | bits >> 12:016x}"


def _time(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


@dataclass(slots=True)
class _Thread:
    id: str
    org: Org
    user: UUID
    is_private: bool
    runs_left: int
    position: int = 1


class _Writer:
    def __init__(self, written: History, runs: int, until: datetime) -> None:
        self._written = written
        self._runs = runs
        self._chance = random.Random(1)
        self._from = int((until - SPAN).timestamp() * 1000)
        self._step = SPAN.total_seconds() * 1000 / runs
        #: (id, time, state, number of deltas) of each run, for its events.
        self._of_runs: list[tuple[str, str, str, int]] = []
        self._worker = _hex_id(self._from, self._chance)

    def copy_runs(self, sql: psycopg.Connection[Any]) -> None:
        """Copy rows of `threads`, `runs` and `messages`, in the order in which they were made."""
        sql.execute(
            "INSERT INTO workers (id, hostname, pid, lock_key, seen_at)"
            " VALUES (%s, 'bench', 1, 1, now() + interval '1 year')",
            [self._worker],
        )
        rows = {"threads": [], "runs": [], "messages": []}  # type: dict[str, list[str]]
        begun: list[_Thread] = []
        open_threads: list[_Thread] = []
        largest = self._thread(self._written.main, is_private=False, number=0, at=self._from)
        largest.runs_left = max(10, int(self._runs * PART_OF_LARGEST_THREAD))
        self._written.largest_thread = UUID(largest.id)
        begun.append(largest)
        every = int(1 / PART_OF_LARGEST_THREAD)
        newest = self._runs * (1 - PART_OF_NEWEST_PRIVATE)
        for number in range(self._runs):
            at = self._from + int(number * self._step)
            if number % every == 0 and largest.runs_left:
                thread = largest
            elif open_threads and self._chance.random() < 0.75 and number < newest:
                place = self._chance.randrange(len(open_threads))
                thread = open_threads[place]
                if thread.runs_left == 1:
                    open_threads[place] = open_threads[-1]
                    open_threads.pop()
            else:
                thread = self._new_thread(number, newest, at)
                begun.append(thread)
                if thread.runs_left > 1:
                    open_threads.append(thread)
                    if len(open_threads) > 2000:
                        open_threads.pop(0)
            thread.runs_left -= 1
            self._run(thread, number, at, rows)
            if len(rows["runs"]) >= 5000:
                self._flush(sql, rows)
        for thread in begun:
            rows["threads"].append(
                f"{thread.id}\t{thread.org.id}\t{thread.user}\t\\N\t"
                f"{'t' if thread.is_private else 'f'}\t{thread.position}\t"
                f"{_time(int(thread.id[:12], 16))}\n"
            )
        self._written.some_threads = [
            UUID(one.id)
            for one in begun[:: max(1, len(begun) // 500)]
            if one.org is self._written.main and not one.is_private
        ]
        self._flush(sql, rows)

    def _new_thread(self, number: int, newest: float, at: int) -> _Thread:
        written = self._written
        if number >= newest:
            thread = self._thread(written.main, is_private=True, number=number, at=at)
            thread.user = written.main.members[-1]
            thread.runs_left = 1
            return thread
        chance = self._chance.random()
        if chance < PART_OF_PRIVATE_ORG:
            return self._thread(written.private, is_private=True, number=number, at=at)
        if chance < PART_OF_PRIVATE_ORG + PART_OF_OTHER_ORGS:
            org = written.others[number % len(written.others)]
            return self._thread(org, is_private=number % 3 == 0, number=number, at=at)
        return self._thread(written.main, is_private=number % 3 == 0, number=number, at=at)

    def _thread(self, org: Org, *, is_private: bool, number: int, at: int) -> _Thread:
        chance = self._chance.random()
        size = 1 if chance < 0.5 else 1 + int(self._chance.paretovariate(1.1))
        user = org.members[number * 7 % len(org.members)]
        return _Thread(_hex_id(at, self._chance), org, user, is_private, min(size, 200))

    def _run(self, thread: _Thread, number: int, at: int, rows: dict[str, list[str]]) -> None:
        run_id = _hex_id(at, self._chance)
        created, ended = _time(at), _time(at + 1500 + number % 5000)
        state = self._state(thread)
        is_over = state in ("completed", "failed", "cancelled")
        visible_to = thread.user if thread.is_private else thread.org.id
        position = thread.position
        thread.position += 2
        columns = [
            run_id,
            thread.org.id,
            thread.id,
            thread.user,
            run_id[:8] * 4,
            "assistant@1\tscripted\tscripted-1",
            position + 1,
            state,
            2 if is_over else 1,
            self._worker if state == "executing" else "\\N",
            1,
            created,
            created,
            created,
            ended if is_over else "\\N",
            "2099-01-01T00:00:00Z" if state == "waiting" else "\\N",
            json.dumps({"request_id": str(UUID(run_id)), "kind": "question", "prompt": "?"})
            if state == "waiting"
            else "\\N",
            "provider.timeout" if state == "failed" else "\\N",
            900 + number % 400,
            100 + number % 90,
            number % 300,
            "0.00012345",
            visible_to,
        ]
        rows["runs"].append("\t".join(map(str, columns)) + "\n")
        about = f"{thread.org.id}\t{thread.id}"
        rows["messages"].append(
            f"{_hex_id(at, self._chance)}\t{about}\t\\N\t{thread.user}\t{position}\tuser\t"
            f"{CONTENT}\t{created}\n"
        )
        if state == "completed":
            rows["messages"].append(
                f"{_hex_id(at + 1500, self._chance)}\t{about}\t{run_id}\t\\N\t{position + 1}\t"
                f"assistant\t{CONTENT}{CONTENT}\t{ended}\n"
            )
        deltas = self._chance.randint(*DELTAS)
        self._of_runs.append((run_id, created, state, deltas))
        is_seen = not thread.is_private and thread.org is self._written.main
        if is_seen and number % max(1, self._runs // 500) == 0:
            self._written.some_runs.append(UUID(run_id))

    def _state(self, thread: _Thread) -> str:
        """Choose a state; one of a thousand is active, and a thread has at most one of those, its
        last.
        """
        chance = self._chance.random()
        if chance < 0.97:
            return "completed"
        if chance < 0.985:
            return "failed"
        if chance < 0.997 or thread.runs_left:
            return "cancelled"
        return ("queued", "executing", "waiting")[int(chance * 1e6) % 3]

    def _flush(self, sql: psycopg.Connection[Any], rows: dict[str, list[str]]) -> None:
        statements = {
            "threads": "id, org_id, created_by_user_id, title, is_private, next_position,"
            " created_at",
            "runs": "id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id,"
            " model, position, state, fence, owner, attempt, created_at, queued_at, started_at,"
            " ended_at, input_expires_at, pending_input, error_code, input_tokens, output_tokens,"
            " cache_read_tokens, cost_usd, visible_to",
            "messages": "id, org_id, thread_id, run_id, created_by_user_id, position, role,"
            " content, created_at",
        }
        self._written.runs += len(rows["runs"])
        for table, columns in statements.items():
            if not rows[table]:
                continue
            with sql.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                copy.write("".join(rows[table]))
            rows[table].clear()

    def copy_events(self, sql: psycopg.Connection[Any]) -> None:
        """Copy the events of all runs; those of one moment side by side, each run's in order."""
        with sql.cursor().copy("COPY run_events (run_id, seq, type, payload) FROM STDIN") as copy:
            for start in range(0, len(self._of_runs), AT_ONCE):
                group = [events_of(*one) for one in self._of_runs[start : start + AT_ONCE]]
                copy.write(
                    "".join(line for lines in zip_longest(*group, fillvalue="") for line in lines)
                )

    def copy_long_run(self, sql: psycopg.Connection[Any], number: int) -> None:
        """Copy one finished run with `number` events, in a thread of its own."""
        thread = self._thread(self._written.main, is_private=False, number=1, at=self._from)
        thread.user, thread.runs_left = self._written.main.members[0], 0
        at = self._from + int(self._runs * self._step)
        rows: dict[str, list[str]] = {"threads": [], "runs": [], "messages": []}
        self._run(thread, 1, at, rows)
        run_id, created, _state, _deltas = self._of_runs[-1]
        rows["runs"][0] = rows["runs"][0].replace(f"\t{_state}\t", "\tcompleted\t")
        rows["threads"].append(
            f"{thread.id}\t{thread.org.id}\t{thread.user}\tlong\tf\t{thread.position}\t{created}\n"
        )
        self._flush(sql, rows)
        with sql.cursor().copy("COPY run_events (run_id, seq, type, payload) FROM STDIN") as copy:
            copy.write("".join(events_of(run_id, created, "completed", number - 4)))
        self._written.long_run = UUID(run_id)
