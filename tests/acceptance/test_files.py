"""Files from the upload to the model, in the processes that production runs."""

import base64
import hashlib
import sys
from typing import Any

from tests.caller import Caller, script
from tests.contents import PDF, png
from tests.waiting import eventually
from tests.web_server import ROOT


def upload(user: Caller, content: bytes, name: str = "a.png") -> str:
    answer = user.http.post("/v1/files", files={"file": (name, content)})
    assert 201 == answer.status_code, answer.text
    return str(answer.json()["id"])


def said(user: Caller, *parts: dict[str, Any]) -> str:
    """Return the answer to a message with these parts, in a thread of its own."""
    thread = user.thread()
    user.made(f"/v1/threads/{thread}/messages", {"content": list(parts)})
    return answered(user, thread)


def answered(user: Caller, thread: str, **choice: str) -> str:
    """Return the last message of the thread after a run."""
    run_id = user.start(thread, **choice)
    eventually(lambda: user.get_run(run_id)["status"] == "completed")
    return str(user.get(f"/v1/threads/{thread}/messages")[-1]["content"])


def shown(content: bytes, media_type: str = "image/png") -> str:
    """Return what the scripted model says of the content, if it has got it as it was."""
    digest = hashlib.sha256(content).hexdigest()[:16]
    return f"[{media_type} {len(content)} bytes sha256:{digest}]"


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def test_a_model_gets_the_files_of_a_message(user: Caller) -> None:
    """Images and PDFs arrive byte for byte, text files as text, URLs as they are."""
    answer = said(
        user,
        text("Look:"),
        {"type": "image", "file_id": upload(user, png())},
        {"type": "file", "file_id": upload(user, PDF, "a.pdf")},
        {"type": "file", "file_id": upload(user, b"remember me", "a.txt")},
        {"type": "image", "url": "https://example.com/a.png"},
    )

    assert (
        'You said: Look:\n<file name="a.txt">\nremember me\n</file> '
        f"{shown(png())} {shown(PDF, 'application/pdf')} [image https://example.com/a.png]"
    ) == answer


def test_later_runs_see_the_files_of_earlier_messages(user: Caller) -> None:
    """Until a file is deleted: then the model reads that it was."""
    file_id = upload(user, png())
    thread = user.thread()
    first = [text("Look"), {"type": "image", "file_id": file_id}]
    user.made(f"/v1/threads/{thread}/messages", {"content": first})
    answered(user, thread)
    user.say(thread, script({"describe": True}))
    assert shown(png()) == answered(user, thread)

    assert 204 == user.http.delete(f"/v1/files/{file_id}").status_code

    user.say(thread, script({"describe": True}))
    assert "nothing" == answered(user, thread)


def test_a_large_file_passes_in_pieces(user: Caller) -> None:
    """What is sent comes back; one byte more than 32 MiB is refused."""
    content = b"x" * (32 * 1024 * 1024)
    file_id = upload(user, content, "large.txt")
    assert content == user.http.get(f"/v1/files/{file_id}/content").content

    refused = user.http.post("/v1/files", files={"file": ("large.txt", content + b"x")})
    assert (413, "http.body_too_large") == (refused.status_code, refused.json()["code"])


def test_images_that_a_tool_returns_are_files(user: Caller) -> None:
    """The model sees them in this run and in later ones; the event names their files."""
    command = [sys.executable, str(ROOT / "tests" / "image_mcp_server.py")]
    config = user.made(
        "/v1/mcp-configs", {"name": "camera", "transport": "stdio", "command": command}
    )
    path = f"/v1/mcp-configs/{config['id']}"
    eventually(lambda: user.get(path)["discovered_at"] is not None, seconds=30)
    user.made("/v1/personas", {"key": "photographer", "mcp": ["camera"]})
    data = base64.b64encode(png(0, 0, 255)).decode()
    call = {"tool": "photograph", "args": {"data": data}}
    thread = user.thread(script(call, {"describe": True}))

    assert shown(png(0, 0, 255)) == answered(user, thread, persona_id="photographer")

    [run] = user.get(f"/v1/threads/{thread}/runs")
    [result] = [e["data"] for e in user.events(run["run_id"]) if e["type"] == "tool.result"]
    assert "click\n[image 1]" == result["output"]
    [file] = result["files"]
    assert png(0, 0, 255) == user.http.get(f"/v1/files/{file['file_id']}/content").content
    assert user.get(f"/v1/files/{file['file_id']}")["expires_at"] is not None
    user.say(thread, script({"describe": True}))
    assert shown(png(0, 0, 255)) == answered(user, thread)
