"""Calls that are cancelled, hang or die with their server, and what is left of them."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.client import McpClient
from tests.waiting import eventually
from tests.worker.mcp.odd_server import Odd, is_alive

pytestmark = pytest.mark.processes


def test_a_run_that_stops_cancels_its_call(odd: Odd) -> None:
    """The caller is free at once, and the server hears of it; both long before a minute is over."""
    stop = StopSignal()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            odd.call("hang", context=stop)
        except BaseException as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: odd.asked("hang"))
    began = time.monotonic()

    stop.set(CancelRequested())

    asking.join(60)
    eventually(lambda: any(e.get("method") == "notifications/cancelled" for e in odd.log))
    assert time.monotonic() - began < 20
    assert [CancelRequested] == [type(error) for error in raised]
    assert "6" == odd.call("double", arguments={"n": 3})
    assert 1 == len(odd.pids)


def test_a_run_that_has_stopped_calls_nothing(odd: Odd) -> None:
    """A stopped run sends no call."""
    stop = StopSignal()
    stop.set(CancelRequested())

    with pytest.raises(CancelRequested):
        odd.call("double", arguments={"n": 1}, context=stop)

    assert not odd.asked("double")


def test_a_server_that_hangs_is_given_up(odd: Odd) -> None:
    """When the time is over; the next call has a server of its own."""
    with pytest.raises(McpFailed, match=r"did not respond within 0\.3 s"):
        odd.call("hang", seconds=0.3)

    assert "2" == odd.call("double", arguments={"n": 1})
    first, second = odd.pids
    eventually(lambda: not is_alive(first))
    assert is_alive(second)


def test_progress_extends_a_call_and_is_passed_on(odd: Odd) -> None:
    """A call may take longer than its time limit while its server reports progress, and what it
    reports reaches the caller, with a text of bounded length.
    """
    heard: list[Mapping[str, Any]] = []

    said = odd.call("progress", arguments={"n": 24}, seconds=4, on_progress=heard.append)

    assert "done" == said
    assert {24} == {report["total"] for report in heard}
    assert {"on" * 250} == {report["message"] for report in heard}
    assert sorted({report["progress"] for report in heard}) == [r["progress"] for r in heard]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"seconds": 20, "max_seconds": 2}, "did not end within 2 s"),
        ({"seconds": 4, "max_seconds": 60}, "reported no progress for 4 s"),
    ],
)
def test_progress_does_not_extend_a_call_for_ever(
    odd: Odd, limits: dict[str, float], words: str
) -> None:
    """A call ends at its maximum time, and when its server falls silent."""
    many = 60 if limits["max_seconds"] < 60 else 1
    tool = "progress" if many > 1 else "stall"

    with pytest.raises(McpFailed, match=words):
        odd.call(tool, arguments={"n": many}, **limits)


def test_progress_that_is_no_number_is_ignored(odd: Odd) -> None:
    """What a server reports as its progress cannot break the session."""
    heard: list[Mapping[str, Any]] = []

    assert "done" == odd.call("nonsense", on_progress=heard.append)
    assert "2" == odd.call("double", arguments={"n": 1})

    assert [] == heard
    assert 1 == len(odd.pids)


def test_what_a_server_started_ends_with_it(odd: Odd) -> None:
    """A server's whole process group ends with it, even processes that ignore SIGTERM."""
    child = int(odd.call("have_child"))

    with pytest.raises(McpFailed):
        odd.call("die")

    eventually(lambda: not is_alive(child))


def test_a_server_that_dies_in_a_call_fails_it(odd: Odd) -> None:
    """The call fails at once, and the next one starts the server again."""
    began = time.monotonic()

    with pytest.raises(McpFailed, match="The server process exited"):
        odd.call("die")

    assert time.monotonic() - began < 20
    assert "2" == odd.call("double", arguments={"n": 1})
    assert 2 == len(odd.pids)


def test_a_sidecar_that_dies_takes_its_calls_and_servers_along(tmp_path: Path) -> None:
    """Calls fail at once; the next one starts another sidecar."""
    client = McpClient(stdio=True)
    try:
        odd = Odd(client, tmp_path)
        failed: list[str] = []

        def ask() -> None:
            try:
                odd.call("hang")
            except McpFailed as error:
                failed.append(str(error))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        eventually(lambda: 3 == sum(e.get("params", {}).get("name") == "hang" for e in odd.log))
        first = odd.sidecar
        first.kill()

        for thread in asking:
            thread.join(60)
        assert 3 == len(failed) and all("crashed" in text for text in failed)
        eventually(lambda: not is_alive(odd.pids[0]))
        eventually(lambda: _answers(odd))
        assert odd.sidecar != first
    finally:
        client.close()


def _answers(odd: Odd) -> bool:
    try:
        return odd.call("double", arguments={"n": 1}) == "2"
    except McpFailed:
        return False  # it is started again in a moment


def test_a_client_that_is_closed_leaves_nothing_behind(tmp_path: Path) -> None:
    """A closed client leaves neither sidecar nor server behind, and starts none again."""
    client = McpClient(stdio=True)
    odd = Odd(client, tmp_path)
    sidecar, forker = odd.sidecar.pid, odd.sidecar.ppid()

    client.close()

    assert not is_alive(sidecar) and not is_alive(forker)
    assert not any(map(is_alive, odd.pids))
    with pytest.raises(McpFailed, match="shutting down"):
        odd.call("double", arguments={"n": 1})
