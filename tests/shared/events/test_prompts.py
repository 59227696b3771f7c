"""Prompts as they are stored: read byte for byte, and none that is not what was sent."""

import json
import random
import time
import tracemalloc
from collections.abc import Iterable
from itertools import starmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.events import prompts
from arkloop.shared.events.prompts import MAX_BODY_BYTES, MAX_RUN_BYTES, Encoder, FileContent


def bodies(stored: Iterable[bytes]) -> list[bytes | None]:
    return [prompt.body() for prompt in prompts.read(enumerate(stored, 1))]


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
    """They may have anything in common, and events may end anywhere."""
    sent = [text.encode() for text in texts]
    encoder = Encoder()
    stored = [encoder.encode({"step": step}, body) for step, body in enumerate(sent)]

    assert sent == bodies(stored)
    found = list(prompts.read([(7, b"".join(stored))] if stored else []))
    assert sent == [prompt.body() for prompt in found]
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
    other = content[:1_000] + "x" * 1_000
    body = json.dumps([content[:2_000], content, "text", other, content, "QUJD"]).encode()
    files = [("f1", content), ("gone", "x" * 5_000), ("f2", other), ("f1", content), ("f3", "QUJD")]
    [prompt] = prompts.read([(1, Encoder().encode({}, body, starmap(FileContent, files)))])

    shown = [content[:2_000], *(f"[content of file {name}]" for name in ("f1", "f2", "f1"))]
    shown[2:2] = ["text"]
    assert json.dumps([*shown, "QUJD"]).encode() == prompt.body()
    assert len(body) == prompt.facts["bytes"]


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("text", ["", "a", 'Jane,"DE00"\n\0\t' * 9, "Grüße \U0001f600\n" * 9])
def test_text_files_are_shown_by_their_ids(text: str, ensure_ascii: bool) -> None:
    """They may be sent with any escapes, and be of any length."""
    part = f'<file name="a.csv">\n{text}\n</file>'
    body = json.dumps(["<file", "Who?", part, "end"], ensure_ascii=ensure_ascii).encode()
    stored = Encoder().encode({}, body, [FileContent("f1", part, is_text=True)])

    assert [b'["<file", "Who?", "[content of file f1]", "end"]'] == bodies([stored])


def test_many_files_take_one_pass() -> None:
    """A worker has one thread for all of its runs, in which the body must not be read per file."""
    noise = random.Random(7)
    files = [(str(n), noise.randbytes(75_000).hex()) for n in range(100)]
    body = json.dumps([content for _, content in files]).encode()

    began = time.thread_time()
    [prompt] = prompts.read([(1, Encoder().encode({}, body, starmap(FileContent, files)))])
    took = time.thread_time() - began
    began = time.thread_time()
    for _, content in files[:10]:
        body.replace(content.encode(), b"")

    assert json.dumps([f"[content of file {n}]" for n in range(100)]).encode() == prompt.body()
    assert time.thread_time() - began > took


def test_what_is_too_long_is_only_counted() -> None:
    """This applies to one body and to all of a run; later ones that need less room are stored."""
    encoder, noise = Encoder(), random.Random(7)
    large = [noise.randbytes(MAX_BODY_BYTES - 5_000) for _ in range(3)]
    sent = [b"x" * (MAX_BODY_BYTES + 1), b"small", *large, large[1] + b"and more"]
    stored = [encoder.encode({}, body) for body in sent]

    assert [None, b"small", large[0], large[1], None, sent[-1]] == bodies(stored)
    assert [len(body) for body in sent] == [
        p.facts["bytes"] for p in prompts.read(enumerate(stored))
    ]
    assert MAX_RUN_BYTES + 2_000 > sum(map(len, stored))


def test_a_list_of_prompts_decodes_none() -> None:
    """A run's page lists a hundred long ones; whether they are stored is known without them."""
    stored = [Encoder().encode({"step": 1}, b"abc" * 100), Encoder().encode({}, b"x" * 5_000_000)]
    line = stored[0].index(b"\n") + 1
    damaged = stored[0][:line] + bytes(len(stored[0]) - line)

    found = list(prompts.read([(1, damaged + stored[1])]))

    assert [True, False] == [prompt.is_stored for prompt in found]
    assert [None, None] == [prompt.body() for prompt in found]


def test_a_body_is_read_without_the_others() -> None:
    """The last of a hundred long ones takes the memory of one."""
    noise = random.Random(7)
    first = noise.randbytes(250_000).hex().encode()
    encoder = Encoder()
    said = [b'"%d"' % step * 100 for step in range(100)]
    sent = [first + b"".join(said[:count]) + b"]}" for count in range(100)]
    stored = [encoder.encode({}, body) for body in sent]
    found = list(prompts.read(enumerate(stored)))

    tracemalloc.start()
    body = found[-1].body()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert sent[-1] == body
    assert 5 * len(first) > peak


def test_what_one_body_is_put_together_from_is_bounded() -> None:
    """Bodies with little in common are stored whole from time to time."""
    encoder = Encoder()
    sent = [b"same" + bytes([step]) * 4_000_000 for step in range(20)]
    stored = [encoder.encode({}, body) for body in sent]

    facts = [prompt.facts for prompt in prompts.read(enumerate(stored))]
    assert [0, 8, 16] == [n for n, one in enumerate(facts) if not one["prefix"] + one["suffix"]]
    assert sent == bodies(stored)


def test_damaged_prompts_have_no_body() -> None:
    """Neither they nor those that are based on them; the others are shown."""
    first, second, third = conversation(3)
    encoder = Encoder()
    stored = [encoder.encode({}, body) for body in (first, second, third)]
    line = stored[1].index(b"\n") + 1
    shown = set()
    for place in range(line, len(stored[1])):
        damaged = bytearray(stored[1])
        damaged[place] ^= 0x10
        found = bodies([stored[0], bytes(damaged), stored[2], Encoder().encode({}, third)])
        assert (first, third) == (found[0], found[3])
        shown |= {found[1], found[2]}
    # Those of a flipped bit that changes nothing are right.
    assert {None, second, third} == shown

    # The rest of an event is lost with a line of JSON.
    assert [first, first] == bodies([stored[0] + b"{" + stored[1], stored[0]])


@pytest.mark.parametrize(
    "damage",
    [
        b"[]",
        b"7",
        b'"size"',
        b'{"sum":1}',
        b'{"length":-1}',
        b"[" * 100_000,
        *(
            b'{"length":%s,"size":%s,"sum":1,"base":1,"prefix":%s,"suffix":0}' % numbers
            for numbers in [
                (b"-5", b"9", b"0"),
                (b"null", b"9", b"0"),
                (b"1.5", b"9", b"0"),
                (b"true", b"9", b"0"),
                (b"1", b"4000000000", b"0"),
                (b"1", b"9", b"10"),
            ]
        ),
    ],
)
def test_a_line_that_is_no_prompts_ends_those_of_its_event(damage: bytes) -> None:
    """Other JSON, wrong numbers and sizes of no body: the other events have their prompts."""
    [first, second] = conversation(2)
    encoder = Encoder()
    stored = [encoder.encode({}, body) for body in (first, second)]

    assert [first] == bodies([stored[0] + damage + b"\n" + stored[1]])
    assert [first, second] == bodies([stored[0] + damage + b"\n", stored[1]])
