"""Trees of 40 runs are cancelled: the time until the vendor has seen all their sockets closed.

    .venv/bin/python -m bench.cancel_trees [--trees 24]

A run has given tasks to 8 others, and these to 31, each of which streams from the vendor: 40 runs
on three levels. A cancel of the first is one statement. The first tree is that of a worker that
has just started. Exit status 1: a socket stayed open for longer than 250 ms, or a run was not
cancelled.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from bench.figure import percentile
from bench.machine import machine
from bench.service import Service
from bench.silent_vendor import SilentVendor

MIDDLE, LEAVES = 8, 31
RUNS = 1 + MIDDLE + LEAVES
TARGET_MS = 250.0
SECONDS = 60.0


def main() -> int:
    options = _options()
    print(json.dumps(machine()), flush=True)
    with TemporaryDirectory(prefix="arkloop-trees-") as folder, SilentVendor() as vendor:
        routes = Path(folder, "routes.yaml")
        prices = "context_tokens: 128000, prices: {input: 0, output: 0}"
        how = f"provider: openai, model: m, base_url: {vendor.url}/streaming/v1, {prices}"
        routes.write_text(f"routes:\n  - {{id: silent, {how}}}\n")
        with Service(environ={"ARKLOOP_ROUTES": str(routes)}) as service:
            bench = _Bench(service, vendor)
            first = bench.cancelled()
            trees = [bench.cancelled() for _ in range(options.trees)]
    sockets = [ms for tree in trees for ms in tree]
    worst = [max(tree) for tree in trees]
    print(f"the first tree of a worker: all {LEAVES} sockets closed after {max(first):.0f} ms")
    print(
        f"{options.trees} trees of {RUNS} runs, {LEAVES} sockets each, ms: a socket p50"
        f" {percentile(sockets, 0.5):.0f}, p99 {percentile(sockets, 0.99):.0f};"
        f" the last of a tree p50 {percentile(worst, 0.5):.0f}, max {max(worst):.0f}"
    )
    return int(max(worst) > TARGET_MS)


class _Bench:
    def __init__(self, service: Service, vendor: SilentVendor) -> None:
        self._vendor = vendor
        self._http = httpx.Client(
            base_url=service.urls[0],
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=30,
        )
        self._post("/v1/personas", {"key": "leaf", "route_id": "silent"})
        for key, below in (("middle", "leaf"), ("root", "middle")):
            persona = {"key": key, "route_id": "scripted", "delegates": [below]}
            self._post("/v1/personas", {**persona, "max_active_children": 8})

    def cancelled(self) -> list[float]:
        """Cancel a tree; return the milliseconds after which each socket was closed."""
        counts = [LEAVES // MIDDLE + (i < LEAVES % MIDDLE) for i in range(MIDDLE)]
        middle = [_script("leaf", ["Go."] * count) for count in counts]
        body = {"persona_id": "root", "message": _script("middle", middle)}
        run_id = self._post("/v1/runs", body)["run_id"]
        for _ in range(LEAVES):
            self._vendor.reached.get(timeout=SECONDS)
        time.sleep(0.1)  # the last of them stream, too
        began = time.perf_counter()
        self._post(f"/v1/runs/{run_id}:cancel", {})
        closed = [self._vendor.gone.get(timeout=SECONDS) for _ in range(LEAVES)]
        self._check(run_id)
        return [(at - began) * 1000 for at in closed]

    def _check(self, run_id: str) -> None:
        """Wait until the whole tree has ended as cancelled."""
        deadline = time.monotonic() + SECONDS
        statuses: list[str] = []
        while time.monotonic() < deadline:
            tree = [self._http.get(f"/v1/runs/{run_id}").json(), *self._below(run_id)]
            tree += [run for one in tree[1:] for run in self._below(one["run_id"])]
            statuses = [run["status"] for run in tree]
            if statuses == ["cancelled"] * RUNS:
                return
            time.sleep(0.1)
        raise TimeoutError(f"{run_id}: {statuses}")

    def _below(self, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._http.get(f"/v1/runs?parent_run_id={run_id}").json()
        return found

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self._http.post(path, json=body)
        assert response.is_success, response.text
        return dict(response.json())


def _script(persona: str, tasks: list[str]) -> str:
    calls = [{"tool": "delegate", "args": {"persona": persona, "task": task}} for task in tasks]
    return json.dumps({"script": [{"tools": calls}, {"say": "done"}]})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trees", type=int, default=24)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
