"""The files that a process's runs send: whose they are, and how much memory they take."""

import base64
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from arkloop.shared.errors import StorageUnavailable
from arkloop.shared.files import files, incoming
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.files.local_storage import LocalStorage
from arkloop.shared.storage.connections import Connections
from arkloop.worker.agent.attachments import attached
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.messages import UserMessage
from arkloop.worker.contract.outcomes import CancelRequested, RunFailure
from arkloop.worker.process import file_loader
from arkloop.worker.process.file_loader import FileLoader, RunFiles
from arkloop.worker.process.history_loader import HistoryLoader, HistoryMemory
from tests.clients import Register, User
from tests.contents import PDF, png
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.process.test_history_loader import Patient, claim_of, never
from tests.worker.recorded_run import request

MIB = 1024 * 1024


def loader_of(connections: Connections, *, mib: int = 256) -> FileLoader:
    return FileLoader(connections, storage_of(connections.settings), HistoryMemory(mib * MIB))


def run_files(stored: StoredRuns, loader: FileLoader, run: Patient | None = None) -> RunFiles:
    return RunFiles(loader, claim_of(stored, "Hi"), run or Patient())


def image(connections: Connections, owner: User, content: bytes) -> Attachment:
    """Store an image of the user's org."""
    with connections.transaction() as tx:
        file_id = files.create(tx, org_id=owner.org_id, user_id=owner.id, name="a.png")
    key = files.key_of(owner.org_id, file_id)
    facts = incoming.store(storage_of(connections.settings), key, [content])
    with connections.transaction() as tx:
        files.complete(tx, file_id, facts)
    return Attachment(kind="image", file_id=str(file_id), size=facts.size)


def test_a_run_gets_the_files_of_its_org_alone(
    stored: StoredRuns, alice: User, register: Register, connections: Connections
) -> None:
    """A file of another org, whose id got into the conversation, is as good as deleted."""
    loader = loader_of(connections)
    own, foreign = (image(connections, user, png()) for user in (alice, register()))
    with run_files(stored, loader).loaded([own, foreign]) as contents:
        assert {own.file_id: png()} == contents


def test_a_file_is_read_once_for_many_steps(
    stored: StoredRuns, alice: User, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest stay in memory, up to a limit; a deleted one is not sent from there either."""
    loader, part = loader_of(connections), image(connections, alice, png())
    run = run_files(stored, loader)
    with run.loaded([part]):
        pass
    Path(connections.settings.files_dir, str(alice.org_id), str(part.file_id)).unlink()
    with run.loaded([part]) as contents:
        assert [png()] == list(contents.values())

    alice.delete(f"/v1/files/{part.file_id}")
    with run.loaded([part]) as contents:
        assert {} == contents

    monkeypatch.setattr(file_loader, "CACHE_BYTES", 100)
    for shade in range(3):
        with run.loaded([image(connections, alice, png(shade))]):
            pass
    assert 1 == len(loader._cache)


def test_runs_wait_for_the_memory_of_their_files(
    stored: StoredRuns, alice: User, connections: Connections
) -> None:
    """Files count four times their size, with all conversations of the process."""
    loader, patient = loader_of(connections, mib=8), Patient()
    part = Attachment(kind="image", file_id=image(connections, alice, png()).file_id, size=MIB)
    first, second = run_files(stored, loader), run_files(stored, loader, patient)
    done = threading.Event()

    def wait() -> None:
        with second.loaded([part]):
            done.set()

    with first.loaded([part]):
        thread = threading.Thread(target=wait)
        thread.start()
        eventually(patient.waits.is_set)
        assert not done.is_set()
    thread.join(60)
    assert done.is_set()


def test_a_run_does_not_wait_for_the_memory_that_it_has(
    stored: StoredRuns, alice: User, connections: Connections
) -> None:
    """A run whose history is its org's whole share sends its files: nobody else gives any back."""
    settings = replace(connections.settings, history_memory_mib=1)
    histories = HistoryLoader(replace(connections, settings=settings))
    files_of_process = FileLoader(connections, storage_of(settings), histories.memory)
    claim, part = claim_of(stored, "x" * 200_000), image(connections, alice, png())

    with (
        histories.history_of(claim, 200_000, never),
        RunFiles(files_of_process, claim, never).loaded([part]) as contents,
    ):
        assert [png()] == list(contents.values())


def test_a_run_that_loads_no_file_waits_for_no_memory(
    stored: StoredRuns, alice: User, connections: Connections
) -> None:
    """An image by its URL has no bytes here, while files of the org take more than its share."""
    loader, part = loader_of(connections, mib=1), image(connections, alice, png())
    linked = Attachment(kind="image", url="https://example.com/a.png")
    asked = request(UserMessage("Look", (linked,)))

    with (
        run_files(stored, loader).loaded([replace(part, size=MIB)]),
        attached(asked, RunFiles(loader, claim_of(stored, "Hi"), never)) as sent,
    ):
        assert asked.messages == sent.messages

    assert not loader.memory._files


def test_a_storage_that_fails_fails_the_run(
    stored: StoredRuns, alice: User, connections: Connections
) -> None:
    """The error has a code of its own and is retryable: the file is there when the storage is."""
    part = image(connections, alice, png())
    loader = loader_of(connections)
    file = Path(connections.settings.files_dir, str(alice.org_id), str(part.file_id))
    file.unlink()
    file.mkdir()  # reading it is an error of the system

    with pytest.raises(RunFailure) as failed, run_files(stored, loader).loaded([part]):
        pass

    assert ("files.storage_unavailable", True) == (failed.value.code, failed.value.retryable)
    assert isinstance(failed.value.__cause__, StorageUnavailable)


def test_a_run_that_waits_for_a_storage_can_be_stopped(
    stored: StoredRuns, alice: User, connections: Connections
) -> None:
    """Its storage hangs: the reason is raised all the same, and the memory is given back."""
    part, loader, run = image(connections, alice, png()), loader_of(connections), Patient()
    file = Path(connections.settings.files_dir, str(alice.org_id), str(part.file_id))
    file.unlink()
    os.mkfifo(file)
    writing = os.open(file, os.O_RDWR)  # until it is closed, to read the file is to wait
    stopped, responded = threading.Event(), threading.Event()

    def stop() -> None:
        try:
            eventually(lambda: "file" in {thread.name for thread in threading.enumerate()})
            run.stop.set(CancelRequested())
            stopped.wait(60)
        finally:
            responded.set()
            os.close(writing)

    stopping = threading.Thread(target=stop)
    stopping.start()

    with pytest.raises(CancelRequested), run_files(stored, loader, run).loaded([part]):
        pass

    assert not responded.is_set()
    assert not loader.memory._files
    stopped.set()
    stopping.join(60)


def test_images_of_tools_belong_to_the_creator_of_the_run(
    stored: StoredRuns, alice: User, connections: Connections
) -> None:
    """They expire; what is no image is left out, and so is an image that cannot be stored."""
    run = run_files(stored, loader_of(connections))
    encoded = [base64.b64encode(content).decode() for content in (png(), PDF)]

    [kept] = run.keep([*encoded, "no base64!"])

    assert {"name": "image-1", "media_type": "image/png", "size": len(png())} == {
        name: kept[name] for name in ("name", "media_type", "size")
    }
    file = alice.get(f"/v1/files/{kept['file_id']}").json or {}
    assert str(alice.id) == file["created_by_user_id"]
    assert file["expires_at"] is not None
    nowhere = LocalStorage("/dev/null/files")
    broken = FileLoader(connections, nowhere, HistoryMemory(MIB))
    assert [] == run_files(stored, broken).keep(encoded[:1])
