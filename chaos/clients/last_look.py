"""The last look at everything that a load made: each run, each replay, each thread, each effect."""

import asyncio
import random
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from arkloop.shared import ids
from chaos.clients.client import Access, Answer, Client, GaveUp, Request
from chaos.clients.event_stream import frames_of
from chaos.clients.follower import EVENTS

ENDED = ("completed", "failed", "cancelled")
AT_ONCE = 8
POLL_SECONDS = 0.2
MESSAGES_OF_A_PAGE = 200
#: Of these a stranger must not learn whether the object exists: method, path, body, of a thread.
PROBES: tuple[tuple[str, str, Any, bool], ...] = (
    ("GET", "/v1/runs/{id}", None, False),
    ("GET", EVENTS, None, False),
    ("POST", "/v1/runs/{id}:cancel", None, False),
    ("POST", "/v1/runs/{id}/input", {"content": "hello"}, False),
    ("GET", "/v1/threads/{id}", None, True),
    ("GET", "/v1/threads/{id}/messages", None, True),
    ("GET", "/v1/threads/{id}/runs", None, True),
    ("POST", "/v1/threads/{id}/runs", {"route_id": "scripted"}, True),
)


class LastLook:
    """It only reads; what it sees goes to the journal."""

    def __init__(self, access: Access, token: str, rng: random.Random) -> None:
        self._access = access
        self._token = token
        self._rng = rng
        self._deadline = 0.0
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def take(
        self,
        threads: Mapping[str, str],
        *,
        deadline: float,
        other_token: str,
        probes: int,
        sink: Path,
    ) -> None:
        """Look at these runs (each with its thread) within `deadline` seconds."""
        self._deadline = time.monotonic() + deadline
        async with asyncio.TaskGroup() as group:
            for run_id in threads:
                group.create_task(self._run(run_id))
        async with asyncio.TaskGroup() as group:
            for thread_id in sorted(set(threads.values())):
                group.create_task(self._messages(thread_id))
        if other_token:
            chosen = self._rng.sample(sorted(threads.items()), min(probes, len(threads)))
            for run_id, thread_id in chosen:
                await self._stranger(other_token, run_id, thread_id)
        # Last: a run that has ended appends nothing any more.
        if sink.exists():
            for line in sink.read_text().splitlines():
                self._access.journal.write("effect", key=line)

    async def _run(self, run_id: str) -> None:
        client = self._client(self._token)
        while True:
            async with self._slots:
                answer = await self._ask(client, Request("GET", "/v1/runs/{id}", run_id))
            if answer is None:
                return
            ended = answer.body["status"] in ENDED
            if ended or time.monotonic() > self._deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        self._access.journal.write("run", run_id=run_id, body=answer.body)
        self._access.tally.statuses[answer.body["status"]] += 1
        async with self._slots:
            for url in self._access.servers():
                await self._replay(client, run_id, url)
            if ended:
                await self._come_back(client, run_id, answer.body["last_seq"])

    async def _replay(self, client: Client, run_id: str, url: str) -> None:
        request = Request("GET", EVENTS, run_id, query="?follow=false")
        answer = await self._ask(client, request, url=url)
        if answer is not None:
            lines = [frame.line for frame in frames_of(answer.content)]
            self._access.journal.write("replay", run_id=run_id, url=url, lines=lines)

    async def _come_back(self, client: Client, run_id: str, last_seq: int) -> None:
        headers = {"Last-Event-ID": str(last_seq)}
        request = Request("GET", EVENTS, run_id, headers=headers)
        answer = await self._ask(client, request, wanted=(200, 204))
        if answer is not None:
            self._access.journal.write(
                "reconnect_after_end",
                run_id=run_id,
                last_event_id=last_seq,
                status=answer.status,
            )

    async def _messages(self, thread_id: str) -> None:
        client = self._client(self._token)
        query = f"?limit={MESSAGES_OF_A_PAGE}"
        request = Request("GET", "/v1/threads/{id}/messages", thread_id, query=query)
        async with self._slots:
            answer = await self._ask(client, request)
        if answer is not None:
            self._access.journal.write("messages", thread_id=thread_id, body=answer.body)

    async def _stranger(self, token: str, run_id: str, thread_id: str) -> None:
        client = self._client(token)
        for method, template, body, of_thread in PROBES:
            ours = thread_id if of_thread else run_id
            # A stream that is wrongly opened would not end while its run lives.
            query = "?follow=false" if template == EVENTS else ""
            try:
                seen, unknown = [
                    await client.until(
                        Request(method, template, object_id, body, query=query),
                        patience=self._left(),
                    )
                    for object_id in (ours, str(ids.new_id()))
                ]
            except GaveUp as error:
                self._access.surprise(str(error))
                continue
            self._access.journal.write(
                "foreign",
                path=template,
                status=seen.status,
                body=_without_trace(seen),
                unknown_status=unknown.status,
                unknown_body=_without_trace(unknown),
            )

    async def _ask(
        self, client: Client, request: Request, *, url: str = "", wanted: Collection[int] = (200,)
    ) -> Answer | None:
        """Return the response; None, and a surprise, if it is another one until the deadline."""
        try:
            return await client.until(request, url=url, wanted=wanted, patience=self._left())
        except GaveUp as error:
            self._access.surprise(f"{request.object_id}: {error}")
            return None

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _client(self, token: str) -> Client:
        return Client(self._access, token, random.Random(f"{self._rng.random()}"))


def _without_trace(answer: Answer) -> Any:
    body = answer.body
    if not isinstance(body, dict):
        return answer.content.decode(errors="replace")
    return {name: value for name, value in body.items() if name != "trace_id"}
