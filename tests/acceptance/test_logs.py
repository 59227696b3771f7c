"""Logs of the real processes: each line is JSON and says what it is about."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.caller import Caller
from tests.system import System, running_system
from tests.waiting import eventually

pytestmark = pytest.mark.processes

Line = dict[str, Any]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def observed(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """A web server that logs requests, and a worker."""
    folder = tmp_path_factory.mktemp("observed")
    environ = {"ARKLOOP_REQUEST_LOG": "1"}
    with running_system(new_database, folder, web=1, environ=environ) as system:
        yield system


@pytest.fixture(scope="module")
def someone(observed: System) -> Caller:
    return observed.caller()


def lines_of(log: Path) -> list[Line]:
    """Return the lines of a process; each has to be JSON, unless it is just being written."""
    return [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]


def about(log: Path, **fields: object) -> list[Line]:
    """Return the lines with these fields."""
    return [line for line in lines_of(log) if fields.items() <= line.items()]


def test_each_line_is_json_from_start_to_stop(observed: System, someone: Caller) -> None:
    """Lines of gunicorn and Celery are JSON, too, and so are those of a worker that is stopped."""
    someone.ended(someone.run("hello"))
    observed.worker.stop(signal.SIGTERM)
    try:
        for log in (observed.web[0].log, observed.worker.log):
            lines = lines_of(log)
            assert lines
            assert not [ln for ln in lines if not {"time", "level", "logger", "message"} <= {*ln}]
    finally:
        observed.worker.start()
        someone.ended(someone.run("hello"), seconds=90)  # it has to start first


def test_a_worker_says_whose_run_has_ended_and_how(observed: System, someone: Caller) -> None:
    """Run, org, trace, outcome and error code are fields of the line, and the same as the API's."""
    completed = someone.run("hello")
    failed = someone.run({"error": "invalid_request", "times": 9})
    log = observed.worker.log
    for run_id, outcome, code in (
        (completed, "completed", None),
        (failed, "failed", "provider.invalid_request"),
    ):
        shown = someone.ended(run_id)
        eventually(lambda run_id=run_id: about(log, run_id=run_id, message="attempt ended"))
        [line] = about(log, run_id=run_id, message="attempt ended")
        assert (shown["org_id"], shown["trace_id"]) == (line["org_id"], line["trace_id"])
        assert (outcome, code, 1) == (line["outcome"], line["error_code"], line["attempt"])
        assert 0 <= line["duration_ms"]
    [why] = [line for line in about(log, run_id=failed) if line["message"].startswith("run failed")]
    assert "provider.invalid_request" == why["error_code"]


def test_a_lost_run_is_named_by_whoever_recovers_it(observed: System, someone: Caller) -> None:
    """The line of the sweep has run, org and trace, though no request is about them."""
    run_id = someone.run({"hang": 30})
    someone.until(run_id, "phase", "executing", seconds=90)
    with observed.without_worker():
        pass

    def recovered() -> list[Line]:
        # Any process may sweep, but no worker is lost while none at all is heard.
        logs = (observed.web[0].log, observed.worker.log)
        found = [line for log in logs for line in about(log, run_id=run_id, level="WARNING")]
        return [line for line in found if line["message"].startswith("recovering run ")]

    eventually(lambda: bool(recovered()), seconds=90)
    [line] = recovered()
    someone.cancel(run_id)
    run = someone.get_run(run_id)
    assert (run["org_id"], run["trace_id"]) == (line["org_id"], line["trace_id"])


def test_each_request_has_a_line_without_its_address(observed: System, someone: Caller) -> None:
    """The route is a template: tickets and searches in the address are in no log."""
    answer = someone.http.get(
        "/v1/runs/not-an-id?secret=s3cret", headers={"traceparent": f"00-{TRACE}-{'1' * 16}-01"}
    )
    assert 422 == answer.status_code
    log = observed.web[0].log
    eventually(lambda: about(log, trace_id=TRACE))
    [line] = about(log, trace_id=TRACE)
    assert ("request", "GET", "/v1/runs/<id:run_id>", 422, "refused", "validation.error") == tuple(
        line[name] for name in ("message", "method", "route", "status", "outcome", "error_code")
    )
    assert someone.org_id == line["org_id"]
    assert "s3cret" not in log.read_text()
    assert "not-an-id" not in log.read_text()


def test_a_request_about_a_run_names_it(observed: System, someone: Caller) -> None:
    """The line of a request has the run of its path."""
    run_id = someone.run("hello")
    someone.get_run(run_id)
    log = observed.web[0].log
    eventually(lambda: about(log, run_id=run_id, method="GET"))
    line = about(log, run_id=run_id, method="GET")[0]
    assert ("ok", None, 200) == (line["outcome"], line["error_code"], line["status"])
    assert someone.org_id == line["org_id"]


def test_without_the_setting_requests_have_no_line(system: System, user: Caller) -> None:
    """Web processes log only what goes wrong."""
    user.run("hello")
    web = system.web[0]
    with web.connect() as client:
        client.sendall(b"no request\r\n\r\n")  # its line is written after those of the run
    eventually(lambda: "rejected request" in web.log.read_text())
    # The log is of the whole module: not each line of it is JSON.
    assert not re.search(r'"message": ?"request"', web.log.read_text())
