"""Runs that end in every way, created and answered while servers are killed."""

import json
import threading
import time
from random import Random
from typing import Any

import httpx

SCRIPTS: tuple[list[dict[str, Any]], ...] = (
    [{"say": "done"}],
    [{"tool": "ask_user", "args": {"question": "Which one?"}}, {"say": "done"}],
    [{"error": "invalid_request"}],
)


class Load(threading.Thread):
    """A client that creates `rate` runs a second; it answers or cancels those that ask."""

    def __init__(self, urls: list[str], api_key: str, rate: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._urls, self._rate, self._chance = urls, rate, Random(seed)
        headers = {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(headers=headers, timeout=10, limits=limits, trust_env=False)
        self._asking: list[tuple[float, str]] = []
        self._over = threading.Event()
        self.created = self.refused = 0

    def run(self) -> None:
        while not self._over.wait(1 / self._rate):
            self._create(self._chance.choice(SCRIPTS))
            self._settle(time.monotonic() - 1)

    def finish(self) -> None:
        """Create no more runs, and settle those that still ask."""
        self._over.set()
        self.join()
        deadline = time.monotonic() + 60
        while self._asking and time.monotonic() < deadline:
            self._settle(float("inf"))
            time.sleep(0.2)

    def _create(self, script: list[dict[str, Any]]) -> None:
        body = {"message": json.dumps({"script": script}), "route_id": "scripted"}
        made = self._post("/v1/runs", body)
        if made is None or made.status_code != 201:
            self.refused += 1
            return
        self.created += 1
        if script == SCRIPTS[1]:
            self._asking.append((time.monotonic(), made.json()["run_id"]))

    def _settle(self, until: float) -> None:
        """Answer or cancel the runs that were created until then."""
        for created_at, run_id in [one for one in self._asking if one[0] < until]:
            if self._chance.random() < 0.5:
                done = self._post(f"/v1/runs/{run_id}/input", {"content": "The first."})
            else:
                done = self._post(f"/v1/runs/{run_id}:cancel", {})
            if done is not None and done.status_code in (200, 201, 202):
                self._asking.remove((created_at, run_id))

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response | None:
        """Send a request to one of the servers; None if it does not respond."""
        try:
            return self._http.post(self._chance.choice(self._urls) + path, json=body)
        except (httpx.HTTPError, IndexError):
            return None
