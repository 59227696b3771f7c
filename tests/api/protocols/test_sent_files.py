"""Requests with files in their messages, and with more than a body may have."""

from base64 import b64encode
from copy import deepcopy
from typing import Any

import pytest
from sqlalchemy import select, text

from arkloop.api.protocols import sent_files
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.files import files
from tests.clients import User
from tests.contents import png

URL = "data:text/plain;base64,SGVsbG8="
#: A request of each protocol whose message has a file in it.
PARTS: dict[str, Any] = {
    "/v1/responses": {"type": "input_file", "filename": "a.txt", "file_data": URL},
    "/v1/agui": {
        "type": "document",
        "source": {"type": "data", "value": "SGVsbG8=", "mimeType": "text/plain"},
    },
    "/v1/ui/chat": {"type": "file", "mediaType": "text/plain", "url": URL},
}
BODIES: dict[str, Any] = {
    "/v1/responses": {
        "model": "scripted",
        "background": True,
        "input": [{"role": "user", "content": [PARTS["/v1/responses"]]}],
    },
    "/v1/agui": {
        "threadId": "chat-1",
        "runId": "run-1",
        "messages": [{"id": "m1", "role": "user", "content": [PARTS["/v1/agui"]]}],
    },
    "/v1/ui/chat": {
        "id": "chat-1",
        "messages": [{"id": "m1", "role": "user", "parts": [PARTS["/v1/ui/chat"]]}],
    },
}


def expiring(connections: Connections, alice: User) -> list[bool]:
    """Return of each file of the org whose bytes are stored whether it will expire."""
    of_org = (files.c.org_id == alice.org_id) & files.c.stored_at.is_not(None)
    query = select(files.c.expires_at.is_not(None)).where(of_org).order_by(files.c.id)
    with connections.reading() as sql:
        return list(sql.scalars(query))


@pytest.mark.parametrize("path", BODIES)
def test_files_of_a_message_that_was_not_created_expire(
    alice: User, connections: Connections, path: str
) -> None:
    """After 503 the client sends the same again; a process may die at the same place."""
    with connections.transaction() as other:
        other.sql.execute(text("LOCK TABLE runs IN SHARE MODE"))
        refused = alice.post(path, BODIES[path])
    assert (503, [True]) == (refused.status_code, expiring(connections, alice))

    made = alice.post(path, BODIES[path], buffered=False)
    made.close()

    assert 200 == made.status_code
    assert [True, False] == expiring(connections, alice)


@pytest.mark.parametrize("path", BODIES)
def test_a_long_conversation_can_be_sent_again(alice: User, path: str) -> None:
    """Clients send all of it with each message, which is more than other bodies have."""
    body = deepcopy(BODIES[path])
    items = body["input" if path == "/v1/responses" else "messages"]
    said = (
        {"parts": [{"type": "text", "text": "Hi"}]} if path == "/v1/ui/chat" else {"content": "Hi"}
    )
    for number in range(4_000):
        role = "assistant" if number % 2 else "user"
        items.insert(number, {"id": f"e{number}", "role": role, **said})

    made = alice.post(path, body, buffered=False)
    made.close()

    assert 200 == made.status_code


@pytest.mark.parametrize(
    ("path", "also"),
    [("/v1/ui/chat", "Send only the last message. "), ("/v1/agui", ""), ("/v1/responses", "")],
)
def test_a_body_that_is_too_large_is_refused_with_a_remedy(
    alice: User, path: str, also: str
) -> None:
    """Clients send files of the whole conversation again with each message."""
    data = b" " * (sent_files.MAX_BODY_BYTES + 1)

    refused = alice.post(path, data=data, content_type="application/json")

    assert 413 == refused.status_code
    why = "The body is larger than 8 MiB. " + also + sent_files.REMEDY
    assert why in refused.text


@pytest.mark.parametrize("path", BODIES)
def test_files_of_a_message_with_too_many_parts_are_not_stored(
    alice: User, connections: Connections, path: str
) -> None:
    """A small request can have thousands of them."""
    body = deepcopy(BODIES[path])
    [message] = body["input" if path == "/v1/responses" else "messages"]
    message["parts" if path == "/v1/ui/chat" else "content"] = 21 * [PARTS[path]]

    refused = alice.post(path, body)

    assert 400 <= refused.status_code < 500
    assert "must have 1 to 20 parts" in refused.text
    assert [] == expiring(connections, alice)


@pytest.mark.parametrize("path", BODIES)
def test_a_file_needs_no_words(alice: User, path: str) -> None:
    """Clients put an empty text beside it, also behind as many parts as a message may have."""
    body = deepcopy(BODIES[path])
    [message] = body["input" if path == "/v1/responses" else "messages"]
    name = "parts" if path == "/v1/ui/chat" else "content"
    empty = {"type": "input_text" if path == "/v1/responses" else "text", "text": ""}

    message[name] = [empty]
    assert 400 <= alice.post(path, body).status_code < 500

    message[name] = [empty, *20 * [PARTS[path]], empty]
    made = alice.post(path, body, buffered=False)
    made.close()
    assert 200 == made.status_code, made.text
    [thread] = alice.get("/v1/threads").json or []
    [said] = alice.get(f"/v1/threads/{thread['id']}/messages").json or []
    assert 20 * ["file"] == [part["type"] for part in said["content"]]


SVG = b64encode(b'<svg xmlns="http://www.w3.org/2000/svg"/>').decode()
#: An image that no model takes, and an image in a part for another file, with the place of each.
MISMATCHED: list[tuple[str, str, Any]] = [
    (
        "/v1/responses",
        "input[0].content[1]",
        {"type": "input_image", "image_url": f"data:image/svg+xml;base64,{SVG}"},
    ),
    (
        "/v1/responses",
        "input[0].content[1]",
        {"type": "input_file", "filename": "a.png", "file_data": b64encode(png()).decode()},
    ),
    (
        "/v1/agui",
        "messages.0.content.1",
        {"type": "image", "source": {"type": "data", "value": SVG, "mimeType": "image/svg+xml"}},
    ),
    (
        "/v1/ui/chat",
        "messages.parts.1",
        {
            "type": "file",
            "mediaType": "image/svg+xml",
            "url": f"data:image/svg+xml;base64,{SVG}",
        },
    ),
]


@pytest.mark.parametrize(("path", "place", "part"), MISMATCHED)
def test_data_of_another_kind_than_its_part_is_refused_by_its_place(
    alice: User, connections: Connections, path: str, place: str, part: Any
) -> None:
    """The client has sent no `file_id`, and nothing is stored."""
    body = deepcopy(BODIES[path])
    [message] = body["input" if path == "/v1/responses" else "messages"]
    text_type = "input_text" if path == "/v1/responses" else "text"
    said = [{"type": text_type, "text": "Look:"}, part]
    message["parts" if path == "/v1/ui/chat" else "content"] = said

    refused = alice.post(path, body)

    assert 400 <= refused.status_code < 500
    assert place in refused.text
    assert "file_id" not in refused.text
    assert [] == expiring(connections, alice)


def test_a_message_of_texts_alone_may_have_many(alice: User) -> None:
    """The AI SDK's are joined to one."""
    said = {"id": "m1", "role": "user", "parts": 21 * [{"type": "text", "text": "Hello"}]}
    made = alice.post("/v1/ui/chat", {"id": "chat-1", "messages": [said]}, buffered=False)
    made.close()

    assert 200 == made.status_code
