"""A failover between two real Postgres servers, of which the second lacked the last commits."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread

import httpx
import psycopg
import pytest

from tests.caller import Caller, Event, parsed, types
from tests.standby import Pair, replicated_postgres
from tests.system import System, running_system
from tests.waiting import eventually

pytestmark = pytest.mark.processes

#: Runs that are in the middle of their answer at the failover.
RUNS = 8
TEXT = {"count": 300, "delay_ms": 100}
#: Events of each run that are committed and seen, and that the standby lacks.
LOST = 5


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with replicated_postgres(tmp_path / "postgres") as made:
        yield made


@pytest.fixture
def system(pair: Pair, tmp_path: Path) -> Iterator[System]:
    """The service with both servers in its database URL."""
    url = pair.url(pair.primary, pair.standby)
    with running_system(lambda: url, tmp_path, web=1) as made:
        yield made


def stop_replication(pair: Pair) -> None:
    """Leave the standby behind: it receives nothing from now on."""
    with psycopg.connect(pair.standby.url.replace("+psycopg", ""), autocommit=True) as sql:
        sql.execute("ALTER SYSTEM SET primary_conninfo = ''")
        sql.execute("SELECT pg_reload_conf()")
        receivers = "SELECT count(*) FROM pg_stat_wal_receiver"
        eventually(lambda: sql.execute(receivers).fetchone() == (0,))


def kill(pair: Pair) -> None:
    """End the primary as a power failure does."""
    assert pair.primary.pid is not None
    os.kill(pair.primary.pid, signal.SIGKILL)


def follow(caller: Caller, run_id: str, seen: list[Event]) -> None:
    """Follow a run until its stream ends, in whichever way."""
    with suppress(httpx.HTTPError), caller.stream(run_id) as answer:
        for event in parsed(answer):
            seen.append(event)


def test_a_failover_that_loses_commits(system: System, pair: Pair) -> None:
    """After a failover that lost commits each run that is left ends once, its events and what a
    follower saw have no gap, a waiting run takes its answer, and the loss is logged.
    """
    owner = system.caller()
    run_ids = [owner.run(TEXT, {"say": "end"}) for _ in range(RUNS)]
    asking = owner.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "thanks"})
    request_id = owner.until(asking, "status", "waiting_for_input")["pending_input"]["request_id"]
    seen: dict[str, list[Event]] = {run_id: [] for run_id in run_ids}
    followers = [Thread(target=follow, args=(owner, *item), daemon=True) for item in seen.items()]
    for follower in followers:
        follower.start()
    eventually(lambda: all(len(events) > 5 for events in seen.values()))

    stop_replication(pair)
    stored = {run_id: len(events) for run_id, events in seen.items()}
    lost = owner.run("hello")
    eventually(lambda: all(len(seen[run_id]) > stored[run_id] + LOST for run_id in run_ids))
    kill(pair)
    pair.promote()
    eventually(lambda: owner.http.get("/readyz").status_code == 200)
    new = owner.run("hello again")

    assert "completed" == owner.ended(new)["status"]
    assert 404 == owner.http.get(f"/v1/runs/{lost}").status_code
    assert ["completed"] * RUNS == [owner.ended(run_id)["status"] for run_id in run_ids]
    assert 200 == owner.answer(asking, "yes", request_id=request_id).status_code
    assert "completed" == owner.ended(asking)["status"]
    log = system.worker.log.read_text()
    for follower, run_id in zip(followers, run_ids, strict=True):
        events = owner.events(run_id)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert 1 == types(events).count("run.completed")
        assert f"Postgres lost committed events of run {run_id}" in log
        follower.join(10)
        assert all(b["seq"] == a["seq"] + 1 for a, b in pairwise(seen[run_id]))
