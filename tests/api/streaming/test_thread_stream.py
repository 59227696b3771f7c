"""The frames of a thread's stream: those of its runs, with the run in each id."""

from uuid import uuid4

import pytest

from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.stream_pages import PIECE_BYTES, Page
from arkloop.api.streaming.thread_stream import ThreadRuns, ThreadStream
from arkloop.api.streaming.watch import Watch
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.stored_runs import StoredRuns


@pytest.mark.parametrize("beyond", range(-3, 32))
def test_ids_have_their_run_wherever_pieces_are_cut(
    connections: Connections, stored: StoredRuns, beyond: int
) -> None:
    """Frames longer than a piece, cut near and in their last line, and whole ones around them."""
    hub, runs = StreamHub(connections), ThreadRuns(connections, lambda _: b"")
    watch = Watch(new_id(), stored.actor, awaits_run=True)
    stream = ThreadStream(hub, runs, watch, 0, follows=True)
    watch.begin(run_id := uuid4(), 0)
    end = len(b"\nid: 1234567890123456789\n\n")
    long = PIECE_BYTES - len(b"data: ") - end + beyond
    texts = [b"a", b"x" * long, b"b", b"y" * (long + PIECE_BYTES), b"c"]
    seqs = [1, 1234567890123456789, 3, 1234567890123456789, 5]
    frames = [b"data: %b\nid: %d\n\n" % frame for frame in zip(texts, seqs, strict=True)]

    pieces = list(stream.pieces(Page(b"".join(frames), 5, 5, ended=False)))

    name = str(run_id).encode()
    own = [b"data: %b\nid: %b:%d\n\n" % (t, name, n) for t, n in zip(texts, seqs, strict=True)]
    assert b"".join(own) == b"".join(pieces)
    assert all(pieces)
    assert PIECE_BYTES + 5 * 40 > max(map(len, pieces))
