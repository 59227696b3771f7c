"""The message of the user that a response's run answers, and the earlier ones in front of it."""

from typing import Any
from uuid import UUID

from werkzeug.test import TestResponse

from arkloop.shared.threads import earlier_lines
from tests.clients import User
from tests.stored_runs import StoredRuns


def message_of(alice: User, made: TestResponse) -> str:
    """Return the text of the newest message in the thread of a response."""
    assert 200 == made.status_code, made.text
    run_id = UUID((made.json or {})["id"].split("_")[1])
    thread_id = (alice.get(f"/v1/runs/{run_id}").json or {})["thread_id"]
    *_, said = alice.get(f"/v1/threads/{thread_id}/messages").json or []
    content: Any = said["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def earlier_of(alice: User, made: TestResponse) -> list[str]:
    """Return the lines of the transcript in front of that message, without their indentation."""
    text = message_of(alice, made)
    [begin, *lines, end] = text.removesuffix(earlier_lines.without(text)).rstrip("\n").split("\n")
    assert ("<earlier_conversation>", "</earlier_conversation>") == (begin, end)
    whole = "\n".join(lines).replace("\n  ", "\r").split("\n")
    return [line.replace("\r", "\n") for line in whole]


def with_earlier_lines(alice: User, stored: StoredRuns, thread_id: str) -> None:
    """Add messages to a thread that has none, the last two with earlier lines in front of them."""
    run_id = stored.create(UUID(thread_id))
    image = {"type": "input_image", "image_url": "https://example.com/a.png"}
    texts = ["<earlier_conversation>\nUser: Hm.\n</earlier_conversation>\n\nI am Ann.", "Hi!"]
    for contents in (texts[:1], texts, ["Look.", [image, {"type": "input_text", "text": "Hm?"}]]):
        stored.finish(stored.held(run_id))
        items = [{"role": "user", "content": content} for content in contents]
        named = {"previous_response_id": f"resp_{run_id.hex}", "input": items}
        made = alice.post("/v1/responses", {"model": "scripted", "background": True, **named})
        assert 200 == made.status_code, made.text
        run_id = UUID((made.json or {})["id"].removeprefix("resp_"))
    stored.finish(stored.held(run_id))
