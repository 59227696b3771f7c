"""Files that the messages of a run name, read by the agent worker that executes it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared import ids
from tests.api.endpoints.agent_worker import MakeWorker, Worker, start, worker
from tests.api.endpoints.test_files import upload
from tests.clients import Register, User, error_of
from tests.contents import png

pytestmark = pytest.mark.own_database

__all__ = ["start", "worker"]  # fixtures

GONE = (404, "files.not_found")


def about(file: dict[str, Any]) -> dict[str, Any]:
    """Return a message with an image."""
    text, image = {"type": "text", "text": "Look."}, {"type": "image", "file_id": file["id"]}
    return {"content": [text, image]}


def read(mine: Worker, file: dict[str, Any], **changed: Any) -> Any:
    """Ask for a file of the run that the worker took last."""
    claim = {"run_id": mine.run["run_id"], "fence": mine.run["fence"], **changed}
    path = f"/v1/agent-workers/{mine.agent}/runs/{claim['run_id']}/files/{file['id']}"
    return mine.user.get(path, query_string={"fence": claim["fence"]})


def test_a_worker_reads_the_files_of_its_run(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """A key with the scope `agents.work` alone gets those, and no other way to them."""
    file, other = upload(alice), upload(alice, png(1))
    mine = worker()
    run_id = start(about(file), end_user_id="eve")
    run = mine.take()

    response = read(mine, file)

    assert [file["id"]] == [one["file_id"] for one in run["messages"][0]["files"]]
    assert (200, png(), "image/png") == (
        *(response.status_code, response.data, response.headers["Content-Type"]),
    )
    assert GONE == error_of(read(mine, other))
    assert (403, "auth.forbidden") == error_of(mine.user.get(f"/v1/files/{file['id']}/content"))
    assert (404, "runs.not_found") == error_of(read(replace(mine, agent="another"), file))
    assert (404, "runs.not_found") == error_of(read(mine, file, run_id=str(ids.new_id())))
    assert run_id == run["run_id"]


def test_only_the_worker_that_holds_the_run_reads_its_files(
    alice: User, register: Register, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """The fence is that of its claim, and the run is executed by it still."""
    file = upload(alice)
    mine = worker()
    start(about(file))
    run = mine.take()
    foreign = Worker(register().api_key("agents.work"), run=run)

    assert (404, "runs.not_found") == error_of(read(foreign, file))
    outdated = read(mine, file, fence=run["fence"] + 1)
    assert (409, "agent_workers.outdated_fence") == error_of(outdated)
    assert (422, "validation.error") == error_of(read(mine, file, fence=0))
    mine.write("complete", content="Seen.")
    assert (409, "agent_workers.outdated_fence") == error_of(read(mine, file))


def test_a_file_that_is_gone_is_not_found(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """A deleted file stays in the messages."""
    file = upload(alice)
    mine = worker()
    start(about(file))
    mine.take()

    assert 204 == alice.delete(f"/v1/files/{file['id']}").status_code

    assert GONE == error_of(read(mine, file))


def test_a_message_after_the_run_names_no_file_of_it(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """The conversation of a run is what the thread had when it was created."""
    file, later = upload(alice), upload(alice, png(1))
    mine = worker()
    start(about(file))
    thread_id = mine.take()["thread_id"]

    added = alice.post(f"/v1/threads/{thread_id}/messages", json=about(later))

    assert 201 == added.status_code
    assert (200, GONE) == (read(mine, file).status_code, error_of(read(mine, later)))
