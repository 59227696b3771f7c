"""Files of a run for a served agent: repeated requests, and errors that end them."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from arkloop.agents import RunStopped
from arkloop.cli.serve.served_run import ServedRun
from arkloop.cli.serve.service import Service
from tests.cli.serve.polled_runs import RUN, RUN_ID
from tests.cli.serve.scripted_service import scripted_service

Response = tuple[int, dict[str, Any] | bytes]
FILE_ID = "01a2278d-0000-7000-8000-000000000000"
CONTENT = b"content"
IMAGE = {
    "type": "image",
    "file_id": FILE_ID,
    "file": {"name": "a.png", "media_type": "image/png", "size": len(CONTENT)},
}
POLLED = {**RUN, "fence": 3, "messages": [{"role": "user", "content": "Look.", "files": [IMAGE]}]}


@pytest.fixture
def served() -> Iterator[tuple[ServedRun, list[Response], list[str]]]:
    """The run, the responses that are still to come, and the paths that were asked for."""
    responses: list[Response] = []
    asked: list[str] = []

    def respond(path: str, _: dict[str, Any]) -> Response:
        asked.append(path)
        return responses.pop(0)

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, POLLED, threading.Event())
        yield run, responses, asked
        run.outbox.close()
        service.close()


def refused(status: int, code: str) -> Response:
    return status, {"code": code, "message": "No.", "details": {}}


def test_a_file_is_read_until_it_is_there(
    served: tuple[ServedRun, list[Response], list[str]],
) -> None:
    """A service or a storage that is away, and the content of a gateway, are no end."""
    run, responses, asked = served
    responses += [(503, {}), (200, b"<html>Please wait</html>"), (200, CONTENT)]

    assert run.file(FILE_ID) == CONTENT

    assert [f"/v1/agent-workers/mine/runs/{RUN_ID}/files/{FILE_ID}?fence=3"] * 3 == asked


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (refused(404, "files.not_found"), LookupError, "was deleted"),
        (refused(404, "http.not_found"), NotImplementedError, "an older release"),
        (refused(409, "agent_workers.outdated_fence"), RunStopped, "lost"),
    ],
)
def test_a_refusal_says_why(
    served: tuple[ServedRun, list[Response], list[str]],
    response: Response,
    error: type[BaseException],
    words: str,
) -> None:
    """A deleted file is no error of the agent; a run of another worker has to stop."""
    run, responses, _ = served
    responses.append(response)

    with pytest.raises(error, match=words):
        run.file(FILE_ID)

    assert (error is RunStopped) == (run.stopped == "lost")


def test_files_that_no_message_names_are_not_asked_for(
    served: tuple[ServedRun, list[Response], list[str]],
) -> None:
    """A model that invents an id is no reason for a request."""
    run, _, asked = served

    with pytest.raises(LookupError, match="name no file 'another'"):
        run.file("another")

    assert [] == asked


def test_a_run_that_has_to_stop_waits_for_no_file() -> None:
    """The stop ends the repetition while the service is away."""
    served: list[ServedRun] = []

    def respond(*_: object) -> Response:
        served[0].stop("cancelled")
        return 503, {}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, POLLED, threading.Event())
        served.append(run)
        with pytest.raises(RunStopped, match="cancelled"):
            run.file(FILE_ID)
        run.outbox.close()
        service.close()
