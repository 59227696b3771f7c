"""Limits while processes are killed: is any of them exceeded, and does any place stay taken?

    .venv/bin/python -m bench.limit_losses [--rounds 20] [--seed 1]

In each round 64 callers create runs, 64 open and close streams, and 64 make requests, each group in
an org of its own whose limits are far lower; a web process and a worker are killed meanwhile and
come back. Runs are counted by a trigger, within each statement that creates some; streams and
requests by the clients. At the end each org must have all its places again. Exit status 1: a limit
was exceeded by one or more, or a place stayed taken.
"""

import argparse
import http.client
import json
import random
import re
import select
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import text

from arkloop.shared.accounts import accounts, api_keys, org_settings
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from bench.machine import machine
from chaos.journal import Journal
from chaos.system.member import wait_until
from chaos.system.stack import Stack

CALLERS = 64
ORG_RUNS, KEY_RUNS = 12, 8
ORG_STREAMS, KEY_STREAMS = 12, 8
REQUESTS = 60
SECONDS = 8.0  # a round; processes are killed in its first half
#: Of short streams, of whose ends the server learns late, the most are hardly ever open at once.
HELD_SECONDS = (1.0, 4.0)
WINDOW_SECONDS = 20  # of the window of requests, left when a round begins
#: Slots of streams are free this long after a kill, and the processes have started again.
FREE_SECONDS = 60.0
#: A run that counts, and that no worker takes while this lasts.
SCHEDULED = {
    "message": "x",
    "not_before": f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}",
}
_REMAINING = re.compile(r'"org";r=(\d+);t=(\d+)')

# What is counted within the inserting statement, in the transaction that holds the org's lock.
_WITNESS = """
CREATE TABLE admitted (org_id uuid, in_org bigint, in_key bigint);
CREATE FUNCTION note_admitted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO admitted
    SELECT n.org_id, count(*), count(*) FILTER (WHERE r.api_key_id = n.api_key_id)
    FROM (SELECT DISTINCT org_id, api_key_id FROM made) AS n
    JOIN runs AS r ON r.org_id = n.org_id AND r.ended_at IS NULL
    GROUP BY n.org_id, n.api_key_id;
    RETURN NULL;
END $$;
CREATE TRIGGER runs_are_counted AFTER INSERT ON runs REFERENCING NEW TABLE AS made
FOR EACH STATEMENT EXECUTE FUNCTION note_admitted();
"""
_MOST = text(
    "SELECT coalesce(max(in_org), 0), coalesce(max(in_key), 0) FROM admitted WHERE org_id = :org_id"
)
_LEFT = text("SELECT count(*) FROM runs WHERE org_id = :org_id AND ended_at IS NULL")


@dataclass(slots=True)
class Org:
    """An org with two keys, each of which half of the callers have."""

    id: UUID
    keys: list[str]


class Answer(NamedTuple):
    """A response; `limit` is its header `RateLimit`."""

    status: int
    body: str
    limit: str


@dataclass(slots=True)
class Count:
    """The number that is open by the key, and the most that ever was, of a key and in all."""

    open: Counter[str] = field(default_factory=Counter)
    most_of_key: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def change(self, key: str, by: int) -> None:
        with self.lock:
            self.open[key] += by
            self.most_of_key = max(self.most_of_key, self.open[key])
            self.most = max(self.most, self.open.total())


def main() -> int:
    options = _options()
    print(json.dumps(machine()), flush=True)
    with tempfile.TemporaryDirectory(prefix="arkloop-limits-") as folder:
        limits = {
            "ARKLOOP_ORG_CONCURRENT_RUNS": str(ORG_RUNS),
            "ARKLOOP_KEY_CONCURRENT_RUNS": str(KEY_RUNS),
            "ARKLOOP_ORG_STREAMS": str(ORG_STREAMS),
            "ARKLOOP_KEY_STREAMS": str(KEY_STREAMS),
        }
        with Stack(Path(folder), Journal(), environ=limits) as stack:
            trial = _Trial(stack, random.Random(options.seed))
            for number in range(options.rounds):
                trial.round(number)
                print(f"{number + 1} rounds: {trial.said}", flush=True)
            trial.look_for_leaks()
    trial.judge_load(options.rounds)
    for fault in trial.faults[:20]:
        print(fault)
    print(f"{options.rounds} rounds, {len(trial.faults)} faults")
    return int(bool(trial.faults))


class _Trial:
    """The rounds, what they have counted, and what was wrong."""

    def __init__(self, stack: Stack, dice: random.Random) -> None:
        self.faults: list[str] = []
        self.total: Counter[str] = Counter()
        self._stack = stack
        self._dice = dice
        self._connections = stack.connect()
        self._streaming: list[tuple[Org, str]] = []
        with self._connections.transaction() as tx:
            tx.sql.execute(text(_WITNESS))

    @property
    def said(self) -> str:
        counted = ", ".join(f"{number:,} {name}" for name, number in sorted(self.total.items()))
        return f"{counted}; {len(self.faults)} faults"

    def round(self, number: int) -> None:
        """Let all callers go, kill two processes among them, and compare the counts."""
        self._stack.wait_ready()
        runs, streams = (self._org(f"{kind}-{number}") for kind in ("runs", "streams"))
        requests = self._org(f"requests-{number}", org_requests_per_minute=REQUESTS)
        made = self._ask(streams.keys[0], "POST", "/v1/runs", SCHEDULED)
        run_id = json.loads(made.body)["run_id"]
        self._streaming.append((streams, run_id))
        began = self._begin_window(requests)
        count, accepted = Count(), Counter[int]({200: began})

        ended = threading.Event()
        seeds = [self._dice.getrandbits(64) for _ in range(CALLERS)]
        calls: list[Callable[[random.Random, int], None]] = [
            lambda dice, n: self._create(runs.keys[n % 2], dice),
            lambda dice, n: self._open(streams.keys[n % 2], run_id, count, dice),
            lambda dice, n: self._request(requests.keys[n % 2], accepted, count.lock),
        ]
        threads = [
            threading.Thread(target=_repeat, args=(call, random.Random(seed), n, ended))
            for n, seed in enumerate(seeds)
            for call in calls
        ]
        for thread in threads:
            thread.start()
        for member in self._dice.sample(
            [self._dice.choice(self._stack.web), self._dice.choice(self._stack.workers)], 2
        ):
            time.sleep(self._dice.uniform(0.2, SECONDS / 4))
            member.kill()
            self.total["kills"] += 1
        time.sleep(SECONDS / 2)
        ended.set()
        for thread in threads:
            thread.join()
        self._stack.wait_ready()
        self._judge(number, runs, count, accepted)

    def look_for_leaks(self) -> None:
        """Open as many streams as each org may have: all of them get a place again, no more."""
        for org, run_id in self._streaming:
            deadline = time.monotonic() + FREE_SECONDS
            while (found := self._places(org, run_id)) != (KEY_STREAMS, ORG_STREAMS):
                if time.monotonic() > deadline:
                    self.faults.append(f"{org.id}: {found} streams can be opened, of key and org")
                    break
                time.sleep(1)
            else:
                self.total["orgs with all streams free again"] += 1

    def judge_load(self, rounds: int) -> None:
        """Note a fault for each limit that was reached in less than half of the rounds."""
        for what in ("runs of an org", "streams of an org", "requests of an org"):
            if 2 * (used := self.total[f"rounds that used all {what}"]) < rounds:
                self.faults.append(f"{used} of {rounds} rounds used all {what}: that shows little")

    # ---- callers --------------------------------------------------------------------------

    def _create(self, key: str, dice: random.Random) -> None:
        steps = {"say": "a b c", "delay_ms": dice.randint(20, 300)}
        body = {"message": json.dumps({"script": [steps]})}
        answer = self._ask(key, "POST", "/v1/runs", body)
        self._expect(answer.status, (201, 429), answer.body)
        self.total["runs created" if answer.status == 201 else "runs refused"] += 1
        time.sleep(dice.uniform(0, 0.05))

    def _open(self, key: str, run_id: str, count: Count, dice: random.Random) -> None:
        with self._connect() as sock:
            status = _head(sock, f"/v1/runs/{run_id}/events", key)
            self._expect(status, (200, 429))
            self.total["streams opened" if status == 200 else "streams refused"] += 1
            if status != 200:
                time.sleep(dice.uniform(0, 0.05))
                return
            count.change(key, 1)
            try:
                _hold(sock, dice.uniform(*HELD_SECONDS))
            finally:
                # Before the server can know that it has a place again.
                count.change(key, -1)

    def _request(self, key: str, accepted: Counter[int], lock: threading.Lock) -> None:
        answer = self._ask(key, "GET", "/v1/me")
        self._expect(answer.status, (200, 429), answer.body)
        with lock:
            accepted[answer.status] += 1
        time.sleep(0.05)

    def _ask(self, key: str, method: str, path: str, body: Any = None) -> Answer:
        url = urlsplit(random.choice(self._stack.urls))
        http_ = http.client.HTTPConnection(str(url.hostname), url.port, timeout=30)
        try:
            data = None if body is None else json.dumps(body)
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            http_.request(method, path, data, headers)
            answer = http_.getresponse()
            limit = answer.headers.get("RateLimit", "")
            return Answer(answer.status, answer.read().decode(), limit)
        finally:
            http_.close()

    def _connect(self) -> socket.socket:
        url = urlsplit(random.choice(self._stack.urls))
        return socket.create_connection((str(url.hostname), url.port), timeout=30)

    def _expect(self, status: int, expected: tuple[int, ...], answer: str = "") -> None:
        # 503: the other processes recover what the killed ones had.
        if status == 503:
            self.total["answers with 503"] += 1
            raise ConnectionError
        if status not in expected:
            self.faults.append(f"a response has the status {status}: {answer[:200]}")

    # ---- the verdict ----------------------------------------------------------------------

    def _judge(self, number: int, runs: Org, count: Count, accepted: Counter[int]) -> None:
        with self._connections.reading() as sql:
            in_org, in_key = sql.execute(_MOST, {"org_id": runs.id}).one()
        counted = {
            "runs of an org": (in_org, ORG_RUNS),
            "runs of a key": (in_key, KEY_RUNS),
            "streams of an org": (count.most, ORG_STREAMS),
            "streams of a key": (count.most_of_key, KEY_STREAMS),
            "requests of an org": (accepted[200], REQUESTS),
        }
        self.total["requests accepted"] += accepted[200]
        self.total["requests refused"] += accepted[429]
        for what, (most, limit) in counted.items():
            # A killed process, or one that responds with 503, takes requests that nobody gets.
            is_used = accepted[429] > 0 if "requests" in what else most == limit
            self.total[f"rounds that used all {what}"] += is_used
            if most > limit:
                self.faults.append(f"round {number}: {most} {what}, of {limit} at most")
        wait_until(lambda: self._left(runs) == 0, FREE_SECONDS, "all runs have ended")
        self._refill(number, runs)

    def _left(self, org: Org) -> int:
        with self._connections.reading() as sql:
            return int(sql.scalar(_LEFT, {"org_id": org.id}) or 0)

    def _refill(self, number: int, org: Org) -> None:
        """Create as many runs as there are places: no more, and no fewer."""
        first = self._fitting(org.keys[0], KEY_RUNS)
        second = self._fitting(org.keys[1], ORG_RUNS - first)
        if (first, first + second) != (KEY_RUNS, ORG_RUNS):
            self.faults.append(f"round {number}: {first} of a key and {second} fit when all ended")

    def _fitting(self, key: str, most: int) -> int:
        """Return how many runs are created by requests for one more than `most`."""
        created = asked = 0
        while asked <= most:
            status = self._ask(key, "POST", "/v1/runs", SCHEDULED).status
            created += status == 201
            asked += status != 503
        return created

    def _places(self, org: Org, run_id: str) -> tuple[int, int]:
        """Open streams with each key until one is refused; count those of the first, and all."""
        found: list[int] = []
        sockets: list[socket.socket] = []
        for key in org.keys:
            for _ in range(ORG_STREAMS + 1):
                sockets.append(self._connect())
                if _head(sockets[-1], f"/v1/runs/{run_id}/events", key) != 200:
                    break
            else:
                sockets.append(self._connect())
            found.append(len(sockets) - 1 - sum(found))
            sockets.pop().close()
        for sock in sockets:
            sock.close()
        return found[0], sum(found)

    # ---- orgs -----------------------------------------------------------------------------

    def _org(self, name: str, **limits: int) -> Org:
        with self._connections.transaction() as tx:
            org_id = accounts.create_org(tx, name)
            user_id = accounts.create_user(
                tx,
                org_id=org_id,
                role="owner",
                login=name,
                email=f"{name}@example.com",
                password_hash="-",  # nobody can log in
            )
            permissions = PERMISSIONS_OF_ROLE["owner"]
            owner = Actor(org_id=org_id, user_id=user_id, role="owner", permissions=permissions)
            if limits:
                org_settings.change(tx, org_id, limits)
            return Org(org_id, [api_keys.create(tx, owner, name=one)[1] for one in "ab"])

    def _begin_window(self, org: Org) -> int:
        """Wait until a window has enough time left; return how many requests that took of it."""
        while True:
            answer = self._ask(org.keys[0], "GET", "/v1/me")
            found = _REMAINING.search(answer.limit)
            assert found is not None, answer
            if int(found[2]) >= WINDOW_SECONDS:
                return 1
            time.sleep(int(found[2]) + 1)


def _repeat(
    call: Callable[[random.Random, int], None],
    dice: random.Random,
    number: int,
    ended: threading.Event,
) -> None:
    while not ended.is_set():
        # The process that it has asked may have been killed, and may not be there yet.
        try:
            call(dice, number)
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)


def _head(sock: socket.socket, path: str, key: str) -> int:
    """Open a stream; return the status of the response, of which only the head has been read."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
    sock.sendall(request.encode())
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := sock.recv(4096)):
            raise ConnectionError
        head += data
    return int(head[9:12])


def _hold(sock: socket.socket, seconds: float) -> None:
    """Keep a stream open, unless the server ends it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([sock], [], [], left)
        with suppress(ConnectionError):
            if ready and not sock.recv(65536):
                return


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.limit_losses", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
