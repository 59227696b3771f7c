"""The cost of row-level security: two web processes on one database, one of them behind the wall.

They take turns, so that whatever else happens on the machine happens to both.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import psutil
from sqlalchemy import create_engine, make_url, text

from arkloop.shared.storage import row_security, service_role
from bench.conversations import prepare
from bench.figure import Figure, Limit
from bench.http_clients import Loop, Request, Target, call_all
from bench.service import Service

ROLE = "arkloop_service"
CLIENTS = 8
BATCH = 100
BATCHES = 8  # of each process
SHORT_BATCHES = 2
#: Runs of the org that are there before.
STORED = 1_000
SHORT_STORED = 100


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Create, list and read runs through both, in batches that take turns."""
    batches, stored = (SHORT_BATCHES, SHORT_STORED) if short else (BATCHES, STORED)
    with Service(web=1) as service:
        url = put_up(service)
        service.start("web", {"ARKLOOP_DATABASE_URL": url})
        loop = Loop()
        targets = [Target(one, service.api_key) for one in service.urls]
        loop_targets = targets[:1]
        service.wait_for_web(service.urls[-1])
        runs = _create(loop, loop_targets, stored)
        count = 2 * (batches + 1) * BATCH
        threads = iter(prepare(loop, loop_targets, count, "hello"))
        kinds: dict[str, Iterator[Request]] = {
            "create": (("POST", f"/v1/threads/{one}/runs", {}) for one in threads),
            "list runs": iter([("GET", "/v1/runs?limit=50", None)] * count),
            "filter runs": iter([("GET", "/v1/runs?limit=50&status=running", None)] * count),
            "list threads": iter([("GET", "/v1/threads?limit=50", None)] * count),
            "read a run": (("GET", f"/v1/runs/{runs[n % len(runs)]}", None) for n in range(count)),
        }
        for name, requests in kinds.items():
            yield from _compare(service, loop, targets, name, requests, batches)


def put_up(service: Service) -> str:
    """Put the wall up; returns the database's URL for a role that it is before."""
    engine = create_engine(service.postgres.url)
    with engine.begin() as sql:
        sql.execute(text(f"CREATE ROLE {ROLE} LOGIN"))
        service_role.grant(sql, ROLE)
    row_security.enforce(engine, for_owner=False)
    engine.dispose()
    url = make_url(service.postgres.url).set(username=ROLE, drivername="postgresql")
    return url.render_as_string(hide_password=False)


def _create(loop: Loop, targets: list[Target], count: int) -> list[str]:
    threads = prepare(loop, targets, count, "hello")
    requests: list[Request] = [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]
    made = call_all(loop, targets, requests, connections=CLIENTS)
    return [json.loads(body)["run_id"] for _, body, _ in made]


def _compare(
    service: Service,
    loop: Loop,
    targets: Sequence[Target],
    name: str,
    requests: Iterator[Request],
    batches: int,
) -> Iterator[Figure]:
    """Compare the rates, and the CPU of the web process and of Postgres."""
    plain, walled = [_Side(service, loop, target, n) for n, target in enumerate(targets)]
    for number in range(batches + 1):
        for side in (plain, walled) if number % 2 else (walled, plain):
            side.answer(list(islice(requests, BATCH)), counts=number > 0)
    yield Figure(
        name=f"{name}: rate behind the wall",
        unit="requests/s",
        numbers={"rate": walled.rate},
        count=walled.count,
        at_least={"ratio": 0.9},
        limit=Limit(name="without it", of="rate", value=plain.rate),
        note=f"{plain.rate:.0f} without",
    )
    for what in ("web", "postgres"):
        yield Figure(
            name=f"{name}: CPU of {what} behind the wall",
            unit="ms",
            numbers={"cpu": walled.cpu(what)},
            count=walled.count,
            limit=Limit(name="without it", of="cpu", value=plain.cpu(what)),
            note=f"{plain.cpu(what):.2f} without",
        )


class _Side:
    """A web process, and what its requests have cost."""

    def __init__(self, service: Service, loop: Loop, target: Target, number: int) -> None:
        self._service, self._loop, self._target = service, loop, target
        self._pid = service.serving("web")[number]
        self._seconds: list[float] = []
        self._spent = {"web": 0.0, "postgres": 0.0}
        self.count = 0

    def answer(self, requests: Sequence[Request], *, counts: bool) -> None:
        """Make the requests; one that `counts` is not the first, of a process that is cold."""
        before, began = self._cpu(), time.perf_counter()
        answers = call_all(self._loop, [self._target], requests, connections=CLIENTS)
        seconds, after = time.perf_counter() - began, self._cpu()
        statuses = {status for status, _, _ in answers}
        assert statuses <= {200, 201}, statuses
        if counts:
            self.count += len(requests)
            self._seconds.append(seconds)
            for what in after:
                self._spent[what] += after[what] - before[what]

    @property
    def rate(self) -> float:
        """The requests per second of the median batch."""
        return BATCH / statistics.median(self._seconds)

    def cpu(self, what: str) -> float:
        """Return the milliseconds of CPU of a request."""
        return self._spent[what] / self.count * 1000

    def _cpu(self) -> dict[str, float]:
        times = psutil.Process(self._pid).cpu_times()
        return {"web": times.user + times.system, "postgres": self._service.cpu("postgres")}
