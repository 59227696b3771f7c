"""httpx-sse, a client that we did not write, over connections that are cut at any byte."""

import json
from contextlib import ExitStack
from itertools import cycle

import httpx
import pytest
from httpx_sse import SSEError, connect_sse

from tests.acceptance.streamed_runs import LONG
from tests.caller import Caller, Event
from tests.cutting_proxy import cutting_proxy
from tests.system import System

SCRIPT = (
    LONG,
    {"tool": "calculator", "args": {"expression": "2**64"}},
    {"say": "\u2028 data: x\r\nid: 999\n\n"},
    LONG,
)


def followed(callers: list[Caller], run_id: str) -> list[Event]:
    """Follow to the end as a careful client does: again and again, after the last whole event."""
    seen: list[Event] = []
    for caller in cycle(callers):
        headers = {"Last-Event-ID": str(seen[-1]["seq"])} if seen else {}
        path = f"/v1/runs/{run_id}/events"
        try:
            with connect_sse(caller.http, "GET", path, headers=headers) as source:
                if source.response.status_code == 204:
                    break
                seen += [sent.json() for sent in source.iter_sse()]
        except httpx.TransportError:
            continue
    return seen


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_client_misses_and_repeats_nothing(system: System, user: Caller, seed: int) -> None:
    """Forty cuts, two servers in turns, during the run and after it: each event exactly once."""
    run_id = user.run(*SCRIPT)
    with ExitStack() as stack:
        proxies = [
            stack.enter_context(cutting_proxy(server.settings.port, cuts=20, seed=seed + 10 * i))
            for i, server in enumerate(system.web)
        ]
        seen = followed([user.at(proxy.url) for proxy in proxies], run_id)

    assert 0 == sum(proxy.cuts_left for proxy in proxies)
    assert user.events(run_id) == seen
    assert "run.completed" == seen[-1]["type"]
    assert list(range(1, len(seen) + 1)) == [event["seq"] for event in seen]


def test_the_end_is_told_by_204(user: Caller) -> None:
    """httpx-sse gets no stream after the end of the run; a browser stops there."""
    run_id = user.run("Hi")
    last = user.events(run_id)[-1]["seq"]

    with connect_sse(
        user.http, "GET", f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": str(last)}
    ) as source:
        assert 204 == source.response.status_code
        with pytest.raises(SSEError):
            next(source.iter_sse())


def test_httpx_sse_reads_ids_and_retry(user: Caller) -> None:
    """Each event carries its seq as id; the first one the time to wait; the type is `message`."""
    run_id = user.run("Hi")
    user.ended(run_id)

    with connect_sse(user.http, "GET", f"/v1/runs/{run_id}/events") as source:
        sent = list(source.iter_sse())

    assert [1000] + [None] * (len(sent) - 1) == [event.retry for event in sent]
    assert [str(json.loads(event.data)["seq"]) for event in sent] == [event.id for event in sent]
    assert {"message"} == {event.event for event in sent}
