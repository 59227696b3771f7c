"""A file on its way into the storage: measured, hashed and recognised while its bytes pass."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from arkloop.shared.errors import BodyTooLarge, InvalidRequest
from arkloop.shared.files import media_types
from arkloop.shared.files.storage import Storage

MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a file's content; `sha256` has 64 hex digits."""

    media_type: str
    size: int
    sha256: str


def store(storage: Storage, key: str, pieces: Iterable[bytes]) -> Facts:
    """Write the pieces as one object, of which only a few are in memory at a time.

    Raises:
        BodyTooLarge: they have more than `MAX_BYTES`.
        InvalidRequest: they are empty, or of none of the accepted types.
        StorageUnavailable
    """
    digest, text, size, head = hashlib.sha256(), media_types.TextCheck(), 0, b""
    with storage.writing(key) as writer:
        for piece in pieces:
            size += len(piece)
            if size > MAX_BYTES:
                raise BodyTooLarge(f"The file is larger than {MAX_BYTES // 1024**2} MiB.")
            if len(head) < media_types.HEAD_BYTES:
                head = (head + piece)[: media_types.HEAD_BYTES]
            text.add(piece)
            digest.update(piece)
            writer.write(piece)
        text.add(b"", is_last=True)
        media_type = media_types.of_head(head) or (media_types.TEXT if text.is_text else None)
        if not size:
            raise InvalidRequest(file=["must not be empty"])
        if media_type is None:
            raise InvalidRequest(file=[media_types.ACCEPTED])
        writer.commit()
    return Facts(media_type, size, digest.hexdigest())
