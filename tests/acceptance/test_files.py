"""Files from the upload to the model, in the processes that production runs."""

import base64
import hashlib
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import text as sql

from tests.caller import Caller, script
from tests.contents import PDF, png
from tests.system import System
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
    """The model reads of a deleted file that it was deleted."""
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


def test_a_request_for_a_run_may_have_files(user: Caller) -> None:
    """One request creates thread, message and run."""
    parts = [text("Look:"), {"type": "image", "file_id": upload(user, png())}]

    made = user.made("/v1/runs", {"message": {"content": parts}})

    eventually(lambda: user.get_run(made["run_id"])["status"] == "completed")
    assert f"You said: Look: {shown(png())}" == user.get_run(made["run_id"])["output"]


@pytest.mark.processes
def test_a_crash_in_the_middle_of_an_upload_leaves_nothing(system: System) -> None:
    """The row of the upload, which is still pending, leads to what was written until then."""
    user, folder = system.caller(), Path(system.environ["ARKLOOP_FILES_DIR"])
    stored = folder / user.org_id
    with system.one_more_web_server() as server, server.connect() as connection:
        head = f"POST /v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {user.token}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9999999\r\n\r\n"
        part = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        connection.sendall((head + part).encode() + b"x" * 1_000_000)
        eventually(lambda: any(file.stat().st_size for file in stored.glob("*.part")))
        [worker] = psutil.Process(server.pid).children()
        worker.kill()
        worker.wait(60)
        assert [".part"] == [file.suffix for file in stored.iterdir()]
    with system.connections.transaction() as tx:
        late = "UPDATE files SET expires_at = now(), created_at = now() - interval '1 h'"
        of_upload = "WHERE org_id = :org_id AND stored_at IS NULL"
        update = sql(f"{late} {of_upload}")
        assert 1 == tx.sql.execute(update, {"org_id": UUID(user.org_id)}).rowcount

    eventually(lambda: not list(stored.iterdir()))


def test_images_that_a_tool_returns_are_files(user: Caller) -> None:
    """The model sees them in this run and in later ones; the event names their files."""
    command = [sys.executable, str(ROOT / "tests" / "image_mcp_server.py")]
    config = user.made(
        "/v1/mcp-configs", {"name": "camera", "transport": "stdio", "command": command}
    )
    path = f"/v1/mcp-configs/{config['id']}"
    eventually(lambda: user.get(path)["discovered_at"] is not None)
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
