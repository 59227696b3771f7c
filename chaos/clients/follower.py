"""A client that follows one run over as many connections as it takes, and often hangs up itself."""

import asyncio
import itertools
import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chaos.clients.client import FAILURES, Client, NoAnswer, OpenStream, Pauses, Request
from chaos.clients.event_stream import Frame, Frames

TERMINAL = ("run.completed", "run.failed", "run.cancelled")
EVENTS = "/v1/runs/{id}/events"
LONGEST_AWAY_SECONDS = 0.3


@dataclass
class Cut:
    """The point at which a client hangs up: after these bytes, events or seconds, whichever comes
    first.
    """

    bytes: float = float("inf")
    events: float = float("inf")
    seconds: float = float("inf")

    @classmethod
    def by_chance(cls, rng: random.Random, *, probability: float) -> "Cut":
        """Choose a cut at random; those by bytes often end in the middle of a frame."""
        if rng.random() >= probability:
            return cls()
        match rng.randrange(3):
            case 0:
                return cls(bytes=rng.randint(1, 2000))
            case 1:
                return cls(events=rng.randint(1, 10))
            case _:
                return cls(seconds=rng.uniform(0.02, 0.8))


class Follower:
    """It ends only when it has seen the run's last event."""

    def __init__(
        self,
        client: Client,
        run_id: str,
        rng: random.Random,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        *,
        name: str = "follower",
        hangs_up: bool = True,
    ) -> None:
        self.run_id = run_id
        self._name = name  # by which the checker knows its streams from others of the run
        self._client = client
        self._access = client.access
        self._rng = rng
        self._on_event = on_event
        # Nearly every follower comes back at least once, and none hangs up for ever.
        self._probabilities = [0.85, 0.5] if hangs_up else [0.0]
        self._cursor = 0
        self._ended = False

    async def follow(self) -> None:
        """Follow the run up to the terminal event and the end of the stream after it."""
        pauses = Pauses(self._rng)
        for number in itertools.count():
            self._access.tally.reconnects += number > 0
            try:
                opened = await self._client.stream(self._request())
            except NoAnswer:
                opened = None
            if not isinstance(opened, OpenStream):
                self._client.go_elsewhere()
                await pauses.next()
                continue
            before = self._cursor
            probability = self._probabilities[min(number, len(self._probabilities) - 1)]
            why = await self._read(opened, Cut.by_chance(self._rng, probability=probability))
            if self._cursor > before:
                pauses = Pauses(self._rng)
            if self._ended:
                return
            if why == "cut":
                await asyncio.sleep(self._rng.uniform(0, LONGEST_AWAY_SECONDS))
                if self._rng.random() < 0.5:
                    self._client.go_elsewhere()
            else:
                self._client.go_elsewhere()
                await pauses.next()

    def _request(self) -> Request:
        """Build a request that resumes in one of the three equivalent ways."""
        header, query = {"Last-Event-ID": str(self._cursor)}, f"?after_seq={self._cursor}"
        match self._rng.randrange(3) if self._cursor else 3:
            case 0:
                return Request("GET", EVENTS, self.run_id, headers=header)
            case 1:
                return Request("GET", EVENTS, self.run_id, query=query)
            case 2:
                return Request("GET", EVENTS, self.run_id, query="?after_seq=0", headers=header)
            case _:
                return Request("GET", EVENTS, self.run_id)

    async def _read(self, opened: OpenStream, cut: Cut) -> str:
        """Read the stream; returns why it ended: "ended", "cut" or "lost"."""
        name = str(uuid.uuid4())
        tally, journal = self._access.tally, self._access.journal
        journal.write(
            "stream_open",
            run_id=self.run_id,
            stream=name,
            after_seq=self._cursor,
            status=200,
            url=opened.url,
            follower=self._name,
        )
        tally.stream_opened()
        why = "lost"
        try:
            why = await self._read_frames(opened, cut, name)
        except FAILURES:
            pass
        except asyncio.CancelledError:
            why = "cut"
            raise
        finally:
            opened.close(rudely=why == "lost" or self._rng.random() < 0.5)
            tally.open_streams -= 1
            journal.write("stream_end", run_id=self.run_id, stream=name, why=why)
        return why

    async def _read_frames(self, opened: OpenStream, cut: Cut, name: str) -> str:
        frames = Frames()
        bytes_left, events_left = cut.bytes, cut.events
        hang_up_at = time.monotonic() + cut.seconds
        while True:
            patience = min(self._access.silence, max(0.0, hang_up_at - time.monotonic()))
            try:
                async with asyncio.timeout(patience):
                    data = await opened.read()
            except TimeoutError:
                return "cut" if time.monotonic() >= hang_up_at else "lost"
            if data is None:
                return "ended"
            if len(data) > bytes_left:
                data = data[: int(bytes_left)]
            bytes_left -= len(data)
            for frame in frames.feed(data):
                self._take(frame, name)
                events_left -= 1
                if not events_left:
                    return "cut"
            if not bytes_left or time.monotonic() >= hang_up_at:
                return "cut"

    def _take(self, frame: Frame, name: str) -> None:
        self._access.tally.events += 1
        self._access.journal.write(
            "event", run_id=self.run_id, stream=name, id=frame.id, line=frame.line
        )
        self._cursor = max(frame.id, 0)
        if '"type":"run.' not in frame.line:
            return
        try:
            event = json.loads(frame.line)
            self._ended = self._ended or event["type"] in TERMINAL
            self._on_event(event)
        except (ValueError, KeyError, TypeError):
            # The journal has it, and the checker judges it.
            return
