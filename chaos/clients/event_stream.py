"""Server-Sent Events from the bytes of an HTTP answer, without changing a byte of their data."""

from dataclasses import dataclass


class BrokenAnswer(Exception):
    """The bytes are not HTTP/1.1 as this client knows it."""


class Chunks:
    """The chunked transfer coding, taken off piece by piece."""

    def __init__(self) -> None:
        #: The last chunk came: the server has said all that it wanted to say.
        self.ended = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the body that this data contains."""
        self._buffer += data
        body = bytearray()
        while not self.ended:
            line_end = self._buffer.find(b"\r\n")
            if line_end < 0:
                break
            try:
                size = int(self._buffer[:line_end].split(b";")[0], 16)
            except ValueError:
                if body:
                    # First what came before the nonsense, which the next call meets again.
                    break
                raise BrokenAnswer(f"chunk size {bytes(self._buffer[:line_end])!r}") from None
            begin, end = line_end + 2, line_end + 2 + size
            if len(self._buffer) < end + 2:
                break
            body += self._buffer[begin:end]
            del self._buffer[: end + 2]
            self.ended = size == 0
        return bytes(body)


@dataclass(frozen=True, slots=True)
class Frame:
    """An event as it arrived; `id` is -1 for a frame without a number."""

    id: int
    line: str


class Frames:
    """Frames out of a body; what is not yet a whole frame waits for the rest."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that this data completes."""
        *blocks, self._buffer = (self._buffer + data).split(b"\n\n")
        return [frame for block in blocks if (frame := _frame(block)) is not None]


def frames_of(body: bytes) -> list[Frame]:
    """Return all frames of a whole body."""
    return Frames().feed(body)


def _frame(block: bytes) -> Frame | None:
    lines: list[str] = []
    number = -1
    for line in block.split(b"\n"):
        if line.startswith(b"data: "):
            lines.append(line[6:].decode(errors="replace"))
        elif line.startswith(b"id: ") and line[4:].isdigit():
            number = int(line[4:])
    return Frame(number, "\n".join(lines)) if lines else None
