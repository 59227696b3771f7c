"""A client program of the service: plain HTTP, and the stream by httpx-sse."""

import json
import socket
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource

from tests.waiting import eventually

Event = dict[str, Any]
#: A run that has ended; `phase` says the same.
ENDED = ("completed", "failed", "cancelled")


def client(url: str, token: str = "") -> httpx.Client:
    """Make a client that keeps no connection open, so there is nothing to close."""
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=60,
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


def script(*steps: dict[str, Any]) -> str:
    """Build a message for which the scripted model plays these steps."""
    return json.dumps({"script": list(steps)})


#: What a busy service refuses requests with: 429 those that take turns, as reports of an org do.
REFUSALS = frozenset({429, 503})


def answered(
    request: Callable[[], httpx.Response], refusals: Container[int] = (503,)
) -> httpx.Response:
    """Send a request, and again while the service is too busy for it; returns the response.

    Many at once wait for one row, or for a busy Postgres; those that waited too long get 503.
    """
    while (response := request()).status_code in refusals:
        assert "Retry-After" in response.headers
        threading.Event().wait(0.2)
    return response


@dataclass(frozen=True)
class Caller:
    """A user with a token."""

    url: str
    token: str
    http: httpx.Client
    id: str
    org_id: str
    login: str

    def at(self, url: str = "", token: str = "") -> "Caller":
        """Return the same user at another server of the service, or by another token."""
        url, token = url or self.url, token or self.token
        return replace(self, url=url, token=token, http=client(url, token))

    # ---- making things ----

    def thread(self, *contents: str | list[dict[str, Any]], **fields: Any) -> str:
        """Create a thread with these messages in it, and return its id."""
        thread_id = self.made("/v1/threads", fields)["id"]
        for content in contents:
            self.say(thread_id, content)
        return str(thread_id)

    def say(self, thread_id: str, content: str | list[dict[str, Any]]) -> str:
        return str(self.made(f"/v1/threads/{thread_id}/messages", {"content": content})["id"])

    def start(self, thread_id: str, **choice: Any) -> str:
        """Start a run of the thread and return its id."""
        return str(self.made(f"/v1/threads/{thread_id}/runs", choice)["run_id"])

    def run(self, *said: str | dict[str, Any], **choice: Any) -> str:
        """Start a run in a new thread: of one message, or of the steps of a script; returns its
        id.
        """
        content = said[0] if isinstance(said[0], str) else script(*said)
        return self.start(self.thread(content), **choice)

    def api_key(self, **fields: Any) -> tuple[str, str]:
        """Create an API key; returns its id and secret."""
        made = self.made("/v1/api-keys", {"name": "test", **fields})
        return made["id"], made["key"]

    def ticket(self, run_id: str) -> str:
        return str(self.made(f"/v1/runs/{run_id}/stream-ticket")["ticket"])

    def made(self, path: str, body: Any = None) -> dict[str, Any]:
        answer = answered(lambda: self.http.post(path, json=body))
        assert 201 == answer.status_code, answer.text
        return dict(answer.json())

    # ---- acting on a run ----

    def put(self, path: str, body: Any) -> dict[str, Any]:
        """Set what is there once, such as a budget; return it."""
        answer = answered(lambda: self.http.put(path, json=body), REFUSALS)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def cancel(self, run_id: str) -> None:
        answer = answered(lambda: self.http.post(f"/v1/runs/{run_id}:cancel"))
        assert (200, {"ok": True}) == (answer.status_code, answer.json()), answer.text

    def answer(self, run_id: str, content: str, **fields: Any) -> httpx.Response:
        return self.http.post(f"/v1/runs/{run_id}/input", json={"content": content, **fields})

    def retry(self, thread_id: str) -> httpx.Response:
        return self.http.post(f"/v1/threads/{thread_id}:retry")

    # ---- looking ----

    def get(self, path: str, **params: Any) -> Any:
        answer = answered(lambda: self.http.get(path, params=params), REFUSALS)
        assert 200 == answer.status_code, answer.text
        return answer.json()

    def get_run(self, run_id: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/runs/{run_id}"))

    def messages(self, thread_id: str) -> list[tuple[str, str, bool]]:
        """Return (role, content, partial) of the thread's messages."""
        found = self.get(f"/v1/threads/{thread_id}/messages", limit=200)
        return [(m["role"], m["content"], m["partial"]) for m in found]

    def kept(self, thread_id: str) -> list[tuple[str, str, bool]]:
        """Return the messages once all runs have ended: a page shows an answer before it is one."""
        for run in self.get(f"/v1/threads/{thread_id}/runs"):
            self.ended(run["run_id"])
        return self.messages(thread_id)

    def until(self, run_id: str, field: str, *values: Any, seconds: float = 120) -> dict[str, Any]:
        """Wait until a field of the run has one of these values, and return the run."""
        seen: list[dict[str, Any]] = []

        def there() -> bool:
            seen.append(self.get_run(run_id))
            return seen[-1][field] in values

        eventually(there, seconds=seconds)
        return seen[-1]

    def ended(self, run_id: str, *, seconds: float = 120) -> dict[str, Any]:
        return self.until(run_id, "status", *ENDED, seconds=seconds)

    def seconds_until_start(self, run_id: str) -> float:
        """Wait until the run has started; return the seconds from its creation, by Postgres."""
        eventually(lambda: self.get_run(run_id)["started_at"] is not None)
        run = self.get_run(run_id)
        times = [datetime.fromisoformat(run[name]) for name in ("created_at", "started_at")]
        return (times[1] - times[0]).total_seconds()

    # ---- the stream ----

    @contextmanager
    def stream(
        self, run_id: str, headers: dict[str, str] | None = None, **params: Any
    ) -> Iterator[httpx.Response]:
        """Open a stream."""
        path = f"/v1/runs/{run_id}/events"
        with self.http.stream("GET", path, params=params, headers=headers) as answer:
            yield answer

    def raw(self, run_id: str, headers: dict[str, str] | None = None, **params: Any) -> bytes:
        """Return the stream's bytes up to its end."""
        with self.stream(run_id, headers, **params) as answer:
            assert 200 == answer.status_code, answer.read()
            return answer.read()

    def events(self, run_id: str, **params: Any) -> list[Event]:
        """Return all events up to the end of the run, which is waited for."""
        with self.stream(run_id, **params) as answer:
            return list(parsed(answer))

    def events_so_far(self, run_id: str) -> list[Event]:
        return self.events(run_id, follow="false")

    def seen(self, run_id: str, wanted: str, count: int = 1) -> Event:
        """Follow the run until the event of this type comes (for the `count`th time)."""
        with self.stream(run_id) as answer:
            for event in parsed(answer):
                count -= event["type"] == wanted
                if not count:
                    return event
        raise AssertionError(f"the run ended without {wanted}")


@contextmanager
def asking(caller: Caller, path: str, body: dict[str, Any], **headers: str) -> Iterator[None]:
    """Send a POST for the length of the block; its client leaves without the response."""
    data = json.dumps(body).encode()
    request = caller.http.build_request("POST", path, content=data, headers=headers)
    lines = [
        f"POST {path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in request.headers.items()),
    ]
    address = (request.url.host, request.url.port or 80)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        yield


def parsed(answer: httpx.Response) -> Iterator[Event]:
    """Yield the events of an open stream, as httpx-sse reads them."""
    for sent in EventSource(answer).iter_sse():
        event = sent.json()
        assert str(event["seq"]) == sent.id
        yield event


def until_broken_off(answer: httpx.Response) -> list[Event]:
    """Return the events of an open stream that the server breaks off: its last chunk never
    comes.
    """
    events = []
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        for event in parsed(answer):
            events.append(event)  # one by one: those before the error count
    return events


def types(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


def data_of(events: list[Event], kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in events if event["type"] == kind]


def text_of(events: list[Event]) -> str:
    """Return what a client that follows the rules shows in the end, without void text."""
    kept: list[Event] = []
    for event in events:
        if event["type"] == "message.reset":
            kept = [e for e in kept if e["seq"] < event["data"]["from_seq"]]
        elif event["type"] == "message.delta":
            kept.append(event)
    return "".join(event["data"]["content"] for event in kept)


def error_of(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of an error response, and check its shape."""
    body = answer.json()
    assert {"code", "message", "details", "trace_id"} == set(body)
    assert answer.headers["X-Trace-Id"] == body["trace_id"]
    return answer.status_code, body["code"]
