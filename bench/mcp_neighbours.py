"""The effect on one org's MCP calls of another org whose MCP servers do their worst."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import Queue
from pathlib import Path
from uuid import UUID

import psutil

from arkloop.shared.ids import new_id
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server
from bench.figure import Figure, percentile
from bench.hostile_mcp_server import HostileMcpServer
from bench.noise import Stop, beside, processes

#: Of the p99 alone: what the quiet org may notice.
TARGET_RATIO = 2.0
#: Of all processes that speak MCP for the worker.
MAX_MIB = 700.0
SILENT_SERVERS = 70
LARGE_SERVERS = 20
SETTLE_SECONDS = 3.0
LOOK_SECONDS = 0.1
PAUSE_SECONDS = 0.02
_SILENCE_SECONDS = 10.0


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure a worker's MCP client and its processes; the servers are in another process."""
    count = 50 if short else 500
    with HostileMcpServer() as good, HostileMcpServer(gives_way=True) as bad:
        client = McpClient(allowed_networks=["127.0.0.0/8"])
        try:
            bench = _Bench(client, good, bad, count)
            yield from bench.against(f"{SILENT_SERVERS} silent servers", "silent", SILENT_SERVERS)
            yield from bench.against(f"{LARGE_SERVERS} servers with wide 4 MiB", "wide", 20)
            yield from bench.against(f"{LARGE_SERVERS} servers with many values", "many", 20)
        finally:
            client.close()


class _Bench:
    def __init__(
        self, client: McpClient, good: HostileMcpServer, bad: HostileMcpServer, count: int
    ) -> None:
        self.client = client
        self.bad = bad
        self.count = count
        self.noisy = new_id()
        self.quiet = _server(f"{good.url}/quick", new_id())
        [tool] = client.tools(self.quiet)
        self.pinned = tool.hash
        self.calls(20)  # the first ones are slower

    def against(self, name: str, path: str, noisy_servers: int) -> Iterator[Figure]:
        """Measure the quiet org's calls alone and next to the noise, and the memory of both."""
        alone = _figure(f"MCP calls, {name}: alone", *self.calls(self.count))
        yield alone
        peak = processes.Queue()
        with beside(_watch, peak), self._noise(path, noisy_servers):
            times = self.calls(self.count)
        most = {"p99": TARGET_RATIO * alone.numbers["p99"], "failed": 0.0}
        note = f"the servers gave way in {self.bad.way}"
        yield replace(_figure(f"MCP calls, {name}: beside them", *times), at_most=most, note=note)
        yield Figure(
            name=f"MCP processes, {name}",
            unit="MiB",
            numbers={"peak": peak.get(), "after": _memory()},
            count=noisy_servers,
            at_most={"peak": MAX_MIB},
        )

    def calls(self, count: int) -> tuple[list[float], int]:
        """Return the milliseconds of each call, and how many failed."""
        times: list[float] = []
        failed = 0
        for _ in range(count):
            began = time.monotonic()
            try:
                self.client.call(self.quiet, "go", {}, pinned=self.pinned)
            except McpFailed:
                failed += 1
            times.append((time.monotonic() - began) * 1000)
            time.sleep(PAUSE_SECONDS)
        return times, failed

    @contextmanager
    def _noise(self, path: str, count: int) -> Iterator[None]:
        """Keep a call to each of the noisy org's servers under way."""
        stop = threading.Event()

        def ask(number: int) -> None:
            server = _server(f"{self.bad.url}/{path}/{number}", self.noisy)
            while not stop.wait(0.01):
                try:
                    [tool] = self.client.tools(server, seconds=_SILENCE_SECONDS)
                    while not stop.is_set():
                        self.client.call(server, "go", {}, pinned=tool.hash)
                except McpFailed:
                    pass

        with ThreadPoolExecutor(count) as pool:
            for number in range(count):
                pool.submit(ask, number)
            time.sleep(SETTLE_SECONDS)
            try:
                yield
            finally:
                stop.set()


def _watch(stop: Stop, peak: "Queue[float]") -> None:
    """Put the peak of the memory into `peak` at the end.

    In a process of its own: to look for processes takes Python's lock for milliseconds.
    """
    most = 0.0
    while not stop.is_set():
        most = max(most, _memory())
        time.sleep(LOOK_SECONDS)
    peak.put(most)


def _memory() -> float:
    """Return the MiB of the processes that speak MCP, with what they share counted once."""
    total = 0
    for process in psutil.process_iter(["cmdline"]):
        if "arkloop.worker.mcp.forker" in (process.info["cmdline"] or ()):
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += int(rollup.split("Pss:")[1].split()[0])
    return total / 1024


def _server(url: str, org_id: UUID) -> Server:
    return Server(org_id=org_id, config_id=new_id(), name="hostile", url=url)


def _figure(name: str, times: list[float], failed: int) -> Figure:
    numbers = {f"p{n}": percentile(times, n / 100) for n in (50, 99)}
    return Figure(name=name, unit="ms", numbers={**numbers, "failed": failed}, count=len(times))
