"""Tool workers and the service's worker are lost at every step of calls: is any effect repeated?

    .venv/bin/python -m bench.tool_worker_losses [--rounds 20] [--runs 10] [--seed 1]

In each round runs make a call that may be repeated and one that must not be, and workers of the
customer disappear before and after the effect of a call, and after they have reported it. Meanwhile
the service's worker is killed. Exit status 1: an effect was repeated that must not be, a call was
lost, or a result does not fit what has happened.
"""

import argparse
import collections
import json
import random
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Self

from bench.service import Service
from bench.tool_workers import TOOLS, Client

POOL = "losses"
TOOLS_HERE = [*TOOLS, {**TOOLS[0], "name": "pay", "idempotent": False}]
PACE = {
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
}
#: What happens to a worker during a call; where it is lost, its connection is closed or it is
#: silent until its lease expires.
FATES = ("lives", "lives", "before the effect", "after the effect", "after the result")
WORKERS = 6
LEASE_SECONDS = 3
RUN_SECONDS = 120.0
#: Before a worker whose requests fail is succeeded by the next one.
RETRY_SECONDS = 0.1


class Workers:
    """Workers of the customer, until the block ends; `effects` counts those of each call, by its
    idempotency key.
    """

    def __init__(self, service: Service, seed: int) -> None:
        self.effects: collections.Counter[str] = collections.Counter()
        self.fates: collections.Counter[str] = collections.Counter()
        self.refused = 0
        self._service = service
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._ended.is_set():
            client, beat = Client(self._service), Client(self._service)
            try:
                with closing(client.http), closing(beat.http):
                    self._live_and_die(client, beat)
            except (OSError, AssertionError):
                self._ended.wait(RETRY_SECONDS)

    def _live_and_die(self, client: Client, beat: Client) -> None:
        """Run one worker, from its first poll until it is lost."""
        with self._lock:
            worker = f"w-{self._random.getrandbits(48):x}"
        while not self._ended.is_set():
            calls = client.poll(
                worker, pool=POOL, tools=TOOLS_HERE, lease_seconds=LEASE_SECONDS, wait_seconds=1
            )
            for call in calls:
                with self._lock:
                    fate, closes = self._random.choice(FATES), self._random.random() < 0.5
                    self.fates[fate] += 1
                if fate == "before the effect":
                    return self._vanish(client, beat, worker, call, closes=closes)
                with self._lock:
                    self.effects[call["idempotency_key"]] += 1
                if fate == "after the effect":
                    return self._vanish(client, beat, worker, call, closes=closes)
                time.sleep(0.05)
                self._complete(client, worker, call)
                if fate == "after the result":
                    return None
        return None

    def _vanish(
        self, client: Client, beat: Client, worker: str, call: Mapping[str, Any], *, closes: bool
    ) -> None:
        """Lose the worker by a closed connection, or by silence before a late result."""
        named = {"call_id": call["call_id"], "fence": call["fence"]}
        if closes:
            body = {"worker_id": worker, "calls": [named], "lease_seconds": LEASE_SECONDS}
            beat.send("POST", f"/tool-workers/{POOL}:heartbeat", {**body, "wait_seconds": 1})
            time.sleep(0.1)
        else:
            time.sleep(LEASE_SECONDS + 2)
            try:
                self._complete(client, worker, call)
            except AssertionError:
                self.refused += 1

    @staticmethod
    def _complete(client: Client, worker: str, call: Mapping[str, Any]) -> None:
        named = {"call_id": call["call_id"], "fence": call["fence"], "worker_id": worker}
        client.call("POST", f"/tool-workers/{POOL}:complete", {**named, "output": "done"})


def main() -> int:
    options = _options()
    with Service(web=1, workers=1, environ=PACE) as service:
        client = Client(service, is_kept=False)
        client.poll("w", pool=POOL, tools=TOOLS_HERE, wait_seconds=0)
        persona = {"key": "bench", "tool_workers": [POOL], "timeout_seconds": RUN_SECONDS}
        client.call("POST", "/personas", persona)
        chance = random.Random(options.seed)
        faults: list[str] = []
        outcomes: collections.Counter[str] = collections.Counter()
        with Workers(service, options.seed) as workers:
            for number in range(options.rounds):
                runs = [client.run(_step("echo"), _step("pay")) for _ in range(options.runs)]
                time.sleep(chance.uniform(0, 1))
                service.end("worker")
                service.start("worker")
                for run_id in runs:
                    _judge(client, run_id, workers, faults, outcomes)
                print(f"{number + 1} rounds: {dict(outcomes)}; {len(faults)} faults", flush=True)
    print(f"fates of workers: {dict(workers.fates)}; {workers.refused} late results refused")
    for fault in faults[:20]:
        print(fault)
    return int(bool(faults))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.tool_worker_losses", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _step(tool: str) -> dict[str, Any]:
    return {"tool": tool, "args": {"text": "x"}}


def _judge(
    client: Client,
    run_id: str,
    workers: Workers,
    faults: list[str],
    outcomes: collections.Counter[str],
) -> None:
    """Wait for the end of the run; compare the results of its calls with their effects."""
    deadline = time.monotonic() + RUN_SECONDS
    while (run := client.call("GET", f"/runs/{run_id}"))["status"] == "running":
        if time.monotonic() > deadline:
            faults.append(f"{run_id} does not end")
            return
        time.sleep(0.2)
    client.http.close()
    client.send("GET", f"/runs/{run_id}/events?follow=false")
    lines = client.http.getresponse().read().decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    results = [event["data"] for event in events if event["type"] == "tool.result"]
    if run["status"] != "completed" or [one["name"] for one in results] != ["echo", "pay"]:
        faults.append(f"{run_id} is {run['status']}: {results}")
    for one in results:
        effects = workers.effects[f"{run_id}:{one['tool_call_id']}"]
        how = "done" if one["output"] == "done" else "reported as unknown"
        outcomes[f"{one['name']} {how}"] += 1
        is_right = effects >= 1 if how == "done" else "may or may not" in one["output"]
        if not is_right or (one["name"] == "pay" and effects > 1):
            faults.append(f"{run_id}: {one['name']} has {effects} effects: {one['output']}")


if __name__ == "__main__":
    sys.exit(main())
