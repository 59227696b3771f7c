"""Prompts as they are stored: read byte for byte, and none that is not what was sent."""

import json
import random
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.events import prompts
from arkloop.shared.events.prompts import MAX_ATTEMPT_BYTES, MAX_BODY_BYTES, Encoder


def bodies(stored: Iterable[bytes]) -> list[bytes | None]:
    return [prompt.body for prompt in prompts.read(enumerate(stored, 1))]


def conversation(turns: int) -> list[bytes]:
    """Return the bodies of a run's calls: each with one message more than the last."""
    noise = random.Random(7)
    said = [{"role": "user", "content": noise.randbytes(200).hex()} for _ in range(turns)]
    system = noise.randbytes(4_000).hex()
    return [
        json.dumps({"model": "m", "messages": said[:count], "system": system}).encode()
        for count in range(1, turns + 1)
    ]


@given(st.lists(st.text(alphabet='ab{}\n"\0é', max_size=40), max_size=8))
def test_any_bodies_are_read_as_they_were_sent(texts: list[str]) -> None:
    """Whatever they have in common, and wherever one event ends and the next begins."""
    sent = [text.encode() for text in texts]
    encoder = Encoder()
    stored = [encoder.encode({"step": step}, body) for step, body in enumerate(sent)]

    assert sent == bodies(stored)
    found = list(prompts.read([(7, b"".join(stored))] if stored else []))
    assert sent == [prompt.body for prompt in found]
    assert [(n + 1, 7, n) for n in range(len(sent))] == [
        (prompt.number, prompt.seq, prompt.facts["step"]) for prompt in found
    ]


def test_what_is_sent_again_takes_no_room() -> None:
    """A step more is stored as what it adds, though the body has a part after it."""
    sent = conversation(50)
    encoder = Encoder()
    stored = [encoder.encode({}, body) for body in sent]

    assert sent == bodies(stored)
    assert 600 > max(map(len, stored[1:]))


def test_a_prompt_after_a_lost_one_is_not_made_up() -> None:
    """What is based on a body that is not there has none, up to the next that needs no other."""
    first, second, third = conversation(3)
    encoder = Encoder()
    stored = [encoder.encode({}, body) for body in (first, second, third)]
    stored.append(Encoder().encode({}, first))

    assert [first, None, first] == bodies([stored[0], *stored[2:]])


def test_files_are_shown_by_their_ids() -> None:
    """Their content is left out, however often it was sent; the length is that of what was sent."""
    content = "QUJD" * 1_000
    body = json.dumps([content, "text", content, "QUJD"]).encode()
    [prompt] = prompts.read([(1, Encoder().encode({}, body, [("f1", content), ("f2", "QUJD")]))])

    assert b'["[content of file f1]", "text", "[content of file f1]", "QUJD"]' == prompt.body
    assert len(body) == prompt.facts["bytes"]


def test_what_is_too_long_is_only_counted() -> None:
    """One body, or all of an attempt; later ones that need less room are stored."""
    encoder, noise = Encoder(), random.Random(7)
    large = [noise.randbytes(MAX_BODY_BYTES - 5_000) for _ in range(3)]
    sent = [b"x" * (MAX_BODY_BYTES + 1), b"small", *large, large[1] + b"and more"]
    stored = [encoder.encode({}, body) for body in sent]

    assert [None, b"small", large[0], large[1], None, sent[-1]] == bodies(stored)
    assert [len(body) for body in sent] == [
        p.facts["bytes"] for p in prompts.read(enumerate(stored))
    ]
    assert MAX_ATTEMPT_BYTES + 2_000 > sum(map(len, stored))
