"""The clients of the benchmarks count what they receive, however it is cut."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from bench.bursts import DELTAS, is_complete
from bench.http_clients import Caller, Follower, Loop, Target, call_all

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Serve = Callable[[socket.socket], None]


@contextmanager
def a_server(serve: Serve) -> Iterator[Target]:
    """Serve each connection in a thread, which ends when `serve` returns."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(client,), daemon=True).start()

        def answer(client: socket.socket) -> None:
            with client:
                serve(client)

        threading.Thread(target=accept, daemon=True).start()
        yield Target(f"http://127.0.0.1:{listener.getsockname()[1]}", "token")
        listener.shutdown(socket.SHUT_RDWR)


def a_frame(seq: int, kind: str, content: str = "") -> bytes:
    data = f'{{"seq":{seq},"type":"{kind}","data":{{"content":"{content}"}}}}'
    return f"data: {data}\nid: {seq}\n\n".encode()


def a_stream(pieces: Sequence[bytes]) -> Serve:
    """Send the pieces one by one, each when the client has taken the last, then wait for its
    end.
    """

    def serve(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(65536)
        for piece in pieces:
            client.sendall(piece)
        while client.recv(65536):
            pass

    return serve


def followed(pieces: Sequence[bytes], *, after_seq: int = 0) -> Follower:
    """Return a follower that has had its last event, of a server that sends these pieces."""
    loop = Loop()
    with a_server(a_stream(pieces)) as target:
        follower = Follower(loop, target, "run", after_seq=after_seq, keep=True)
        loop.until(lambda: follower.end, 60, "the end")
        follower.close()
    return follower


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


EVENTS = [
    a_frame(1, "run.started"),
    *(a_frame(seq, "message.delta", f"{seq - 2}:1700000000.1234 ") for seq in range(2, 12)),
    a_frame(12, "run.completed"),
]


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_follower_counts_every_event_however_it_is_cut(size: int) -> None:
    follower = followed([HEAD, *in_pieces(b": ok\n\n" + b"".join(EVENTS), size)])

    assert (12, 12, 0) == (follower.received, follower.cursor, follower.holes)
    assert follower.end == "run.completed"


def test_a_follower_sees_a_hole() -> None:
    assert followed([HEAD, *EVENTS[:3], *EVENTS[4:]]).holes > 0


def test_a_follower_sees_a_repeated_event() -> None:
    assert followed([HEAD, *EVENTS[:3], *EVENTS[2:]]).holes > 0


def test_a_follower_begins_after_its_cursor() -> None:
    follower = followed([HEAD, *EVENTS[5:]], after_seq=5)

    assert (7, 12, 0) == (follower.received, follower.cursor, follower.holes)


def test_a_follower_refuses_an_error() -> None:
    with pytest.raises(AssertionError, match="503"):
        followed([b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])


def test_a_run_is_complete_if_every_number_came_once() -> None:
    def of(numbers: Sequence[int], end: str = "run.completed") -> Follower:
        """Build a follower with five numbers in each event."""
        said = [" ".join(f"{n}:1700000000.1234" for n in numbers[at : at + 5]) + " "
                for at in range(0, len(numbers), 5)]  # fmt: skip
        deltas = [a_frame(seq, "message.delta", text) for seq, text in enumerate(said, 2)]
        whole = a_frame(len(deltas) + 2, "message.completed", "".join(said))
        last = a_frame(len(deltas) + 3, end)
        return followed([HEAD, a_frame(1, "run.started"), *deltas, whole, last])

    numbers = [*range(DELTAS)]

    assert is_complete(of(numbers))
    assert not is_complete(of(numbers[:-1]))
    assert not is_complete(of(numbers[:50] + numbers[49:]))
    assert not is_complete(of(numbers, end="run.failed"))


def test_answers_are_cut_by_their_length() -> None:
    """Each request over few connections gets its own response, even if it arrives in bits."""

    def serve(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request := client.recv(65536):
            body = request.split(b" ", 2)[1] * 3
            for bit in in_pieces(
                b"HTTP/1.1 201 Created\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body), 11
            ):
                client.sendall(bit)

    paths = [f"/{number}" for number in range(40)]
    with a_server(serve) as target:
        answers = call_all(
            Loop(), [target], [("POST", path, {"a": 1}) for path in paths], connections=4
        )

    assert {201} == {status for status, _, _ in answers}
    assert sorted(path * 3 for path in paths) == sorted(body.decode() for _, body, _ in answers)


@pytest.mark.parametrize("looks", [True, False])
def test_a_connection_that_was_idle_for_too_long_is_opened_again(looks: bool) -> None:
    """A server closes it after some seconds, whether or not the loop is turned meanwhile."""
    gone = threading.Event()

    def serve(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        client.close()
        gone.set()

    loop = Loop()
    with a_server(serve) as target:
        caller = Caller(loop, target)

        def answer() -> bytes:
            found: list[bytes] = []
            gone.clear()
            caller.call(target.request("GET", "/"), lambda _, body, *__: found.append(body))
            loop.until(lambda: found, 60, "the answer")
            assert gone.wait(60)
            if looks:
                loop.turn()
            return found[0]

        bodies = [answer() for _ in range(2)]
        caller.close()

    assert [b"ok", b"ok"] == bodies
