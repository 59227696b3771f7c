import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from arkloop.shared.storage.tables.runs import runs
from chaos.journal import Journal
from chaos.system.fault_proxy import FaultProxy
from chaos.system.member import Member, NotInTime, wait_until
from chaos.system.stack import ROOT, Stack
from tests.caller import Caller, client
from tests.waiting import eventually

pytestmark = pytest.mark.stack
LONG = {"say": "word ", "repeat": 30, "delay_ms": 30}
Entry = dict[str, object]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack for all tests of this module, which leave it in working order."""
    folder = tmp_path_factory.mktemp("stack")
    with Journal(folder / "journal.jsonl") as journal, Stack(folder, journal, workers=1) as made:
        yield made


@pytest.fixture
def caller(stack: Stack) -> Caller:
    return caller_of(stack)


@pytest.fixture
def alone(stack: Stack) -> Iterator[Callable[[str, str], Member]]:
    """Call it for a member with a fault point that is the only one of its role.

    It takes the place of the first one, also afterwards: it is armed in its first life alone.
    """
    retired: list[tuple[list[Member], list[Member]]] = []

    def start(role: str, fault_point: str) -> Member:
        members = stack.web if role == "web" else stack.workers
        retired.append((members, members[1:]))
        for member in members:
            member.stop(signal.SIGKILL)
        members.clear()
        start = stack.start_web if role == "web" else stack.start_worker
        armed = start(fault_point)
        armed.wait_ready()
        return armed

    yield start
    for members, others in retired:
        for member in others:
            member.start()
        members += others
    stack.wait_ready()


def caller_of(stack: Stack, org: str = "a", web: int = 0) -> Caller:
    url, token = stack.urls[web], stack.api_key(org)
    return Caller(url, token, client(url, token), "", "", "")


def completes(caller: Caller, run_id: str) -> bool:
    """Wait for its end; returns False if that is another one."""
    wait_until(
        lambda: caller.get_run(run_id)["status"] in ("completed", "failed", "cancelled"), 60, "end"
    )
    return bool(caller.get_run(run_id)["status"] == "completed")


def written(stack: Stack, kind: str, **fields: object) -> list[Entry]:
    wanted = {"kind": kind, **fields}.items()
    return [entry for entry in stack.journal.entries if wanted <= entry.items()]


# ---- what a stack is ---------------------------------------------------------------------


def test_a_run_completes_and_every_web_process_shows_it(stack: Stack, caller: Caller) -> None:
    """Two web processes, a worker, and orgs that do not see each other's runs."""
    run_id = caller.run({"say": "done"})

    assert completes(caller, run_id)
    seen = [caller.at(url).get_run(run_id)["status"] for url in stack.urls]
    assert ["completed", "completed"] == seen
    foreign = caller_of(stack, "b").http.get(f"/v1/runs/{run_id}")
    assert 404 == foreign.status_code


def test_everything_goes_through_the_proxies(stack: Stack, caller: Caller) -> None:
    """With both refusing, no process reaches a server; the stack itself still does."""
    proxies: list[FaultProxy] = [stack.postgres_proxy, stack.redis_proxy]
    for proxy in proxies:
        proxy.refuse()
    try:
        assert 503 == caller.http.get("/readyz").status_code
        assert stack.redis_client().ping()
        with stack.connect().reading() as sql:
            sql.execute(runs.select().limit(1))
    finally:
        for proxy in proxies:
            proxy.pass_on()
    eventually(lambda: caller.http.get("/readyz").json() == ready(caller))


def ready(caller: Caller) -> object:
    """Return what is true if the service is ready and nothing is degraded."""
    answer = caller.http.get("/readyz").json()
    return {"status": "ok", "schema_version": answer.get("schema_version")}


def test_another_source_tree_can_be_run(tmp_path: Path) -> None:
    """A changed copy of the code is what the processes run."""
    source = tmp_path / "source"
    for part in ("api", "arkloop", "worker", "shared", "cli", "migrations"):
        shutil.copytree(
            ROOT / part,
            source / part,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "Procfile", source)
    health = source / "api/endpoints/health.py"
    health.write_text(
        health.read_text().replace('jsonify(status="ok")', 'jsonify(status="changed")')
    )
    with Stack(tmp_path / "stack", Journal(), workers=0, web=1, source=source) as stack:
        answer = client(stack.urls[0]).get("/healthz").json()

    assert {"status": "changed"} == answer


# ---- members -----------------------------------------------------------------------------


def test_a_killed_worker_is_started_again(stack: Stack, caller: Caller) -> None:
    """Its run completes, and the journal has its death and its next start."""
    run_ids = [caller.run(LONG) for _ in range(4)]
    for run_id in run_ids:
        caller.until(run_id, "status", "running", "completed")
    member = stack.workers[0]
    pid, deaths = member.pid, member.deaths
    member.kill()

    assert deaths + 1 == member.deaths
    assert not psutil.pid_exists(pid or 0)
    assert [True] * 4 == [completes(caller, run_id) for run_id in run_ids]
    member.wait_ready()
    assert 1 == len(written(stack, "process", role="worker", pid=pid, what="died"))
    assert 1 == len(written(stack, "process", role="worker", pid=member.pid, what="started"))


def test_a_terminated_web_process_is_started_again(stack: Stack, caller: Caller) -> None:
    """A web process that was terminated is started again on the same port, as in a deploy."""
    member = stack.web[1]
    url, pid = member.url, member.pid
    member.terminate()
    member.wait_gone(60)
    member.wait_ready()

    assert url == stack.urls[1]
    assert pid != member.pid
    assert completes(caller_of(stack, web=1), caller.run({"say": "done"}))


def test_gunicorns_child_can_be_killed_alone(stack: Stack) -> None:
    """Gunicorn's child can be killed alone: its master stays and starts another."""
    member = stack.web[0]
    pid, deaths = member.pid, member.deaths
    [child] = psutil.Process(pid).children()
    member.kill_child()
    eventually(lambda: [child] != psutil.Process(pid).children() and member.is_ready)

    assert (pid, deaths) == (member.pid, member.deaths)


def test_a_frozen_member_thaws(stack: Stack, caller: Caller) -> None:
    """A web process that stands still takes connections and answers later."""
    member = stack.web[0]
    member.freeze()
    assert member.is_frozen
    assert not member.is_ready
    member.thaw()
    member.wait_ready()

    assert not member.is_frozen


def test_a_fault_point_kills_a_worker_once(
    caller: Caller, alone: Callable[[str, str], Member], stack: Stack
) -> None:
    """The life after it is not armed: the run completes there. The journal has a whole fault."""
    armed = alone("worker", "worker.claimed:1:KILL")
    run_id = caller.run({"say": "done"})
    armed.wait_gone(60)

    assert completes(caller, run_id)
    assert 1 == armed.deaths
    point = {"point": "worker.claimed:1:KILL", "how": "KILL"}
    eventually(lambda: 1 == len(written(stack, "fault", phase="end", **point)))
    assert 1 == len(written(stack, "fault", phase="begin", **point))


def test_a_fault_point_stops_a_worker(
    caller: Caller, alone: Callable[[str, str], Member], stack: Stack
) -> None:
    """It stands still until it is thawed; the journal has the time between as a fault."""
    armed = alone("worker", "worker.claimed:1:STOP")
    run_id = caller.run({"say": "done"})
    eventually(lambda: armed.is_frozen)
    eventually(lambda: 1 == len(written(stack, "fault", phase="begin", how="STOP")))
    armed.thaw()

    assert completes(caller, run_id)
    eventually(lambda: 1 == len(written(stack, "fault", phase="end", how="STOP")))


def test_a_fault_point_kills_a_web_process_once(
    alone: Callable[[str, str], Member], stack: Stack
) -> None:
    """Its gunicorn ends as a whole, since the master would arm the next child again."""
    armed = alone("web", "transaction.committed:1:KILL")
    caller = caller_of(stack)
    thread_id = caller.thread("hello")
    with suppress(httpx.TransportError):  # the answer and the death are close together
        caller.start(thread_id)
    armed.wait_gone(60)
    armed.wait_ready()

    assert 1 == armed.deaths
    [run] = caller.get(f"/v1/threads/{thread_id}/runs")
    assert completes(caller, run["run_id"])
    assert completes(caller, caller.run({"say": "done"}))


# ---- servers -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["immediate", "kill", "freeze"])
def test_postgres_comes_back_with_every_commit(stack: Stack, caller: Caller, how: str) -> None:
    """After a stop without a farewell, a SIGKILL, and a time of standing still."""
    run_id = caller.run(LONG)
    if how == "freeze":
        stack.postgres.freeze()
        assert stack.postgres.is_frozen
        stack.postgres.thaw()
    elif how == "kill":
        stack.postgres.kill()
        stack.postgres.start()
    else:
        stack.postgres.stop(immediate=True)
        assert stack.postgres.pid is None
        stack.postgres.start()

    eventually(lambda: caller.http.get("/readyz").status_code == 200)
    assert completes(caller, run_id)


def test_a_frozen_postgres_can_be_killed(stack: Stack, caller: Caller) -> None:
    """Backends that stand still do not keep the next server from starting."""
    stack.postgres.freeze()
    stack.postgres.kill()
    stack.postgres.start()

    eventually(lambda: caller.http.get("/readyz").status_code == 200)


def test_sessions_of_postgres_can_be_ended(stack: Stack, caller: Caller) -> None:
    """Every client's session ends, the server stays."""
    pid = stack.postgres.pid

    assert stack.postgres.terminate_backends() > 0
    assert pid == stack.postgres.pid
    eventually(lambda: caller.http.get("/readyz").status_code == 200)


def test_redis_restarts_empty(stack: Stack, caller: Caller) -> None:
    """Same port, same password, no key; runs go on."""
    url = stack.redis.url
    client = stack.redis_client()
    client.set("kept", "no")
    run_id = caller.run(LONG)
    stack.redis.restart_empty()

    assert None is client.get("kept")
    assert url == stack.redis.url
    assert completes(caller, run_id)


def test_redis_keeps_its_data_over_a_good_end(stack: Stack) -> None:
    """With an append-only file a restart loses nothing; an old copy brings old data back."""
    client = stack.redis_client()
    client.set("kept", "old")
    stack.redis.stop()
    copy = stack.redis.copy()
    stack.redis.start()
    kept = client.get("kept")
    client.set("kept", "new")
    stack.redis.travel_back(copy)

    assert ("old", "old") == (kept, client.get("kept"))


def test_redis_can_be_short_of_memory(stack: Stack) -> None:
    """Redis' settings, such as its memory limit, can be changed while it runs."""
    stack.redis.config_set(maxmemory="100mb")
    assert {"maxmemory": str(100 * 2**20)} == stack.redis_client().config_get("maxmemory")
    stack.redis.config_set(maxmemory="0")


# ---- the end -----------------------------------------------------------------------------


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Frozen, killed, stopped and running processes all end with the block; the folder stays."""
    with Stack(tmp_path / "stack", Journal()) as stack:
        started = processes_of(stack)
        stack.web[1].stop()
        stack.workers[1].kill()
        for part in (stack.web[0], stack.workers[0], stack.postgres, stack.redis):
            part.freeze()
        sockets = stack.postgres.socket.parent
    # The children of a killed gunicorn are for the system's first process to forget.
    _, alive = psutil.wait_procs(started, timeout=60)

    assert [] == alive
    assert len(started) >= 10
    assert not sockets.exists()
    assert (tmp_path / "stack/postgres/PG_VERSION").exists()


def processes_of(stack: Stack) -> list[psutil.Process]:
    parts = (*stack.web, *stack.workers, stack.postgres, stack.redis)
    first = [part.pid for part in (*parts, stack.postgres_proxy, stack.redis_proxy)]
    found = [psutil.Process(pid) for pid in first]
    return found + [child for one in found for child in one.children(recursive=True)]


def test_a_stack_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    """A member that dies again and again is shown with its log, and everything ends."""
    journal = Journal()
    environ = {"ARKLOOP_FAULT_POINT": "nowhere"}
    stack = Stack(tmp_path, journal, web=0, workers=1, environ=environ)
    with pytest.raises(NotInTime, match="dies again and again(.|\n)*nowhere"), stack:
        pass

    started = {entry["pid"] for entry in journal.entries if entry["what"] == "started"}
    assert len(started) >= 5
    assert [] == [pid for pid in started if psutil.pid_exists(pid)]
