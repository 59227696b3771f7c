"""A trial: a run under a cap, in a thread of about 50,000 tokens that an earlier run has read.

Another run follows, under a cap that does not pay for the whole thread.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any

import httpx

from bench.budget_use.vendor import THREAD

THREAD_TOKENS = 50_000
#: USD per million tokens: a call that reads the thread costs about 0.1 USD.
PRICES = {"input": 2, "output": 8}
CAPS = (Decimal("0.5"), Decimal("0.9"), Decimal(1), Decimal(2))
#: The cap of a run after the one that has landed, whose last call may have had less of the thread.
#: To read all of it costs more.
NEXT_CAP = Decimal("0.08")
#: What a run has to use of its cap before it lands, with the last call, unless the rest would not
#: have paid for another call.
LEAST_USED = Decimal("0.8")
MAX_STEPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trial's result; the costs are in USD. `landed_at` is the cost before the last call,
    `cheapest_call` the least that one of the others has cost, and `next_cost` that of the next run.
    """

    seed: int
    cap: Decimal
    cost: Decimal
    next_cost: Decimal
    landed_at: Decimal
    cheapest_call: Decimal
    calls: int
    stop_reason: str
    is_answered: bool

    @property
    def is_sparing(self) -> bool:
        return self.cost < self.cap * LEAST_USED

    @property
    def faults(self) -> list[str]:
        faults = []
        if self.cost > self.cap:
            faults.append(f"{self.cost} USD of {self.cap} USD")
        if self.next_cost > NEXT_CAP:
            faults.append(f"{self.next_cost} USD of {NEXT_CAP} USD by the next run")
        had_money = self.cost + self.cheapest_call <= self.cap
        if self.stop_reason == "budget" and self.is_sparing and had_money:
            faults.append(f"only {self.cost / self.cap:.1%} of {self.cap} USD")
        if not self.is_answered:
            faults.append(f"no answer ({self.stop_reason})")
        return faults


class Bench:
    """An org whose model is at the vendor, and the client that runs its trials."""

    def __init__(self, url: str, key: str, vendor_url: str) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        models = [{"model": "m", "prices": PRICES, "is_default": True}]
        provider = {"name": "vendor", "kind": "openai", "base_url": vendor_url, "models": models}
        self._made("/v1/llm-providers", provider)
        persona = {"key": "capped", "tools": ["calculator"], "max_steps": MAX_STEPS}
        self._persona_id = self._made("/v1/personas", persona)["id"]

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def run(self, seed: int) -> Trial:
        """Make one trial, whose cap, texts and token counts are drawn from its seed."""
        chance = Random(seed)
        cap = CAPS[seed % len(CAPS)]
        thread_id = self._made("/v1/threads", {})["id"]
        density, pieces = chance.uniform(0.21, 0.7), chance.choice([1, 4, 20])
        size = int(THREAD_TOKENS * chance.uniform(0.95, 1.05) / density / pieces)
        for number in range(pieces):
            text = f"{THREAD}{density:.4f}\n{seed} {number} ".ljust(size, "x")
            self._made(f"/v1/threads/{thread_id}/messages", {"content": text})
        self._limit(None)
        self._ended(self._start(thread_id))
        self._made(f"/v1/threads/{thread_id}/messages", {"content": f"Count, {seed}."})
        self._limit(cap)
        run, events = self._ended(self._start(thread_id))
        costs = [Decimal(str(e["data"]["cost_usd"])) for e in events if e["type"] == "run.cost"]
        landed = [i for i, event in enumerate(events) if event["type"] == "run.limit_reached"]
        before = [e for e in events[: landed[0] if landed else None] if e["type"] == "run.cost"]
        others = costs[: len(before)]
        answer = self._http.get(f"/v1/threads/{thread_id}/messages").json()[-1]
        self._made(f"/v1/threads/{thread_id}/messages", {"content": f"Count on, {seed}."})
        self._limit(NEXT_CAP)
        _, later = self._ended(self._start(thread_id))
        next_costs = [Decimal(str(e["data"]["cost_usd"])) for e in later if e["type"] == "run.cost"]
        return Trial(
            seed=seed,
            cap=cap,
            cost=costs[-1],
            next_cost=max(next_costs, default=Decimal(0)),
            landed_at=others[-1] if others else Decimal(0),
            cheapest_call=min(b - a for a, b in pairwise([Decimal(0), *others]))
            if others
            else Decimal(0),
            calls=len(costs),
            stop_reason=str(run["stop_reason"] or run["error"]),
            is_answered=answer["role"] == "assistant" and answer["content"].startswith("word"),
        )

    def _made(self, path: str, body: Any) -> dict[str, Any]:
        response = self._http.post(path, json=body)
        assert response.status_code == 201, response.text
        return dict(response.json())

    def _limit(self, cap: Decimal | None) -> None:
        limits = {"max_cost_usd": None if cap is None else float(cap)}
        response = self._http.put("/v1/budget", json={**limits, "max_cost_usd_per_month": None})
        assert response.status_code == 200, response.text

    def _start(self, thread_id: str) -> str:
        body = {"persona_id": self._persona_id}
        return str(self._made(f"/v1/threads/{thread_id}/runs", body)["run_id"])

    def _ended(self, run_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Follow the run to its end; returns it and its events."""
        self._http.get(f"/v1/runs/{run_id}/events")
        events: list[dict[str, Any]] = []
        response = self._http.get(f"/v1/runs/{run_id}/events", params={"follow": "false"})
        for line in response.text.splitlines():
            if line.startswith("data: {"):
                events.append(json.loads(line.removeprefix("data: ")))
        return dict(self._http.get(f"/v1/runs/{run_id}").json()), events
