"""Redis commands that are sent together, encoded here since redis-py takes long for it.

redis-py encodes each argument of each command by itself, which for the events of a run takes ten
times as long as filling the few forms that their commands have.
"""

from typing import Any

from redis.exceptions import ResponseError

_PIECE_BYTES = 65_536


def word(value: str | int) -> str:
    """Encode an argument of a command as Redis' protocol has it."""
    text = str(value)
    return f"${len(text) if text.isascii() else len(text.encode())}\r\n{text}\r\n"


def form(*words: str | None) -> str:
    """Encode a command with a place for each None, for `Commands.add`."""
    places = ("%s" if one is None else word(one).replace("%", "%%") for one in words)
    return f"*{len(words)}\r\n{''.join(places)}"


class Commands:
    """Commands for one round trip to Redis, without a transaction."""

    def __init__(self) -> None:
        self._encoded: list[str] = []

    def add(self, command: str, *values: str) -> None:
        """Add a command: its `form`, and what `word` returns for each of its places."""
        self._encoded.append(command % values)

    def send(self, redis: Any) -> list[Any]:
        """Send them by a client of redis-py; return the answers, with the errors among them.

        Raises:
            redis.exceptions.RedisError: Redis is out of reach.
        """
        if not self._encoded:
            return []
        message = "".join(self._encoded).encode()
        pool = redis.connection_pool
        connection = pool.get_connection()
        try:
            answers: list[Any] = connection.retry.call_with_retry(
                lambda: self._exchange(connection, message), lambda _error: connection.disconnect()
            )
        except BaseException:
            # It may have answers to come, which the next command would take for its own.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        return answers

    def _exchange(self, connection: Any, message: bytes) -> list[Any]:
        # In pieces: each has the socket's time limit, which is meant for a command, for itself.
        pieces = range(0, len(message), _PIECE_BYTES)
        connection.send_packed_command([message[at : at + _PIECE_BYTES] for at in pieces])
        answers: list[Any] = []
        for _ in self._encoded:
            try:
                answers.append(connection.read_response())
            except ResponseError as error:
                answers.append(error)
        return answers
