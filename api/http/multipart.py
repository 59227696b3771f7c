"""The one file of a `multipart/form-data` body, read piece by piece: never as a whole.

Werkzeug's decoder gets the body in pieces; nothing else of a form is accepted beside the file.
"""

import re
import time
from collections.abc import Iterator

import gevent
from flask import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from arkloop.api.http.json_body import NoArguments, query_args, stop_reading
from arkloop.shared.errors import BodyTooLarge, InvalidRequest, RequestTimeout, UnsupportedMediaType

#: What a form may have around the file: its boundary and the headers of the part.
FRAME_BYTES = 64 * 1024
PIECE_BYTES = 64 * 1024
#: Each piece has this much time. All of them together have as much, and a second more for each of
#: these bytes that have arrived.
BODY_SECONDS = 10
BYTES_PER_SECOND = 64 * 1024
#: RFC 2046 allows 70, but Werkzeug's own client sends up to 75 now and then.
MAX_BOUNDARY_CHARACTERS = 200
_WINDOWS_PATH = re.compile(
    r"""; *filename="(?:[A-Za-z]:|\\)\\(?:[^"]*\\)?(?P<name>[^"\\]*)"$""", re.IGNORECASE
)


def read_file(field: str, max_bytes: int) -> tuple[str, Iterator[bytes]]:
    """Read the body up to its file, which must be the form's only field.

    Returns the file's name, as the client gave it but for the folders of Windows, and the pieces of
    its content. Reading these raises the same errors. That the content is within `max_bytes` is the
    caller's to check.

    Raises:
        UnsupportedMediaType: another body than `multipart/form-data`.
        BodyTooLarge: by its length, before it is read.
        RequestTimeout: the body arrives at less than 64 KiB/s.
        InvalidRequest: a malformed or incomplete form, or one without the file.
    """
    query_args(NoArguments())
    boundary = request.mimetype_params.get("boundary", "")
    if (
        request.mimetype != "multipart/form-data"
        or not 0 < len(boundary) <= MAX_BOUNDARY_CHARACTERS
        or not boundary.isascii()
        or "Content-Encoding" in request.headers
    ):
        raise UnsupportedMediaType(
            "Send the file as multipart/form-data; Content-Encoding is not supported."
        )
    if (request.content_length or 0) > max_bytes + FRAME_BYTES:
        raise BodyTooLarge(f"The file is larger than {max_bytes // 1024**2} MiB.")
    events = _events(boundary.encode())
    for event in events:
        if isinstance(event, File | Field):
            if event.name != field:
                raise InvalidRequest(**{str(event.name): ["unknown field"]})
            if not isinstance(event, File):
                raise InvalidRequest(**{field: ["must be a file, with a file name"]})
            return _name_of(event), _content(events)
    raise InvalidRequest(**{field: ["is required"]})


def _name_of(file: File) -> str:
    """Return the file's name; of a path of Windows the last part.

    Such clients send it without escapes, and the decoder reads an escape in each backslash.
    """
    path = _WINDOWS_PATH.search(file.headers.get("Content-Disposition", ""))
    return file.filename if path is None else path["name"].replace("%22", '"')


def _content(events: Iterator[Event]) -> Iterator[bytes]:
    for event in events:
        if isinstance(event, Data):
            if event.data:
                yield event.data
        elif isinstance(event, File | Field):
            raise InvalidRequest(**{str(event.name): ["unknown or duplicate field"]})


def _events(boundary: bytes) -> Iterator[Event]:
    """Yield the events of the form up to its end; a NeedData is never among them."""
    decoder = MultipartDecoder(boundary, max_form_memory_size=FRAME_BYTES + 2 * PIECE_BYTES)
    pieces = _pieces()
    try:
        while True:
            event = decoder.next_event()
            if isinstance(event, NeedData):
                decoder.receive_data(next(pieces, None))
                continue
            yield event
            if isinstance(event, Epilogue):
                return
    except (ValueError, RequestEntityTooLarge) as error:
        raise InvalidRequest(body=["is not valid multipart/form-data"]) from error


def _pieces() -> Iterator[bytes]:
    """Yield the body as it arrives, within the time that its length deserves."""
    stream, expected = request.environ["wsgi.input"], request.content_length
    began, received = time.monotonic(), 0
    while expected is None or received < expected:
        seconds = BODY_SECONDS + received / BYTES_PER_SECOND - (time.monotonic() - began)
        most = PIECE_BYTES if expected is None else min(PIECE_BYTES, expected - received)
        deadline = gevent.Timeout.start_new(min(max(seconds, 0.001), BODY_SECONDS))
        try:
            piece = stream.read(most)
        except gevent.Timeout as timeout:
            if timeout is not deadline:
                raise
            stop_reading()
            raise RequestTimeout("The body arrives too slowly: less than 64 KiB/s.") from None
        except Exception as error:  # each server has its own for a broken framing
            raise InvalidRequest(body=["is incomplete or badly framed"]) from error
        finally:
            deadline.close()
        if not piece:
            break
        received += len(piece)
        yield piece
        gevent.sleep(0)  # hashing and decoding take their time: others get on between two pieces
    if expected is not None and received < expected:
        raise InvalidRequest(body=["is shorter than its Content-Length"])
