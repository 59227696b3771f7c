"""Costs of the projections beside the native stream, in the same run of the service."""

import http.client
import json
import re
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from bench.service import Service
from bench.silent_vendor import SilentVendor

RUNS, COUNTS = 6, 150
IDLE_STREAMS = 400
STOPS = 50
REST_SECONDS = 8.0  # longer than until streams are parked
_SENT_AT = re.compile(rb"\d+:(\d{10}\.\d{4}) ")
#: What marks the lines that bring a piece of text; the text as a whole follows in others.
_DELTAS = (b"message.delta", b"text-delta", b"output_text.delta", b"TEXT_MESSAGE_CONTENT")


def measure() -> Iterator[str]:
    """Measure delivery, memory per idle stream, and the time from a stop to the vendor."""
    with TemporaryDirectory(prefix="arkloop-bench-") as folder, SilentVendor() as vendor:
        routes = Path(folder, "routes.yaml")
        routes.write_text(
            "routes:\n  - {id: silent, provider: openai, model: m, context_tokens: 128000,"
            f" base_url: {vendor.url}/streaming/v1, prices: {{input: 0, output: 0}}}}\n"
        )
        with Service(environ={"ARKLOOP_ROUTES": str(routes)}) as service:
            client = Client(service)
            yield from delivery(client)
            yield from memory(client, service)
            yield from stops(client, vendor)


class Client:
    """Requests with the service's key."""

    def __init__(self, service: Service) -> None:
        self.address = urlsplit(service.urls[0]).netloc
        self._headers = {"Authorization": f"Bearer {service.api_key}"}

    def open(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=120)
        headers = {**self._headers, "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        response = connection.getresponse()
        assert response.status < 300, (path, response.status, response.read())
        return response

    def chat(self, text: str, **fields: Any) -> tuple[str, http.client.HTTPResponse]:
        """Send a message to a new chat; returns its id and the open stream."""
        chat = secrets.token_urlsafe(9)
        parts = [{"type": "text", "text": text}]
        message = {"id": "m", "role": "user", "parts": parts}
        return chat, self.open("POST", "/v1/ui/chat", {"id": chat, "messages": [message], **fields})


def _streams(client: Client, chat: str, run_id: str) -> dict[str, Callable[[], Any]]:
    """Return what opens a stream of the chat's run, by protocol."""
    response = f"/v1/responses/resp_{UUID(run_id).hex}?stream=true"
    connect = {"threadId": chat, "runId": "joins", "messages": []}
    return {
        "native": lambda: client.open("GET", f"/v1/runs/{run_id}/events"),
        "AI SDK": lambda: client.open("GET", f"/v1/ui/chat/{chat}/stream"),
        "Responses": lambda: client.open("GET", response),
        "AG-UI": lambda: client.open("POST", "/v1/agui/connect", connect),
    }


def delivery(client: Client) -> Iterator[str]:
    """Follow each run by all protocols; the text has the time at which it was said."""
    seconds: dict[str, list[float]] = defaultdict(list)
    text = json.dumps({"script": [{"count": COUNTS, "delay_ms": 20}]})
    with ThreadPoolExecutor(4 * RUNS) as pool:
        for number in range(RUNS):
            chat, started = client.chat(text)
            streams = list(_streams(client, chat, started.headers["x-workflow-run-id"]).items())
            # The first to open a stream has no advantage.
            for name, opened in streams[number % 4 :] + streams[: number % 4]:
                pool.submit(_follow, opened(), seconds[name])
            started.close()
    percentiles = {}
    for name, values in seconds.items():
        cut = quantiles(values, n=100)
        percentiles[name] = cut[98]
        shown = f"p50 {cut[49] * 1000:.1f} ms, p99 {cut[98] * 1000:.1f} ms of {len(values)}"
        yield f"delivery, {name}: {shown}"
    for name in ("AI SDK", "Responses", "AG-UI"):
        ratio = percentiles[name] / percentiles["native"]
        yield f"delivery, {name}: p99 is {ratio:.2f} × that of the native stream"


def _follow(stream: http.client.HTTPResponse, seconds: list[float]) -> None:
    """Note how long each piece of text took that was said after the stream was opened."""
    rest, opened_at = b"", time.time()
    while piece := stream.read1(65536):
        now = time.time()
        *lines, rest = (rest + piece).split(b"\n")
        deltas = [line for line in lines if any(mark in line for mark in _DELTAS)]
        said = [float(at) for line in deltas for at in _SENT_AT.findall(line)]
        seconds += [now - at for at in said if at > opened_at]


def memory(client: Client, service: Service) -> Iterator[str]:
    """Open idle streams of one run by all protocols; the first ones are not counted."""
    said = json.dumps({"script": [{"say": "Well."}, {"hang": 100_000}]})
    chat, first = client.chat(said)
    streams = _streams(client, chat, first.headers["x-workflow-run-id"])
    kept = [open_() for open_ in streams.values() for _ in range(100)]
    for name, open_ in [*streams.items(), *streams.items()]:
        time.sleep(REST_SECONDS)
        before = sum(service.memory("web"))
        opened = [open_() for _ in range(IDLE_STREAMS)]
        time.sleep(REST_SECONDS)
        grown = (sum(service.memory("web")) - before) / IDLE_STREAMS / 1024
        yield f"memory per idle stream, {name}: {grown:.1f} KiB, of {IDLE_STREAMS}"
        kept += opened
    for response in [*kept, first]:
        response.close()
    client.open("POST", f"/v1/ui/chat/{chat}/stop").read()


def stops(client: Client, vendor: SilentVendor) -> Iterator[str]:
    """Reload in the middle of an answer, then stop it."""
    seconds = []
    for _ in range(STOPS):
        chat, stream = client.chat("Hello", route_id="silent")
        vendor.reached.get(timeout=20)
        stream.close()
        reloaded = client.open("GET", f"/v1/ui/chat/{chat}/stream")
        reloaded.read1(10)
        threading.Thread(target=_follow, args=(reloaded, []), daemon=True).start()
        time.sleep(0.03)
        sent_at = time.perf_counter()
        client.open("POST", f"/v1/ui/chat/{chat}/stop").read()
        seconds.append(vendor.gone.get(timeout=20) - sent_at)
    ordered = sorted(seconds)
    shown = ", ".join(
        f"{name} {value * 1000:.0f} ms"
        for name, value in [
            ("p50", ordered[len(ordered) // 2]),
            ("p99", quantiles(seconds, n=100)[98]),
            ("max", ordered[-1]),
        ]
    )
    yield f"stop after a reload → the vendor's socket is closed: {shown} of {len(seconds)}"
