"""The load of a chaos run: many careful clients, who never give up on a run.

load = Load(urls, token, journal, seed=7, sink=folder / "sink", runs=200)
load.start()
...  # inject faults
load.join(120)
load.finish(other_token=token_of_another_org)
"""

import asyncio
import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.clients import last_look
from chaos.clients.client import Access, Client, GaveUp, Request, Tally, Urls
from chaos.clients.plans import WEIGHTS, Plan, plan
from chaos.clients.run_clients import SENT_AGAIN, RunClients
from chaos.journal import Journal


class Refused(Exception):
    """The service said no where it must say yes."""


class Load:
    """`runs` runs by `concurrency` clients at a time, endless if `runs` is None.

    `kinds` says how often each kind of `chaos.clients.plans` comes, `first` of which kinds the
    first runs are, `followers` how many follow each run, `hangs_up` whether they cut their streams
    themselves. `silence` must be beyond the pings of the servers, `timeout` bounds a plain request,
    `patience` all repetitions of one; in seconds.
    """

    def __init__(
        self,
        urls: Urls,
        token: str,
        journal: Journal,
        *,
        seed: int,
        sink: Path,
        runs: int | None = 100,
        concurrency: int = 20,
        kinds: Mapping[str, float] = WEIGHTS,
        first: Sequence[str] = (),
        followers: int = 2,
        hangs_up: bool = True,
        org: str = "a",
        silence: float = 5.0,
        timeout: float = 10.0,
        patience: float = 180.0,
    ) -> None:
        self.tally = Tally()
        self.journal = journal
        self._access = Access(urls, journal, self.tally, timeout, silence, patience)
        self._token = token
        self._seed = seed
        self._sink = sink
        self._runs = runs
        self._concurrency = concurrency
        self._kinds = dict(kinds)
        self._first = tuple(first)
        self._followers = followers
        self._hangs_up = hangs_up
        self._org = org
        self._created = 0
        self._stop = threading.Event()
        #: The thread of each accepted run.
        self._threads: dict[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._in_thread, name="load", daemon=True)
        self._error: BaseException | None = None

    # ---- from outside, on any thread ----

    def run(self) -> None:
        """Start, and wait until the last run was seen to its end."""
        self.start()
        self.join(None)

    def start(self) -> None:
        """Begin, on a thread of its own."""
        self._thread.start()

    def stop_creating(self) -> None:
        """Stop creating runs; those under way are followed to their end."""
        self._stop.set()

    def join(self, seconds: float | None) -> bool:
        """Wait for the end; whether it came. After `seconds` the clients are sent home."""
        self._thread.join(seconds)
        ended = not self._thread.is_alive()
        if not ended and self._loop is not None and self._main is not None:
            self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join()
        if self._error is not None:
            raise self._error
        return ended

    def finish(self, *, deadline: float = 60, other_token: str = "", probes: int = 3) -> None:
        """Look at everything a last time; each run has up to `deadline` seconds to end."""
        look = last_look.LastLook(self._access, self._token, random.Random(f"{self._seed}:look"))
        asyncio.run(
            look.take(
                self._threads,
                deadline=deadline,
                other_token=other_token,
                probes=probes,
                sink=self._sink,
            )
        )

    @property
    def accepted(self) -> int:
        """The number of runs that were accepted so far."""
        return len(self._threads)

    def summary(self) -> dict[str, Any]:
        """Return the counts of what the clients have met so far."""
        tally = self.tally
        return {
            "accepted": self.accepted,
            "statuses": dict(tally.statuses),
            "answers": dict(tally.answers),
            "unavailable": tally.answers["503"],
            "no_answers": tally.no_answers,
            "events": tally.events,
            "streams": tally.streams,
            "reconnects": tally.reconnects,
            "most_open_streams": tally.most_open_streams,
            "longest": [f"{seconds:.3f} s {what}" for seconds, what in tally.longest],
            "surprises": list(tally.surprises),
        }

    # ---- on the thread of the load ----

    def _in_thread(self) -> None:
        try:
            asyncio.run(self._all())
        except asyncio.CancelledError:
            return
        except BaseException as error:
            self._error = error

    async def _all(self) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._one_after_the_other())

    async def _one_after_the_other(self) -> None:
        while not self._stop.is_set() and (self._runs is None or self._created < self._runs):
            number = self._created
            self._created += 1
            try:
                await self._round(number)
            except (GaveUp, Refused) as error:
                self._access.surprise(f"run {number}: {error}")

    async def _round(self, number: int) -> None:
        """Create a thread, a message and a run in it, and play all that its clients do."""
        rng = random.Random(f"{self._seed}:{number}")
        kind = rng.choices(list(self._kinds), list(self._kinds.values()))[0]
        if number < len(self._first):
            kind = self._first[number]
        planned = plan(kind, f"s{self._seed}-{number}", self._sink, rng)
        client = Client(self._access, self._token, rng)
        key = f"{self._seed}-{number}-{rng.getrandbits(64):x}"
        made = await self._made(client, Request("POST", "/v1/threads", body={}, key=f"{key}-t"))
        thread_id = str(made["id"])
        said = {"content": planned.message}
        path = "/v1/threads/{id}/messages"
        await self._made(client, Request("POST", path, thread_id, said, key=f"{key}-m"))
        async with asyncio.TaskGroup() as group:
            for creator in range(1 + planned.twice):
                group.create_task(
                    self._one_run(planned, thread_id, f"{key}-{creator}", f"{number}:{creator}")
                )

    async def _one_run(self, planned: Plan, thread_id: str, key: str, name: str) -> None:
        rng = random.Random(f"{self._seed}:{name}")
        client = Client(self._access, self._token, rng)
        try:
            run_id = await self._create(client, rng, planned, thread_id, key)
        except (GaveUp, Refused) as error:
            self._access.surprise(f"run {name}: {error}")
            return
        if run_id is not None:
            people = RunClients(
                self._access,
                self._token,
                planned,
                run_id,
                f"{self._seed}:{name}:people",
                hangs_up=self._hangs_up,
            )
            await people.act(self._followers)

    async def _create(
        self, client: Client, rng: random.Random, planned: Plan, thread_id: str, key: str
    ) -> str | None:
        """Create a run and return its id; None if the other creator was first."""
        request = Request(
            "POST", "/v1/threads/{id}/runs", thread_id, {"route_id": "scripted"}, key=key
        )
        for _ in range(1 + (rng.random() < SENT_AGAIN)):
            answer = await client.until(request)
            if planned.twice and answer.code == "runs.thread_busy":
                return None
            if answer.status != 201:
                raise Refused(f"POST runs: {answer.status} {answer.code}")
            run_id = str(answer.body["run_id"])
            self._access.journal.write(
                "accepted",
                run_id=run_id,
                thread_id=thread_id,
                key=key,
                replayed=answer.headers.get("idempotency-replayed") == "true",
                org=self._org,
                expect=planned.expect,
            )
            self._threads[run_id] = thread_id
            client.go_elsewhere()
        return run_id

    async def _made(self, client: Client, request: Request) -> Any:
        answer = await client.until(request)
        if answer.status != 201:
            raise Refused(f"{request.method} {request.template}: {answer.status} {answer.code}")
        return answer.body
