"""`arkloop admin`."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, func, select, text, update

from arkloop.cli.operator.admin import admin
from arkloop.shared.audit import audit_log
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.ids import new_id
from arkloop.shared.monitoring import installation
from arkloop.shared.runs import retention
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import forgotten_events, runs
from arkloop.shared.storage.tables.threads import threads
from tests.clients import User
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually

Run = Callable[..., Result]


@pytest.fixture
def run(connections: Connections) -> Run:
    """Call it with the words after `arkloop admin`, and with settings as `name="value"`."""

    def run(*words: str, **settings: str) -> Result:
        env = {"ARKLOOP_DATABASE_URL": connections.settings.database_url}
        env |= {f"ARKLOOP_{name.upper()}": value for name, value in settings.items()}
        return CliRunner().invoke(admin, words, env=env)

    return run


def actions(connections: Connections, user: User) -> list[tuple[str, str]]:
    with connections.reading() as sql:
        rows = audit_log.list_(sql, user.org_id, {}, limit=10, before=None)
    return [(row.action, row.actor_type) for row in reversed(rows)]


def test_runs_are_queued_again_by_the_lease_of_the_service(
    run: Run, stored: StoredRuns, alice: User
) -> None:
    """A setting, as of the workers; an id that does not exist makes the status 1."""
    claim, unknown = stored.claimed(seen_at=ago(seconds=20)), new_id()

    held = run("requeue", str(claim.run_id), lease_seconds="60")
    done = run("requeue", str(claim.run_id), str(unknown))

    assert (0, f"{claim.run_id}\theld\n") == (held.exit_code, held.output)
    assert (1, f"{claim.run_id}\tqueued\n{unknown}\tnot found\n") == (done.exit_code, done.output)
    assert [("run.requeued", "operator")] * 2 == actions(stored.connections, alice)


def test_runs_are_cancelled(run: Run, stored: StoredRuns, alice: User) -> None:
    """A run that has ended is reported as ended."""
    run_id = stored.create()

    printed = [run("cancel", str(run_id)).output for _ in range(2)]

    assert [f"{run_id}\tcancelled\n", f"{run_id}\tended\n"] == printed
    assert "cancelled" == stored.state(run_id)
    assert [("run.cancelled", "operator")] == actions(stored.connections, alice)


def test_what_is_stuck_is_listed(run: Run, stored: StoredRuns) -> None:
    """The list is printed as JSON, or as a line for each run."""
    claim = stored.claimed(seen_at=ago(seconds=3600))

    found = {one["id"]: one for one in json.loads(run("stuck", "--json").output)}
    line = next(line for line in run("stuck").output.splitlines() if f"id={claim.run_id}" in line)

    assert "worker_lost" == found[str(claim.run_id)]["problem"]
    assert "problem=worker_lost" in line and "state=executing" in line


def test_a_run_of_any_org_is_explained(run: Run, stored: StoredRuns) -> None:
    """The sentence comes first, as of `arkloop runs explain`, and times follow the settings."""
    claim, unknown = stored.claimed(seen_at=ago(seconds=20)), new_id()

    shown = run("explain", str(claim.run_id))
    reasons = []
    for seconds in ("2", "60"):
        found = run("explain", str(claim.run_id), "--json", heartbeat_seconds=seconds)
        reasons.append(json.loads(found.output)["reason"])
    missing = run("explain", str(unknown))

    assert 0 == shown.exit_code, shown.output
    sentence, *fields = shown.output.splitlines()
    assert "worker" in sentence and f"run_id\t{claim.run_id}" in fields
    assert ["worker.silent", "starting"] == reasons
    assert (1, f"Error: There is no run {unknown}.\n") == (missing.exit_code, missing.output)


def test_a_run_of_a_deleted_thread_is_explained_to_the_operator(
    run: Run, stored: StoredRuns, alice: User
) -> None:
    """Lists of stuck runs have it, and the org does not see it any more."""
    claim = stored.claimed(seen_at=ago(seconds=3600))
    gone = update(threads).where(threads.c.id == stored.row(claim.run_id)["thread_id"])
    with stored.connections.transaction() as tx:
        tx.sql.execute(gone.values(deleted_at=func.now()))

    shown = run("explain", str(claim.run_id))

    assert (0, True) == (shown.exit_code, f"run_id\t{claim.run_id}" in shown.output), shown.output
    assert 404 == alice.get(f"/v1/runs/{claim.run_id}:explain").status_code


def test_queues_and_workers_are_listed(run: Run, stored: StoredRuns, alice: User) -> None:
    """The list has all orgs."""
    stored.create()
    worker_id = stored.worker()

    queues = {one["org_id"]: one for one in json.loads(run("queues", "--json").output)}
    workers = {one["id"]: one for one in json.loads(run("workers", "--json").output)}

    assert 1 == queues[str(alice.org_id)]["queued"]
    assert workers[str(worker_id)]["is_alive"]


def test_a_list_that_may_have_been_cut_says_so(
    run: Run, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is on standard error, so that JSON stays JSON."""
    stored.claimed(seen_at=ago(seconds=3600))
    commands = (("queues",), ("workers",), ("stuck",), ("stuck", "--json"))
    whole = [run(*words).stderr for words in commands]
    monkeypatch.setattr(installation, "MOST", 1)

    cut = [run(*words) for words in commands]

    assert [""] * 4 == whole
    assert ["The first 1; there may be more.\n"] * 4 == [one.stderr for one in cut]
    assert 1 == len(json.loads(cut[3].stdout))


def test_the_queue_of_one_org_is_shown_behind_many_others(
    run: Run,
    register: Callable[[], User],
    make_run: Callable[..., UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An org without runs has no line; one that does not exist is refused."""
    monkeypatch.setattr(installation, "MOST", 1)
    first, later, idle = register(), register(), register()
    for org, age in ((first, 2), (later, 1)):
        make_run(org, org.thread(), RunState.QUEUED, queued_at=ago(days=age))
        make_run(org, org.thread(), RunState.EXECUTING)

    shown = run("queues", "--org", str(later.org_id), "--json")
    of_idle = run("queues", "--org", str(idle.org_id))
    unknown = run("queues", "--org", "nobody-of-this-name")

    [queue] = json.loads(shown.stdout)
    assert (str(later.org_id), 1, 1) == (queue["org_id"], queue["queued"], queue["executing"])
    assert (0, "") == (of_idle.exit_code, of_idle.output)
    assert "No organization has the id or slug 'nobody-of-this-name'" in unknown.output


def test_the_retention_is_shown_and_run(
    run: Run, alice: User, make_run: Callable[..., UUID]
) -> None:
    """The days of the setting count, until nothing is left that is too old."""
    make_run(alice, alice.thread(), RunState.COMPLETED, ended_at=ago(days=8))

    shown = json.loads(run("retention", "show", retention_days="7").output)
    after = json.loads(run("retention", "run", retention_days="7").output)

    assert 7 == shown["retention_days"]
    assert (1, 0) == (shown["runs_too_old"], after["runs_too_old"])


def test_the_retention_leaves_streams_in_redis_to_the_sweep(
    run: Run, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command has no address of it: events in Postgres go, with all that can be dropped."""
    claims = [stored.claimed() for _ in range(2)]
    for claim in claims:
        stored.write(claim, MessageDelta("I am Ann."))
    ids = [claim.run_id for claim in claims]
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(runs).where(runs.c.id.in_(ids)))
        tx.sql.execute(update(forgotten_events).values(collect_at=ago(minutes=2)))

    done = run("retention", "run", retention_days="90")

    assert (0, [[], []]) == (done.exit_code, [stored.events(run_id) for run_id in ids]), done.output
    assert all(stored.published(run_id) for run_id in ids)
    retention.forget(stored.connections)
    assert [[], []] == [stored.published(run_id) for run_id in ids]


def test_the_retention_waits_for_a_sweep_that_deletes(
    run: Run, stored: StoredRuns, alice: User, make_run: Callable[..., UUID]
) -> None:
    """What is too old is deleted after it, not left."""
    make_run(alice, alice.thread(), RunState.COMPLETED, ended_at=ago(days=8))
    with ThreadPoolExecutor(1) as pool:
        with stored.connections.transaction() as tx:
            tx.sql.execute(select(func.pg_advisory_xact_lock(retention._LOCK_KEY)))
            running = pool.submit(run, "retention", "run", retention_days="7")
            eventually(lambda: running.done() or _waits_for_lock(stored.connections))
        after = running.result()

    assert (0, 0) == (after.exit_code, json.loads(after.output)["runs_too_old"])


def _waits_for_lock(connections: Connections) -> bool:
    waiting = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
    )
    with connections.reading() as sql:
        return bool(sql.scalar(text(waiting)))


def test_nothing_is_deleted_by_a_retention_that_was_not_given(
    run: Run, alice: User, make_run: Callable[..., UUID]
) -> None:
    """The service may have a longer one than a default, by an environment that is not here."""
    make_run(alice, alice.thread(), RunState.COMPLETED, ended_at=ago(days=91))

    refused = run("retention", "run")

    assert 2 == refused.exit_code
    assert "--retention-days" in refused.output
    assert 1 == json.loads(run("retention", "show").output)["runs_too_old"]


def test_a_retention_beyond_all_dates_is_refused(run: Run) -> None:
    """The service refuses the same setting."""
    results = [run("retention", "show", retention_days=days) for days in ("36500", "36501")]

    assert [0, 2] == [result.exit_code for result in results]
    assert "--retention-days" in results[1].output


def test_operators_are_added_listed_and_removed(
    run: Run, alice: User, connections: Connections
) -> None:
    """Logins and addresses name them, and the logs of their orgs have entries."""
    unknown = run("operators", "add", "nobody-of-this-name")
    added = run("operators", "add", alice.login)
    listed = run("operators", "list").output
    removed = run("operators", "remove", f"{alice.login}@example.com")
    again = run("operators", "remove", alice.login)

    assert (1, 0, 0, 1) == (
        unknown.exit_code,
        added.exit_code,
        removed.exit_code,
        again.exit_code,
    )
    assert f"{alice.id}\t{alice.login}\t{alice.login}@example.com\t20" in listed
    assert [("operator.added", "operator"), ("operator.removed", "operator")] == actions(
        connections, alice
    )


def test_orgs_are_those_of_the_other_command(run: Run, alice: User) -> None:
    """The same commands under both names."""
    shown = run("orgs", "show", "--org", str(alice.org_id))

    assert str(alice.org_id) == json.loads(shown.output)["org_id"]
