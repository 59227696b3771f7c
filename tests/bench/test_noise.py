"""The clients of a noisy org take no time of the machine from what a benchmark measures."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from bench import noise
from bench.http_clients import Target

AUTOGROUP = Path("/proc/self/autogroup")
ROOT = Path(__file__).parents[2]
#: It ends without tidying up: on a busy machine it has hardly any time from there on.
CHILD = f"""
import os
from bench import noise
way = noise.give_way()
in_group = "arkloop-noise" in open("/proc/self/cgroup").read()
assert way == (noise.GROUP if in_group else noise.SESSION), way
group = open("{AUTOGROUP}").read() if os.path.exists("{AUTOGROUP}") else "nice 19"
own = os.getsid(0) == os.getpid()
os.write(1, f"{{os.sched_getscheduler(0)}} {{own}} {{group.split()[-1]}}".encode())
os._exit(0)
"""


def test_a_noisy_client_gives_way_as_a_session_of_its_own() -> None:
    """The kernel shares time among sessions first: a policy alone would give way within one."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert f"{os.SCHED_IDLE} True 19" == child.stdout, child.stderr


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError])
def test_noise_goes_on_after_what_came_too_late(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """A server closes a connection whose client had no time, or is itself too late for a client;
    what is measured needs the noise.
    """
    monkeypatch.setattr(noise, "give_way", lambda: noise.SESSION)
    stop, begun = noise.Stop(), 0
    assert "none" == stop.way

    def make(_stop: noise.Stop) -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise error

    noise._nicely(make, stop)

    assert 3 == begun
    assert noise.SESSION == stop.way


def fail(_stop: noise.Stop) -> None:
    raise AssertionError("an answer that the noise does not expect")


def wait(stop: noise.Stop) -> None:
    stop.wait()
    stop.count(3)


def test_what_is_measured_beside_noise_that_failed_is_no_figure() -> None:
    """Without its noise a benchmark would measure silence, and reach its target."""
    with (
        pytest.raises(noise.NoiseFailed, match="fail: exit status 1"),
        noise.beside(fail, gives_way=False),
    ):
        pass

    with noise.beside(wait, gives_way=False) as stop:
        assert 0 == stop.done
    assert 3 == stop.done


def hang(stop: noise.Stop) -> None:
    stop.wait()
    time.sleep(600)


def test_noise_that_does_not_end_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs may have made no noise either; it is killed."""
    monkeypatch.setattr(noise, "JOIN_SECONDS", 0.2)

    with (
        pytest.raises(noise.NoiseFailed, match=r"hang: has not ended within 0\.2 s"),
        noise.beside(hang, gives_way=False),
    ):
        pass

    assert [] == multiprocessing.active_children()


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # a client opens all its connections at once


class Busy(BaseHTTPRequestHandler):
    """A service that refuses the first run, and the first stream of each run."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked["runs"] += 1
        self._answer(503 if self.asked["runs"] == 1 else 201, b'{"run_id": "one"}')

    def do_GET(self) -> None:
        self.asked["streams"] += 1
        if self.asked["streams"] % 2:
            self._answer(503, b"")
        else:
            self._answer(200, b'data: {"seq":1,"type":"run.completed"}\nid: 1\n\n')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


def test_a_run_that_is_refused_is_played_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without capacity answers 503, as documented, to a noisy org, too."""
    monkeypatch.setattr(noise, "RETRY_SECONDS", 0.01)
    stop = noise.Stop()
    with Server(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        target = Target(f"http://127.0.0.1:{server.server_port}", "token")
        noise.play_once(stop, [target], ["thread"])
        server.shutdown()

    assert {"runs": 2, "streams": 2} == Busy.asked
    assert 1 == stop.done


class Reports(BaseHTTPRequestHandler):
    """A server that refuses every other report, as an org's parallel ones are."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(429 if self.asked % 2 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


def test_a_report_that_is_refused_is_no_reason_to_stop() -> None:
    """An org that requests reports in parallel causes 429s, and requests more."""
    stop = noise.Stop()
    with ThreadingHTTPServer(("127.0.0.1", 0), Reports) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = Target(f"http://127.0.0.1:{server.server_port}", "token")
        client = threading.Thread(
            target=noise.repeat_get, args=(stop, [target], ["/v1/me/usage"], 2)
        )
        client.start()
        while stop.done < 20 and client.is_alive():
            client.join(0.01)
        stop.set()
        client.join()
        server.shutdown()

    assert stop.done >= 20
