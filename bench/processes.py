"""Two web processes and two workers against one of each, and workers that give way or do not."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from arkloop.shared import machine
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from bench.bursts import burst
from bench.bursts import figures as burst_figures
from bench.create import CLIENTS, Creation, create
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Loop
from bench.service import Service

#: How many of each, with which niceness of the workers.
SETUPS = ((1, 0), (1, Settings.worker_niceness), (2, 0), (2, Settings.worker_niceness))
ROUNDS = 3
CREATED_RUNS = 1200
BURST_RUNS = 200
WARM_UP_RUNS = 300
SHORT_CREATED_RUNS = 100
SHORT_BURST_RUNS = 20


@dataclass(slots=True)
class Setup:
    """A service with as many web processes as workers, and what was created in it."""

    processes: int
    niceness: int
    service: Service
    connections: Connections
    creations: list[Creation] = field(default_factory=list)

    @property
    def name(self) -> str:
        way = "that give way" if self.niceness else "of equal rank"
        return f"web processes and workers {way}"

    @property
    def rate(self) -> float:
        return percentile([found.rate for found in self.creations], 0.5)

    @property
    def is_default(self) -> bool:
        fits = machine.web_processes(machine.cores())
        return self.processes == fits and self.niceness == Settings.worker_niceness


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure runs created by 32 clients, in turn, then a burst."""
    runs, at_once = (SHORT_CREATED_RUNS, SHORT_BURST_RUNS) if short else (CREATED_RUNS, BURST_RUNS)
    with ExitStack() as stack:
        loop = Loop()
        setups = [_started(stack, *each) for each in SETUPS]
        for setup in setups:
            create(loop, setup.service, setup.connections, WARM_UP_RUNS, CLIENTS)
        for _ in range(1 if short else ROUNDS):
            for setup in setups:
                found = create(loop, setup.service, setup.connections, runs, CLIENTS)
                setup.creations.append(found)
        for setup in setups:
            yield from _figures(setup)
            at_once_found = burst(loop, setup.service, setup.connections, at_once)
            scale = ("of each", float(setup.processes))
            yield from burst_figures(f"{setup.name}: burst of {at_once}", at_once_found, scale)
        yield from _default(setups)


def _started(stack: ExitStack, processes: int, niceness: int) -> Setup:
    environ = {"ARKLOOP_WORKER_NICENESS": str(niceness)}
    service = stack.enter_context(Service(web=processes, workers=processes, environ=environ))
    return Setup(processes, niceness, service, service.connect())


def _figures(setup: Setup) -> Iterator[Figure]:
    scale, creations = ("of each", float(setup.processes)), setup.creations
    count = sum(found.runs for found in creations)
    finished = percentile([found.finished_rate for found in creations], 0.5)
    last = percentile([found.latency["p99"] for found in creations], 0.5)
    yield Figure(
        name=f"{setup.name}: create runs, {CLIENTS} clients",
        unit="requests/s",
        numbers={"rate": setup.rate},
        count=count,
        scale=scale,
        note=f"p99 {last:.0f} ms",
    )
    yield Figure(
        name=f"{setup.name}: first POST → last end",
        unit="runs/s",
        numbers={"finished": finished},
        count=count,
        scale=scale,
        note=creations[-1].cpu,
    )
    yield Figure(
        name=f"{setup.name}: lost",
        unit="runs",
        numbers={"lost": sum(found.lost for found in creations)},
        count=count,
        at_most={"lost": 0},
        scale=scale,
        is_promise=True,
    )


def _default(setups: Sequence[Setup]) -> Iterator[Figure]:
    """Compare what `arkloop dev` starts on this machine, if it is among them, with the best."""
    for setup in setups:
        if setup.is_default:
            yield Figure(
                name=f"the default, {setup.processes} of each: create runs, {CLIENTS} clients",
                unit="requests/s",
                numbers={"rate": setup.rate},
                count=sum(found.runs for found in setup.creations),
                at_least={"ratio": 0.9},
                limit=Limit(name="the best", of="rate", value=max(each.rate for each in setups)),
            )
