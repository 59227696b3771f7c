"""Two web processes and two workers against one of each, on the same machine."""

from collections.abc import Iterator

from bench.bursts import burst
from bench.bursts import figures as burst_figures
from bench.create import CLIENTS, create, lost_figure
from bench.figure import Figure
from bench.http_clients import Loop
from bench.service import Service

OF_EACH = (1, 2)
CREATED_RUNS = 2000
BURST_RUNS = 200
WARM_UP_RUNS = 100
SHORT_CREATED_RUNS = 100
SHORT_BURST_RUNS = 20


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure runs created by 32 clients, then a burst; all with the default settings."""
    runs, at_once = (SHORT_CREATED_RUNS, SHORT_BURST_RUNS) if short else (CREATED_RUNS, BURST_RUNS)
    for processes in OF_EACH:
        scale = ("of each", float(processes))
        with Service(web=processes, workers=processes) as service:
            loop, connections = Loop(), service.connect()
            create(loop, service, connections, WARM_UP_RUNS, CLIENTS)
            created = create(loop, service, connections, runs, CLIENTS)
            yield Figure(
                name=f"web processes and workers: create runs, {CLIENTS} clients",
                unit="requests/s",
                numbers={"rate": created.rate},
                count=runs,
                scale=scale,
                note=f"p99 {created.latency['p99']:.0f} ms",
            )
            yield Figure(
                name="web processes and workers: first POST → last end",
                unit="runs/s",
                numbers={"finished": created.finished_rate},
                count=runs,
                scale=scale,
                note=created.cpu,
            )
            yield lost_figure("web processes and workers: lost", created, scale)
            found = burst(loop, service, connections, at_once)
        yield from burst_figures(f"web processes and workers: burst of {at_once}", found, scale)
