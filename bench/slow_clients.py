"""Requests of others while 1,000 connections are slow, of each kind, on one web process.

A connection that the server ends is opened again at once, so that there are always as many. Times
alone are taken before and after each kind, since those of a machine change.
"""

import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil

from bench import noise
from bench.conversations import script, wait_for_ends
from bench.figure import Figure, percentile
from bench.http_clients import Loop, Request, Target, call_all
from bench.service import Service

CONNECTIONS = 1_000
REQUESTS = 1_000
SHORT_CONNECTIONS = 200
SHORT_REQUESTS = 100
#: Of the p99 alone: what others may notice.
TARGET_RATIO = 2.0
#: A slow connection sends or takes a byte this often.
BEAT_SECONDS = 1.0
#: Until the first connections have reached the time limits of the server.
SETTLE_SECONDS = 12.0
SHORT_SETTLE_SECONDS = 3.0
PATIENCE_SECONDS = 60.0
#: Far more than what is in the buffers of a connection.
EVENTS = 2_000

KINDS = ("slow headers", "slow body", "slow read", "idle keep-alive")


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure one web process, and one worker for the run that is read slowly."""
    count, requests = (SHORT_CONNECTIONS, SHORT_REQUESTS) if short else (CONNECTIONS, REQUESTS)
    _allow_files(4 * count)
    with Service(web=1, workers=1) as service:
        loop, target = Loop(), Target(service.urls[0], service.api_key)
        run_id = _long_run(service, loop, target)
        _times(loop, target, requests // 2)  # a warm-up
        for kind in KINDS:
            alone = _times(loop, target, requests)
            with noise.beside(_be_slow, target, kind, run_id, count) as stop:
                _wait(service, count)
                time.sleep(SHORT_SETTLE_SECONDS if short else SETTLE_SECONDS)
                beside = _times(loop, target, requests)
                left = _connections(service)
            time.sleep(1)
            alone += _times(loop, target, requests)
            p99 = percentile(alone, 0.99)
            yield Figure(
                name=f"requests alone, before and after {kind}",
                unit="ms",
                numbers={"p50": percentile(alone, 0.5), "p99": p99},
                count=len(alone),
            )
            yield Figure(
                name=f"requests beside {count:,} connections: {kind}",
                unit="ms",
                numbers={"p50": percentile(beside, 0.5), "p99": percentile(beside, 0.99)},
                count=len(beside),
                at_most={"p99": TARGET_RATIO * p99},
                note=f"{left:,} files open in the web process at the end;"
                f" clients gave way in {stop.way}",
            )


def _long_run(service: Service, loop: Loop, target: Target) -> str:
    """Let a run write much more than the buffers of a connection hold; return its id."""
    message = script({"say": "x" * 2048, "repeat": EVENTS})
    [(status, body, _)] = call_all(loop, [target], [("POST", "/v1/runs", {"message": message})])
    assert status == 201, body
    connections = service.connect()
    wait_for_ends(connections)
    return str(json.loads(body)["run_id"])


def _times(loop: Loop, target: Target, count: int) -> list[float]:
    """Return the milliseconds of requests for a page of a list, one after the other."""
    requests: list[Request] = [("GET", "/v1/threads?limit=20", None)] * count
    answers = call_all(loop, [target], requests, connections=1)
    assert {200} == {status for status, _, _ in answers}, answers[0]
    return [seconds * 1000 for _, _, seconds in answers]


def _connections(service: Service) -> int:
    """Return how many files the web process has open, almost all of which are connections."""
    [pid] = service.serving("web")
    return int(psutil.Process(pid).num_fds())


def _wait(service: Service, count: int) -> None:
    """Wait until the slow connections are there. Raises: TimeoutError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _connections(service) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{_connections(service)} of {count} connections")
        time.sleep(0.1)


class _Slow:
    """A slow connection; `beat` is its byte of a moment."""

    def __init__(self, target: Target, kind: str, run_id: str) -> None:
        self._kind = kind
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._sock.settimeout(5)
        self._sock.connect(target.address)
        self._sock.setblocking(False)
        read = f"/v1/runs/{run_id}/events?follow=false"
        begins = {
            "slow headers": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
            "slow body": target.request("POST", "/v1/threads", {"title": "x" * 200})[:-150],
            "slow read": target.request("GET", read),
            "idle keep-alive": target.request("GET", "/healthz"),
        }
        self._sock.send(begins[kind])

    def beat(self) -> None:
        """Send or take a byte. Raises: OSError: the server has ended the connection."""
        if self._kind in ("slow headers", "slow body"):
            self._sock.send(b"x")
        elif self._kind == "slow read":
            with suppress(BlockingIOError):
                self._sock.recv(1)

    @property
    def is_over(self) -> bool:
        """True if the server has ended it; what it has sent before is taken, unless slowly."""
        if self._kind == "slow read":
            return False
        try:
            return not self._sock.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._sock.close()


def _be_slow(stop: Any, target: Target, kind: str, run_id: str, count: int) -> None:
    """Keep that many slow connections open, each replaced at its end."""
    _allow_files(4 * count)
    slow: list[_Slow] = []
    while not stop.is_set():
        with suppress(OSError):
            while len(slow) < count:
                slow.append(_Slow(target, kind, run_id))
        ended = {one for one in slow if _has_ended(one)}
        for one in ended:
            one.close()
        slow = [one for one in slow if one not in ended]
        time.sleep(BEAT_SECONDS)


def _has_ended(one: _Slow) -> bool:
    try:
        one.beat()
    except BlockingIOError:
        return False
    except OSError:
        return True
    return one.is_over


def _allow_files(count: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(count, 1024), most), most))
