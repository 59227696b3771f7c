"""The store of files' bytes: a local directory, or an S3 bucket where one is configured.

An object is complete or absent: it exists only after its writer's `commit`. Keys are ids that this
service made, never names that a client chose.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from arkloop.shared.config import InvalidSettings

#: Bytes of one piece that is read.
PIECE_BYTES = 256 * 1024


class UnusableStorage(InvalidSettings):
    """A setting of the storage that is wrong; the message names it and says why."""


class ObjectMissing(LookupError):
    """An object that does not exist, or not any more."""


class Writer(Protocol):
    """A writer of one object; a block that ends without `commit` leaves nothing behind."""

    def write(self, data: bytes) -> None:
        """Append bytes. Raises: StorageUnavailable."""

    def commit(self) -> None:
        """Make the object exist, durably. Raises: StorageUnavailable."""


class Storage(Protocol):
    """The methods may be called by many threads at once; each may raise StorageUnavailable."""

    def check(self) -> str | None:
        """Check the settings; a server that is down is only logged.

        Returns what an operator can do about what was logged. Raises: UnusableStorage.
        """

    def writing(self, key: str) -> AbstractContextManager[Writer]:
        """Write an object of a new key."""

    def read(self, key: str) -> Iterator[bytes]:
        """Open an object, whose bytes are then read piece by piece. Raises: ObjectMissing."""

    def remove(self, key: str) -> None:
        """Remove an object and what an interrupted writer left of it; absent ones are no error."""
