"""Two cells behind HAProxy, each with a Postgres, a Redis, a web server and a worker: an org moves
from one to the other while its clients go on.
"""

import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.storage import schema
from tests.caller import Caller, client, error_of, parsed, script, types
from tests.proxies import CellProxy, cell_proxy
from tests.system import System, running_system, sealing
from tests.tool_receiver import Reply, ToolReceiver
from tests.waiting import eventually
from tests.web_server import INHERITED, ROOT

pytestmark = [pytest.mark.proxies, pytest.mark.owner]

MOVES, STAYS = "moves.example.com", "stays.example.com"


@pytest.fixture
def cells(new_database: Callable[[], str], tmp_path: Path) -> Iterator[tuple[System, System]]:
    """Two cells that have in common what the guide demands."""
    common = sealing() | {"ARKLOOP_JWT_SECRET": secrets.token_hex(32)}
    common["ARKLOOP_WEBHOOK_TIMEOUT_SECONDS"] = "30"  # none is repeated: the test counts them
    common["ARKLOOP_FILES_DIR"] = str(tmp_path / "files")
    with ExitStack() as stack:
        postgres = EmbeddedPostgres(tmp_path / "postgres", options={"fsync": "off"})
        second = stack.enter_context(postgres).url
        schema.migrate(create_engine(second))
        cells = []
        for name, database in (("1", new_database), ("2", lambda: second)):
            folder = tmp_path / name
            folder.mkdir()
            system = running_system(database, folder, web=1, environ=common)
            cells.append(stack.enter_context(system))
        yield cells[0], cells[1]


@dataclass
class Program:
    """A client that starts a run, and another one, and so on; it repeats what is refused."""

    http: httpx.Client
    run_ids: list[str] = field(default_factory=list)
    refusals: Counter[tuple[int, str]] = field(default_factory=Counter)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Program":
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._thread.join(60)

    def _work(self) -> None:
        while not self.stopping.is_set():
            headers = {"Idempotency-Key": secrets.token_hex(16)}
            body = {"message": script({"say": "Hello"})}
            while (answer := self.http.post("/v1/runs", json=body, headers=headers)).is_error:
                self.refusals[error_of(answer)] += 1
                time.sleep(0.1)
            self.run_ids.append(answer.json()["run_id"])
            time.sleep(0.05)


def followed(http: httpx.Client, run_id: str, into: list[dict[str, Any]]) -> None:
    """Follow a run to its end by its cursor, over streams that break off."""
    while not into or not into[-1]["type"].startswith("run.comp"):
        cursor = into[-1]["seq"] if into else 0
        path = f"/v1/runs/{run_id}/events?after_seq={cursor}"
        try:
            with http.stream("GET", path) as answer:
                if answer.is_success:
                    for event in parsed(answer):
                        into.append(event)
        except httpx.RemoteProtocolError:
            pass
        time.sleep(0.1)


@pytest.fixture
def proxy(cells: tuple[System, System], tmp_path: Path) -> Iterator[CellProxy]:
    ports = [cell.web[0].settings.port for cell in cells]
    with cell_proxy(tmp_path, ports, {MOVES: "cell-1", STAYS: "cell-1"}) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply()) as made:
        yield made


@pytest.mark.usefixtures("within_a_month")
def test_an_org_moves_while_its_clients_go_on(
    cells: tuple[System, System], proxy: CellProxy, receiver: ToolReceiver
) -> None:
    """All that it had is in the new cell, nothing is executed twice, its clients use the same key,
    and the org that stays notices nothing.
    """
    old, new = cells
    owner, mover = by_key(old, proxy, MOVES)
    _, stayer = by_key(old, proxy, STAYS)
    owner.made("/v1/webhook-endpoints", {"url": receiver.url, "event_types": ["run.completed"]})
    asking = mover.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "Thanks"})
    mover.until(asking, "status", "waiting_for_input")
    events: list[dict[str, Any]] = []
    follower = threading.Thread(target=followed, args=(mover.http, asking, events), daemon=True)
    follower.start()
    with Program(mover.http) as moving, Program(stayer.http) as staying:
        eventually(lambda: len(moving.run_ids) >= 10)

        proxy.switch(MOVES, "moving")
        eventually(lambda: (503, "service.unavailable") in moving.refusals)
        eventually(lambda: not unended(old, owner, "queued", "executing"))
        arkloop(old, "orgs", "suspend", "--org", owner.org_id, "--reason", "It moves.")
        before = len(moving.run_ids)
        target = new.environ["ARKLOOP_DATABASE_URL"]
        copied = arkloop(old, "orgs", "copy", "--org", owner.org_id, "--to", target)
        left = stored_events(old, owner)
        proxy.switch(MOVES, "cell-2")
        arkloop(new, "orgs", "resume", "--org", owner.org_id)

        eventually(lambda: len(moving.run_ids) >= before + 10)
        mover.answer(asking, "Yes")
        follower.join(120)
    run_ids = [asking, *moving.run_ids]
    assert f'"runs": {before + 1}' in copied
    assert {(503, "service.unavailable")} == {*moving.refusals} - {(401, "org.suspended")}
    assert ([], True) == ([*staying.refusals], len(staying.run_ids) > 10)

    assert [*range(1, mover.ended(asking)["last_seq"] + 1)] == [event["seq"] for event in events]
    for run_id in moving.run_ids:
        run, seen = mover.ended(run_id), mover.events_so_far(run_id)
        assert ("completed", 1) == (run["status"], types(seen).count("run.started"))
        assert [*range(1, run["last_seq"] + 1)] == [event["seq"] for event in seen]
        said = [role for role, _, _ in mover.messages(run["thread_id"])]
        assert ["user", "assistant"] == said
    assert left == stored_events(old, owner), "the old cell has executed something"
    numbers = [mover.get_run(run_id)["last_seq"] for run_id in run_ids]
    assert sum(numbers) == stored_events(new, owner)
    assert len(run_ids) == mover.get("/v1/me/usage")["runs"]
    eventually(lambda: len(receiver.received) >= len(run_ids))
    delivered = Counter(request.data["run_id"] for request in receiver.received)
    assert dict.fromkeys(run_ids, 1) == delivered
    assert "ok" in arkloop(new, "audit", "verify", "--org", owner.org_id)


def by_key(system: System, proxy: CellProxy, host: str) -> tuple[Caller, Caller]:
    """Return an owner in this cell, and the same by a key through the proxy at a host name."""
    owner = system.caller()
    _, key = owner.api_key()
    http = client(proxy.url, key)
    http.headers["Host"] = host
    return owner, replace(owner, url=proxy.url, token=key, http=http)


def unended(system: System, owner: Caller, *states: str) -> bool:
    query = "SELECT EXISTS (SELECT FROM runs WHERE org_id = :org AND state = ANY (:states))"
    with system.connections.reading() as sql:
        return bool(sql.scalar(text(query), {"org": owner.org_id, "states": list(states)}))


def stored_events(system: System, owner: Caller) -> int:
    query = "SELECT count(*) FROM run_events e JOIN runs r ON r.id = e.run_id WHERE org_id = :org"
    with system.connections.reading() as sql:
        return int(sql.scalar(text(query), {"org": owner.org_id}) or 0)


def arkloop(system: System, *words: str) -> str:
    """Execute a command of the operator with the environment of a cell; returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "arkloop.cli", *words],
        cwd=ROOT,
        env={**INHERITED, **system.environ},
        capture_output=True,
        text=True,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout
