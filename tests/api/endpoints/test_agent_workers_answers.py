"""The final answers of agent workers that are long."""

import json
from collections.abc import Callable

import pytest

from tests.api.endpoints.agent_worker import MakeWorker, start, turn, worker
from tests.clients import User

pytestmark = pytest.mark.own_database

__all__ = ["start", "worker"]  # fixtures

MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize("piece", ["x", '"\n', "\u5b57"])
def test_an_answer_may_have_a_mebibyte(
    piece: str, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """The limit is on the text itself, of which JSON escapes quotes and the ends of lines."""
    start()
    mine = worker()
    mine.take()
    answer = piece * (MEBIBYTE // len(piece.encode()))

    written = [mine.write("append", turn(answer)), mine.write("complete", content=answer)]

    assert [200, 200] == [one.status_code for one in written], [one.text for one in written]


def test_an_object_may_have_a_mebibyte(alice: User, worker: MakeWorker) -> None:
    """It is in the body twice, once as text, in which each of its quotes is escaped."""
    schema = {"type": "object"}
    alice.post("/v1/personas", json={"key": "exact", "agent": "mine", "output_schema": schema})
    alice.post("/v1/runs", json={"persona_id": "exact", "message": "Hi"})
    mine = worker()
    mine.take()
    output = {"rows": ["ab"] * (MEBIBYTE // len('"ab",') - 10)}
    content = json.dumps(output, separators=(",", ":"))

    written = mine.write("complete", content=content, output=output)

    assert 200 == written.status_code, written.text
