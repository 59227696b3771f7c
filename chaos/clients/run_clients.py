"""Everybody around one run: those who follow it, answer its questions, or cancel it."""

import asyncio
import random
from typing import Any

from chaos.clients.client import Access, Client, GaveUp, Request
from chaos.clients.follower import Follower
from chaos.clients.plans import Plan

LATEST_FOLLOWER_SECONDS = 1.0
#: What was answered for certain is sent again so often, and must be accepted again.
SENT_AGAIN = 0.3


class RunClients:
    """The clients of one accepted run; `name` makes their random choices."""

    def __init__(
        self,
        access: Access,
        token: str,
        plan: Plan,
        run_id: str,
        name: str,
        *,
        hangs_up: bool = True,
    ) -> None:
        self._access = access
        self._token = token
        self._plan = plan
        self._run_id = run_id
        self._name = name
        self._hangs_up = hangs_up
        self._answered: set[str] = set()
        self._group = asyncio.TaskGroup()

    async def act(self, followers: int) -> None:
        """Start all clients at once, and wait until each follower has seen the end of the run."""
        async with self._group as group:
            if self._plan.cancel_after is not None:
                group.create_task(self._cancel(self._plan.cancel_after))
            for number in range(followers):
                group.create_task(self._follow(number))

    async def _follow(self, number: int) -> None:
        name = f"follower {number}"
        client, rng = self._client(name)
        if number:
            await asyncio.sleep(rng.uniform(0, LATEST_FOLLOWER_SECONDS))
        follower = Follower(
            client, self._run_id, rng, self._notice, name=name, hangs_up=self._hangs_up
        )
        await follower.follow()

    def _notice(self, event: dict[str, Any]) -> None:
        if event["type"] != "run.waiting_for_input" or not self._plan.answers:
            return
        request_id = str(event["data"]["request_id"])
        if request_id in self._answered:
            return
        self._answered.add(request_id)
        people = ("first", "rival") if self._plan.rival else ("first",)
        for who in people:
            self._group.create_task(self._answer(request_id, who))

    async def _answer(self, request_id: str, who: str) -> None:
        client, rng = self._client(f"{who} {request_id}")
        content = f"{who} of {request_id}"
        body = {"content": content, "request_id": request_id}
        key = f"{who}-{request_id}" if rng.random() < 0.5 else ""
        request = Request("POST", "/v1/runs/{id}/input", self._run_id, body, key=key)
        try:
            answer = await client.until(request)
            if answer.status == 200:
                self._access.journal.write(
                    "input_accepted", run_id=self._run_id, request_id=request_id, content=content
                )
                if rng.random() < SENT_AGAIN:
                    client.go_elsewhere()
                    answer = await client.until(request)
            elif self._plan.rival and answer.code == "input.stale":
                return
            self._expect_200(request, answer.status, answer.code)
        except GaveUp as error:
            self._access.surprise(f"{self._run_id}: {error}")

    async def _cancel(self, after: float) -> None:
        client, rng = self._client("canceller")
        await asyncio.sleep(after)
        key = f"cancel-{self._run_id}" if rng.random() < 0.5 else ""
        request = Request("POST", "/v1/runs/{id}:cancel", self._run_id, key=key)
        try:
            answer = await client.until(request)
            if answer.status == 200:
                self._access.journal.write("cancel_accepted", run_id=self._run_id)
                if rng.random() < SENT_AGAIN:
                    client.go_elsewhere()
                    answer = await client.until(request)
            self._expect_200(request, answer.status, answer.code)
        except GaveUp as error:
            self._access.surprise(f"{self._run_id}: {error}")

    def _expect_200(self, request: Request, status: int, code: str) -> None:
        if status != 200:
            what = f"{request.method} {request.template}: {status} {code}"
            self._access.surprise(f"{self._run_id}: {what}")

    def _client(self, who: str) -> tuple[Client, random.Random]:
        rng = random.Random(f"{self._name}:{who}")
        return Client(self._access, self._token, rng), rng
