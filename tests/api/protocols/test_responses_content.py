"""Messages without words, and messages whose conversation continues though they were refused."""

from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.shared.runs.states import RunState
from tests.api.protocols.said import earlier_of, message_of
from tests.api.protocols.test_responses_files import (
    FAILED,
    IMAGE,
    MODEL,
    QUESTION,
    answered,
    kept_files,
    newest_message,
    user_says,
)
from tests.clients import User
from tests.stored_runs import StoredRuns

EMPTY = {"type": "input_text", "text": ""}
LOOK = {"type": "input_text", "text": "Look."}
BY_HTTP = {"type": "input_image", "image_url": "http://example.com/a.png"}
UNKNOWN = {"type": "input_file", "file_id": "file-1"}
AUDIO = {"type": "input_audio", "input_audio": {"data": "SGVsbG8=", "format": "mp3"}}
LONG = "a" * 300_000
#: An image as base64 that is no `data:` URL, and what else has a name of any length.
LONG_IMAGE = {"type": "input_image", "image_url": LONG}
LONG_FILE = {"type": "input_file", "file_url": f"https://example.com/{LONG}"}
LONG_NAME = {"type": "input_file", "filename": LONG, "file_data": "SGVsbG8="}
LONG_ID = {"type": "input_file", "file_id": LONG}
SILENCE = {"role": "assistant", "content": ""}
HELLO = {"role": "user", "content": "Hello?"}


def send(alice: User, *items: Any) -> TestResponse:
    return alice.post("/v1/responses", {**MODEL, "input": list(items)})


def test_an_image_needs_no_words(alice: User) -> None:
    """Open WebUI puts an empty text in front of it."""
    made = send(alice, user_says(EMPTY, IMAGE))

    assert 200 == made.status_code, made.text
    assert ["image"] == [part["type"] for part in newest_message(alice)]


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (user_says(EMPTY, IMAGE), ["User: [image]"]),
        (user_says(LOOK, BY_HTTP), ["User: Look.\n[image: http://example.com/a.png]"]),
        (user_says(UNKNOWN), ["User: [file: file-1]"]),
        (user_says(LOOK, LONG_IMAGE), ["User: Look.\n[image: without a name]"]),
        (user_says(LONG_FILE, LONG_NAME), ["User: [file: without a name]\n[file]"]),
        (user_says(LONG_ID), ["User: [file: without a name]"]),
        (user_says(EMPTY), []),
        (user_says(), []),
        (user_says(AUDIO, {"type": "text", "text": "Look."}), ["User: [input_audio]\nLook."]),
        ({"role": "user", "content": ""}, []),
        ({"role": "user", "content": None}, []),
        ({"role": "user"}, []),
    ],
    ids=[
        "no words",
        "http",
        "no file",
        "long",
        "longer",
        "id",
        "no text",
        "no parts",
        "kinds",
        "nothing",
        "null",
        "missing",
    ],
)
@pytest.mark.parametrize("is_answered", [True, False])
def test_an_earlier_message_does_not_block_those_behind_it(
    alice: User, stored: StoredRuns, said: Any, lines: list[str], is_answered: bool
) -> None:
    """Clients keep it, and send it in front of each further one."""
    items = [said, SILENCE] if is_answered else [said]

    made = send(alice, *items, HELLO)

    assert 200 == made.status_code, made.text
    if IMAGE in list(said.get("content") or ()) and not is_answered:
        assert ["image", "text"] == [part["type"] for part in newest_message(alice)]
        return
    lines = [*lines, *(["Assistant: "] if is_answered else [])]
    assert lines == (earlier_of(alice, made) if lines else [])
    assert message_of(alice, made).endswith("Hello?")
    assert 0 == kept_files(stored)


@pytest.mark.parametrize("content", ["", None, [], [EMPTY], [LOOK, BY_HTTP], [UNKNOWN], [AUDIO]])
def test_the_last_message_is_refused_for_what_it_has(alice: User, content: Any) -> None:
    """A message in front of it makes no difference."""
    refused = send(alice, HELLO, {"role": "user", "content": content})

    assert 400 == refused.status_code
    assert "input[1].content" in refused.text


@pytest.mark.parametrize("content", [5, [5], [{"text": "?"}], [{"type": LONG}], LONG])
def test_an_earlier_message_of_what_is_no_content_is_refused(alice: User, content: Any) -> None:
    """A text that is too long is not left out either: the model would miss what was said."""
    refused = send(alice, {"role": "user", "content": content}, HELLO)

    assert 400 == refused.status_code
    assert "input[0].content" in refused.text


def test_a_message_without_words_is_known_where_it_is_sent_again(
    alice: User, stored: StoredRuns
) -> None:
    """The thread has it, so its image is not sent with the next one."""
    shown, said = answered(stored, alice), user_says(EMPTY, IMAGE)
    first, again = send(alice, shown, said), send(alice, shown, said)
    assert (first.json or {})["id"] == (again.json or {})["id"]
    run_id = UUID((first.json or {})["id"].removeprefix("resp_"))
    stored.finish(stored.held(run_id), error=FAILED, state=RunState.FAILED)

    refused = [{"role": "user", "content": ""}, {"role": "user"}, user_says(AUDIO)]
    made = send(alice, shown, said, *refused, user_says(QUESTION))

    assert ["User: [image]", "User: [input_audio]"] == earlier_of(alice, made)
    assert ["text"] == [part["type"] for part in newest_message(alice)]
    assert 1 == kept_files(stored)
