"""Files of a run that a custom agent in this process reads."""

from typing import Any, NoReturn
from uuid import UUID

import pytest

from arkloop.shared.errors import StorageUnavailable, Unavailable
from arkloop.shared.files import files, incoming
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.agent_runs import created, data, process

__all__ = ["process"]  # a fixture


def stored_file(stored: StoredRuns, content: str) -> str:
    """Store a text file of the org."""
    actor = stored.actor
    with stored.connections.transaction() as tx:
        file_id = files.create(tx, org_id=actor.org_id, user_id=actor.user_id, name="a.txt")
    storage = storage_of(stored.connections.settings)
    facts = incoming.store(storage, files.key_of(actor.org_id, file_id), [content.encode()])
    with stored.connections.transaction() as tx:
        files.complete(tx, file_id, facts)
    return str(file_id)


def test_an_agent_reads_the_files_of_its_messages(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The content of each is that of the storage, and that of a deleted one is an error."""
    kept, deleted, other = (stored_file(stored, text) for text in ("Noon.", "Gone.", "Secret."))
    run_id = created(
        stored,
        *({"file": kept}, {"text": " "}, {"file": deleted}, {"text": " "}, {"file": other}),
        file_ids=[kept, deleted],
    )
    with stored.connections.transaction() as tx:
        files.remove(tx, stored.actor, UUID(deleted))

    execution.execute(process, run_id)

    assert [
        (
            f"Noon. The file {deleted} was deleted."
            f" The messages of the run name no file {other!r}.",
            False,
        )
    ] == stored.messages(run_id)


def test_a_run_whose_file_cannot_be_read_fails_and_is_retryable(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage is down, and the run fails at once, as one of the built-in loop does."""

    def read(_: str) -> NoReturn:
        raise StorageUnavailable()

    file_id = stored_file(stored, "Noon.")
    run_id = created(stored, {"file": file_id}, file_ids=[file_id])
    monkeypatch.setattr(process.files.storage, "read", read)

    execution.execute(process, run_id)

    assert RunState.FAILED == stored.state(run_id)
    [failed] = data(stored, run_id, "run.failed")
    assert ("files.storage_unavailable", True) == (
        *(failed["error"][name] for name in ("code", "retryable")),
    )


def test_a_file_is_read_after_an_outage_of_postgres(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run waits for Postgres, and the agent learns nothing of it."""
    of_ids, outages = files.of_ids, [Unavailable()]

    def read(*args: Any) -> Any:
        if outages:
            raise outages.pop()
        return of_ids(*args)

    file_id = stored_file(stored, "Noon.")
    run_id = created(stored, {"file": file_id}, file_ids=[file_id])
    monkeypatch.setattr(files, "of_ids", read)

    execution.execute(process, run_id)

    assert ([], [("Noon.", False)]) == (outages, stored.messages(run_id))
