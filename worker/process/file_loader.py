"""The stored files that this process's runs send to models, within the memory of their threads."""

import base64
import contextvars
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import select

from arkloop.shared.claim import Claim
from arkloop.shared.errors import ArkloopError, StorageUnavailable
from arkloop.shared.files import files, incoming, media_types
from arkloop.shared.files.storage import ObjectMissing, Storage
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.outcomes import RunFailure
from arkloop.worker.process.history_loader import RETRY_SECONDS, HistoryMemory, Waiting

log = logging.getLogger(__name__)

#: While it is sent a file is in memory as itself, in base64, and as a part of the request.
COPIES = 4
#: Of files that were sent last: each step of a run sends the same ones again.
CACHE_BYTES = 32 * 1024 * 1024


class Run(Waiting, Protocol):
    """The run that waits for memory and for the storage."""

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `abort` when the run is stopped within the block, which then raises the reason."""


class FileLoader:
    """The loader of a process; its methods are called by the threads of many runs."""

    def __init__(self, connections: Connections, storage: Storage, memory: HistoryMemory) -> None:
        self.connections = connections
        self.memory = memory
        self.storage = storage
        self._lock = threading.Lock()
        self._cache: OrderedDict[UUID, bytes] = OrderedDict()
        self._cached_bytes = 0

    def content(self, org_id: UUID, file_id: UUID, run: Run) -> bytes:
        """Return the bytes of a file.

        Raises:
            ObjectMissing, StorageUnavailable
            what stops the run: a storage may be slow, or hang.
        """
        with self._lock:
            if (content := self._cache.get(file_id)) is not None:
                self._cache.move_to_end(file_id)
                return content
        loaded: Future[bytes] = Future()
        # With this thread's context: lines that the storage logs name the run.
        target, args = contextvars.copy_context().run, (self._load, org_id, file_id, loaded)

        def give_up() -> None:
            loaded.cancel()

        with run.aborting(give_up):
            threading.Thread(target=target, args=args, name="file", daemon=True).start()
            return loaded.result()

    def _load(self, org_id: UUID, file_id: UUID, loaded: Future[bytes]) -> None:
        """Read a file for a run, until nobody waits for it any more."""
        pieces = []
        try:
            for piece in self.storage.read(files.key_of(org_id, file_id)):
                if loaded.cancelled():
                    return
                pieces.append(piece)
            content = b"".join(pieces)
            self._keep(file_id, content)
            settle = partial(loaded.set_result, content)
        except Exception as error:
            settle = partial(loaded.set_exception, error)
        with suppress(InvalidStateError):  # the run was stopped
            settle()

    def _keep(self, file_id: UUID, content: bytes) -> None:
        with self._lock:
            if file_id not in self._cache:
                self._cache[file_id] = content
                self._cached_bytes += len(content)
            while self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1])


class RunFiles:
    """The `Files` of one run."""

    def __init__(self, loader: FileLoader, claim: Claim, run: Run) -> None:
        self._loader = loader
        self._claim = claim
        self._run = run

    @contextmanager
    def loaded(self, attachments: Sequence[Attachment]) -> Iterator[Mapping[str, bytes]]:
        org_id, memory = self._claim.org_id, self._loader.memory
        size = COPIES * sum(attachment.size for attachment in attachments)
        while not memory.take(org_id, size, for_files=True):
            self._run.wait_for_memory(RETRY_SECONDS)
        try:
            yield self._contents({UUID(a.file_id) for a in attachments if a.file_id is not None})
        finally:
            memory.give_back(org_id, size, for_files=True)

    def keep(self, images: Sequence[str]) -> list[dict[str, Any]]:
        kept = []
        for number, image in enumerate(images, 1):
            try:
                kept.append(self._keep(f"image-{number}", base64.b64decode(image, validate=True)))
            except (ValueError, ArkloopError) as error:
                log.warning("an image that a tool returned was not stored: %s", error)
        return kept

    def _keep(self, name: str, content: bytes) -> dict[str, Any]:
        claim, connections = self._claim, self._loader.connections
        if media_types.of_head(content) not in media_types.IMAGES:
            raise ValueError("neither PNG nor JPEG, GIF or WebP")
        with connections.transaction() as tx:
            creator = select(runs.c.created_by_user_id).where(runs.c.id == claim.run_id)
            user_id = tx.sql.execute(creator).scalar_one()
            file_id = files.create(
                tx,
                org_id=claim.org_id,
                user_id=user_id,
                end_user_id=claim.end_user_id,
                name=name,
            )
        key = files.key_of(claim.org_id, file_id)
        facts = incoming.store(self._loader.storage, key, [content])
        # As long as the events that refer to it.
        kept_for = timedelta(days=connections.settings.retention_days)
        with connections.transaction() as tx:
            files.complete(tx, file_id, facts, kept_for=kept_for)
        described = {"media_type": facts.media_type, "size": facts.size}
        return {"file_id": str(file_id), "name": name, **described}

    def _contents(self, file_ids: set[UUID]) -> dict[str, bytes]:
        if not file_ids:
            return {}
        org_id = self._claim.org_id
        with self._loader.connections.reading() as sql:
            rows = files.of_ids(sql, org_id, file_ids)
        contents = {}
        for row in rows:
            try:
                contents[str(row.id)] = self._loader.content(org_id, row.id, self._run)
            except ObjectMissing:
                continue  # it is being deleted
            except StorageUnavailable as error:
                raise RunFailure(error.code, error.message, retryable=True) from error
        return contents
