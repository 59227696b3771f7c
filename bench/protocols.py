"""Streams of other protocols, cut at random bytes: is a frame lost, doubled or changed?

    .venv/bin/python -m bench.protocols [--cuts 200] [--seed 1]

Runs stream through OpenAI's Responses API and through AG-UI. Each connection is closed after a
random number of bytes, and the client continues after its last whole frame; in every fourth run the
worker is killed meanwhile. In the end the frames must be those of an uninterrupted stream. Exit
status 1: any run has a fault.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from bench.service import Service

ENVIRON = {
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
}
#: Of every this many runs one loses its worker.
KILL_EVERY = 4
MOST_BYTES = 8_000
SECONDS = 90.0
SCRIPT = [
    {"think": "Let me think about it."},
    {"say": "This is taken back. ", "delay_ms": 5},
    {"error": "disconnect", "times": 1},
    {"tool": "calculator", "args": {"expression": "6*7"}},
    {"count": 60, "delay_ms": 15},
]
MESSAGE = json.dumps({"script": SCRIPT})


@dataclass
class Follower:
    """A client of one run: the frames that it has got whole, and its cuts."""

    frames: list[bytes]
    cuts: int = 0


class Responses:
    """OpenAI's Responses API, by its sequence numbers."""

    name = "responses"

    def start(self, http: httpx.Client) -> str:
        body = {"model": "scripted", "input": MESSAGE, "background": True}
        return str(http.post("/v1/responses", json=body).raise_for_status().json()["id"])

    def request(self, http: httpx.Client, run: str, frames: list[bytes]) -> httpx.Request:
        after = {"starting_after": len(frames) - 1} if frames else {}
        path = f"/v1/responses/{run}"
        return http.build_request("GET", path, params={"stream": "true", **after})

    def is_last(self, frame: bytes) -> bool:
        return frame.startswith(b"event: response.completed")


class Agui:
    """AG-UI, by the ids of its events."""

    name = "agui"

    def __init__(self) -> None:
        self._count = 0

    def start(self, http: httpx.Client) -> str:
        self._count += 1
        message = {"id": "m1", "role": "user", "content": MESSAGE}
        thread = f"chat-{self._count}"
        body = {"threadId": thread, "runId": f"run-{self._count}", "messages": [message]}
        with http.stream("POST", "/v1/agui", json=body) as response:
            response.raise_for_status()
        found = http.get("/v1/threads", params={"external_id": thread}).json()
        return f"{thread} {found[0]['active_run_id']}"

    def request(self, http: httpx.Client, run: str, frames: list[bytes]) -> httpx.Request:
        thread, run_id = run.split()
        cursor = f"{run_id}.0.{len(frames)}"
        body = {"threadId": thread, "runId": "joins", "messages": []}
        headers = {"Last-Event-ID": cursor}
        return http.build_request("POST", "/v1/agui/connect", json=body, headers=headers)

    def is_last(self, frame: bytes) -> bool:
        return b'"type":"RUN_FINISHED"' in frame


def main() -> int:
    options = _options()
    faults, began = 0, time.monotonic()
    with Service(environ=ENVIRON) as service:
        http = httpx.Client(
            base_url=service.urls[0],
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=30,
        )
        for protocol in (Responses(), Agui()):
            chance = random.Random(f"{protocol.name} {options.seed}")
            cuts = runs = kills = frames = 0
            while cuts < options.cuts or runs < 2 * KILL_EVERY:
                runs += 1
                is_killed = runs % KILL_EVERY == 0
                run = protocol.start(http)
                follower = _follow(protocol, http, run, chance, _killer(service, is_killed))
                whole = _follow(protocol, http, run, None, lambda: None)
                if follower.frames != whole.frames:
                    faults += 1
                    print(f"{protocol.name} {run}: {_difference(follower, whole)}", flush=True)
                cuts, kills = cuts + follower.cuts, kills + is_killed
                frames += len(whole.frames)
            print(
                f"{protocol.name}: {runs} runs, {kills} lost workers, {cuts} cuts, {frames} frames"
            )
    print(f"{faults} runs with faults, {time.monotonic() - began:.0f} s")
    return int(faults > 0)


def _follow(
    protocol: Any,
    http: httpx.Client,
    run: str,
    chance: random.Random | None,
    kill: Callable[[], None],
) -> Follower:
    """Follow a run to its end; with `chance` each connection is cut after some bytes."""
    follower = Follower([])
    deadline = time.monotonic() + SECONDS
    while not (follower.frames and protocol.is_last(follower.frames[-1])):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run} did not end")
        most = chance.randint(1, MOST_BYTES) if chance is not None else sys.maxsize
        try:
            for frame in _frames(http, protocol.request(http, run, follower.frames), most):
                follower.frames.append(frame)
        except httpx.HTTPError:
            pass  # as after a cut
        follower.cuts += chance is not None
        if follower.cuts == 5:
            kill()
    return follower


def _frames(http: httpx.Client, request: httpx.Request, most: int) -> Iterator[bytes]:
    """Yield the whole frames of the first `most` bytes of a response."""
    buffer, left = b"", most
    response = http.send(request, stream=True)
    try:
        response.raise_for_status()
        for piece in response.iter_raw():
            buffer += piece[:left]
            left -= len(piece)
            *whole, buffer = buffer.split(b"\n\n")
            for frame in whole:
                data = b"\n".join(line for line in frame.split(b"\n") if _is_of_frame(line))
                if data and data != b"data: [DONE]":
                    yield data
            if left <= 0:
                return
    finally:
        response.close()


def _is_of_frame(line: bytes) -> bool:
    return line.startswith((b"event: ", b"data: ", b"id: "))


def _killer(service: Service, is_killed: bool) -> Callable[[], None]:
    def kill() -> None:
        if not is_killed:
            return
        service.end("worker")
        service.start("worker")

    return kill


def _difference(found: Follower, whole: Follower) -> str:
    numbers = range(min(len(found.frames), len(whole.frames)))
    first = next((n for n in numbers if found.frames[n] != whole.frames[n]), len(numbers))
    return f"{len(found.frames)} frames in place of {len(whole.frames)}, first other one {first}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
