"""`/v1/files`."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from werkzeug.test import TestResponse

from arkloop.shared.config import Settings
from arkloop.shared.files import expiry, incoming
from arkloop.shared.files.local_storage import LocalStorage
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of, error_of
from tests.contents import PDF, png


def send(user: User, content: bytes, name: str = "a.png", **kwargs: Any) -> TestResponse:
    form = {"file": (BytesIO(content), name)}
    return user.call("POST", "/v1/files", data=form, content_type="multipart/form-data", **kwargs)


def upload(user: User, content: bytes | None = None, name: str = "a.png") -> dict[str, Any]:
    response = send(user, png() if content is None else content, name)
    assert 201 == response.status_code, response.text
    return dict(response.json or {})


def stored(settings: Settings) -> set[str]:
    """Return the names of all files in the storage."""
    return {file.name for file in Path(settings.files_dir).rglob("*") if file.is_file()}


def test_a_file_is_stored_shown_sent_and_deleted(
    alice: User, settings: Settings, connections: Connections
) -> None:
    """Every field of the contract; the bytes come back as they were, and go with the file."""
    response = send(alice, png(), "red.png")
    made = dict(response.json or {})
    path = f"/v1/files/{made['id']}"

    expected = {
        "id": made["id"],
        "org_id": str(alice.org_id),
        "created_by_user_id": str(alice.id),
        "name": "red.png",
        "media_type": "image/png",
        "size": len(png()),
        "sha256": hashlib.sha256(png()).hexdigest(),
        "created_at": made["created_at"],
        "expires_at": None,
    }
    assert (201, expected, path) == (response.status_code, made, response.headers["Location"])
    assert expected == alice.get(path).json
    assert png() == alice.get(f"{path}/content").data
    assert made["id"] in stored(settings)

    assert 204 == alice.delete(path).status_code
    for missing in (alice.get(path), alice.get(f"{path}/content"), alice.delete(path)):
        assert (404, "files.not_found") == error_of(missing)
    expiry.remove_expired(connections, LocalStorage(settings.files_dir))
    assert made["id"] not in stored(settings)
    with connections.reading() as sql:
        query = text("SELECT count(*) FROM files WHERE id = :id")
        assert 0 == sql.scalar(query, {"id": made["id"]})


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (png(), "image/png"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "image/jpeg"),
        (b"GIF89a" + bytes(20), "image/gif"),
        (b"RIFF\x04\0\0\0WEBPVP8 ", "image/webp"),
        (PDF, "application/pdf"),
        ("Grüße, 世界\n".encode(), "text/plain"),
        (b"<svg onload='alert(1)'/>", "text/plain"),
    ],
)
def test_the_type_is_that_of_the_content(alice: User, content: bytes, media_type: str) -> None:
    """Neither the name nor the type that the client declares counts."""
    assert media_type == upload(alice, content, "evil.html")["media_type"]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + bytes(30), b"\x7fELF\xff", b"text\0", b"caf\xe9", b"\xe2\x82"]
)
def test_other_content_is_refused(alice: User, settings: Settings, content: bytes) -> None:
    """422; nothing of it stays in the storage."""
    before = stored(settings)

    assert ["file"] == list(details_of(send(alice, content, "a.png")))
    assert before == stored(settings)


def test_content_is_sent_as_a_download(alice: User) -> None:
    """A browser never shows it as a page of this origin, whatever it contains or is named."""
    made = upload(alice, b"<script>alert(1)</script>", "ä b.html")
    response = alice.get(f"/v1/files/{made['id']}/content")

    assert "text/plain; charset=utf-8" == response.headers["Content-Type"]
    assert "nosniff" == response.headers["X-Content-Type-Options"]
    assert "attachment; filename*=UTF-8''%C3%A4%20b.html" == response.headers["Content-Disposition"]
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "25" == response.headers["Content-Length"]


def test_a_head_request_opens_nothing(alice: User) -> None:
    """It has the headers, and no body."""
    made = upload(alice)
    response = alice.call("HEAD", f"/v1/files/{made['id']}/content")

    assert (200, b"", str(made["size"])) == (
        response.status_code,
        response.data,
        response.headers["Content-Length"],
    )


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..", "a/b.png", "..\\..\\boot.ini", "a\nb.png", "x" * 201, "a\u202e.png"],
)
def test_a_name_is_no_path(alice: User, settings: Settings, name: str) -> None:
    """422; no name ever becomes a path of the storage."""
    before = stored(settings)
    quoted = name.replace("\\", "\\\\").encode()
    frame = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n' % quoted

    response = raw(alice, frame + png() + b"\r\n--b--\r\n")

    assert 422 == response.status_code, response.text
    assert before == stored(settings)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (r"C:\x\a.txt", "a.txt"),
        (r"c:\\x\\a b.txt", "a b.txt"),
        (r"\\server\share\a.txt", "a.txt"),
        (r"C:\a.txt", "a.txt"),
        (r"C:a.txt", "C:a.txt"),
        (r"a\"b.txt", 'a"b.txt'),
    ],
)
def test_a_windows_path_is_the_name_at_its_end(alice: User, sent: str, name: str) -> None:
    """Some clients send the path that a file has on their computer, with escapes or without."""
    frame = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{sent}"\r\n\r\n'

    response = raw(alice, frame.encode() + png() + b"\r\n--b--\r\n")

    assert (201, name) == (response.status_code, (response.json or {})["name"])


def raw(user: User, body: bytes, **kwargs: Any) -> TestResponse:
    """Send the bytes as a form whose boundary is `b`."""
    content_type = "multipart/form-data; boundary=b"
    return user.call("POST", "/v1/files", data=body, **{"content_type": content_type, **kwargs})


HEAD = b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        b"--b",
        b"--b--\r\n",
        b"--b\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + HEAD + b"never ends",
        b"--b\r\n" + HEAD + b"x\r\n--b\r\n" + HEAD + b"y\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nx\r\n--b--\r\n',
        b"--b\r\nContent-Disposition: form-data; name=\xff\xfe\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + b"X: " + b"x" * 400_000 + b"\r\n" + HEAD + b"x\r\n--b--\r\n",
    ],
    ids=range(12),
)
def test_a_malformed_form_is_refused(alice: User, settings: Settings, body: bytes) -> None:
    """422 in the one shape; nothing is left of it in the storage."""
    before = stored(settings)

    assert (422, "validation.error") == error_of(raw(alice, body))
    assert before == stored(settings)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"content_type": "application/json"},
        {"content_type": "multipart/form-data"},
        {"content_type": f"multipart/form-data; boundary={'b' * 201}"},
        {"headers": {"Content-Encoding": "gzip"}},
    ],
)
def test_another_body_is_refused(alice: User, kwargs: dict[str, Any]) -> None:
    """415: it must be a form, with a boundary, and not compressed."""
    response = raw(alice, b"--b\r\n" + HEAD + b"x\r\n--b--\r\n", **kwargs)

    assert (415, "http.unsupported_media_type") == error_of(response)


def test_a_boundary_may_be_longer_than_the_rfc_allows(alice: User) -> None:
    """Werkzeug's client, for one, sends 71 to 75 characters in one of 400 requests."""
    boundary = "b" * 75
    body = f"--{boundary}\r\n".encode() + HEAD + f"x\r\n--{boundary}--\r\n".encode()

    response = raw(alice, body, content_type=f"multipart/form-data; boundary={boundary}")

    assert 201 == response.status_code, response.text


def test_a_file_has_up_to_32_mib(
    alice: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """413 beyond the limit: by the length before anything is read, else while it is read."""
    before = stored(settings)
    frame = b"--b\r\n" + HEAD
    assert (413, "http.body_too_large") == error_of(
        raw(alice, frame + bytes(incoming.MAX_BYTES + 70_000))
    )
    monkeypatch.setattr(incoming, "MAX_BYTES", 100_000)
    assert 201 == raw(alice, frame + b"x" * 100_000 + b"\r\n--b--\r\n").status_code
    assert (413, "http.body_too_large") == error_of(
        raw(alice, frame + b"x" * 100_001 + b"\r\n--b--\r\n")
    )
    assert 1 == len(stored(settings) - before)


def test_an_upload_that_is_sent_again_is_the_same_file(alice: User) -> None:
    """One `Idempotency-Key` makes one file; with other content it is a conflict."""
    headers = {"Idempotency-Key": "once"}
    first = send(alice, png(), headers=headers)
    again = send(alice, png(), headers=headers)
    other = send(alice, png(0, 255, 0), headers=headers)

    assert (201, first.json, "true") == (
        again.status_code,
        again.json,
        again.headers["Idempotency-Replayed"],
    )
    assert (409, "idempotency.conflict") == error_of(other)


def test_files_are_those_of_the_org(alice: User, register: Register) -> None:
    """Another org gets what an unknown id gets; members read all and delete their own."""
    made, stranger = upload(alice), register()
    member = register(org_of=alice, role="member")
    path = f"/v1/files/{made['id']}"

    for asked in (path, f"{path}/content"):
        known, unknown = stranger.get(asked), stranger.get(asked.replace(made["id"], str(new_id())))
        assert (404, "files.not_found") == error_of(known) == error_of(unknown)
    assert (404, "files.not_found") == error_of(stranger.delete(path))
    assert made == member.get(path).json
    assert (403, "auth.forbidden") == error_of(member.delete(path))
    assert 204 == alice.delete(f"/v1/files/{upload(member)['id']}").status_code


def test_scopes_say_what_a_key_may_do(alice: User) -> None:
    """`data.files.read` reads, `data.files.write` stores and deletes."""
    reader, writer = alice.api_key("data.files.read"), alice.api_key("data.files.write")
    path = f"/v1/files/{upload(writer)['id']}"

    assert 200 == reader.get(path).status_code
    refused = (send(reader, png()), reader.delete(path), writer.get(path))
    assert {(403, "auth.forbidden")} == set(map(error_of, refused))
    speaker = alice.api_key("data.threads.write")
    content = [{"type": "image", "file_id": path.rpartition("/")[2]}]
    said = speaker.post(f"/v1/threads/{alice.thread()}/messages", {"content": content})
    assert (403, "auth.forbidden") == error_of(said)
    assert 204 == writer.delete(path).status_code


def test_an_interrupted_upload_is_removed(
    alice: User, settings: Settings, connections: Connections
) -> None:
    """A process that dies while it writes leaves a pending row, by which the rest is found."""
    made = upload(alice)
    file = next(Path(settings.files_dir).rglob(made["id"]))
    file.rename(file.with_name(f"{file.name}.part"))
    with connections.transaction() as tx:
        pending = "UPDATE files SET stored_at = NULL, expires_at = now() - interval '1 s'"
        begun = "created_at = now() - interval '1 h'"
        tx.sql.execute(text(f"{pending}, {begun} WHERE id = :id"), {"id": made["id"]})

    expiry.remove_expired(connections, LocalStorage(settings.files_dir))

    assert f"{made['id']}.part" not in stored(settings)


def test_a_message_has_parts(alice: User) -> None:
    """It is returned as it was given; `content` of a string stays a string."""
    thread, file = alice.thread(), upload(alice)
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "file_id": file["id"]},
        {"type": "file", "file_id": upload(alice, PDF, "a.pdf")["id"]},
        {"type": "image", "url": "https://example.com/a.png?b=1"},
    ]

    made = alice.post(f"/v1/threads/{thread}/messages", {"content": parts})

    assert (201, parts) == (made.status_code, (made.json or {})["content"])
    listed = alice.get(f"/v1/threads/{thread}/messages").json
    assert [parts] == [message["content"] for message in listed or []]


ID = str(new_id())


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ([], ["content"]),
        ([{"type": "text", "text": "a"}] * 21, ["content"]),
        ([{"type": "text", "text": ""}], ["content.0"]),
        ([{"type": "text", "text": "a", "file_id": ID}], ["content.0"]),
        ([{"type": "audio", "file_id": ID}], ["content.0"]),
        (["a"], ["content.0"]),
        ([{"type": "image"}], ["content.0"]),
        ([{"type": "image", "file_id": ID, "url": "https://a.b/"}], ["content.0"]),
        ([{"type": "image", "file_id": ID.upper()}], ["content.0"]),
        ([{"type": "image", "file_id": ID}], ["content.0.file_id"]),
        ([{"type": "image", "url": "http://example.com/"}], ["content.0"]),
        ([{"type": "image", "url": "https://user:pass@example.com/"}], ["content.0"]),
        ([{"type": "image", "url": "file:///etc/passwd"}], ["content.0"]),
        ([{"type": "image", "url": "https://e.com/" + "x" * 2_000}], ["content.0"]),
        ([{"type": "image", "url": "data:image/png;base64,AAAA"}], ["content.0"]),
        ([{"type": "text", "text": "x" * 200_000}] * 2, ["content"]),
    ],
)
def test_wrong_parts_are_named(alice: User, content: Any, fields: list[str]) -> None:
    """422 says which part is wrong."""
    response = alice.post(f"/v1/threads/{alice.thread()}/messages", {"content": content})

    assert fields == list(details_of(response))


def test_a_part_has_a_file_of_its_kind(alice: User, register: Register) -> None:
    """A PDF is no image, a text may not be too long, and the files of other orgs do not exist."""
    pdf, image = upload(alice, PDF), upload(alice)
    long = raw(alice, b"--b\r\n" + HEAD + b"x" * 1_048_577 + b"\r\n--b--\r\n").json or {}
    foreign, deleted = upload(register()), upload(alice)
    alice.delete(f"/v1/files/{deleted['id']}")
    parts = [
        {"type": "image", "file_id": pdf["id"]},
        {"type": "file", "file_id": image["id"]},
        {"type": "file", "file_id": long["id"]},
        {"type": "image", "file_id": foreign["id"]},
        {"type": "image", "file_id": deleted["id"]},
        {"type": "image", "file_id": image["id"]},
    ]

    response = alice.post(f"/v1/threads/{alice.thread()}/messages", {"content": parts})

    assert [f"content.{i}.file_id" for i in range(5)] == list(details_of(response))


def test_a_message_refers_to_20_mib_of_files(alice: User, connections: Connections) -> None:
    """Vendors refuse requests that are much larger."""
    file = upload(alice)
    with connections.transaction() as tx:
        grown = text("UPDATE files SET size = 7000000 WHERE id = :id")
        tx.sql.execute(grown, {"id": UUID(file["id"])})
    parts = [{"type": "image", "file_id": file["id"]}] * 3

    response = alice.post(f"/v1/threads/{alice.thread()}/messages", {"content": parts})

    assert ["content"] == list(details_of(response))
