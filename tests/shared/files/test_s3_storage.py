"""Files in S3, against a server that others wrote."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from arkloop.shared.errors import InvalidRequest, StorageUnavailable
from arkloop.shared.files import incoming, s3_storage
from arkloop.shared.files.s3_storage import PART_BYTES, S3Storage
from arkloop.shared.files.storage import ObjectMissing, UnusableStorage
from tests.blank_settings import BLANK
from tests.closed_port import closed_port
from tests.s3_server import BUCKET, KEY_ID, SECRET, S3Server, s3_server

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "data") as started:
        yield started


def storage_at(server: S3Server, **changes: Any) -> S3Storage:
    settings = replace(
        BLANK,
        s3_bucket=BUCKET,
        s3_endpoint_url=server.url,
        s3_access_key_id=KEY_ID,
        s3_secret_access_key=SECRET,
    )
    return S3Storage(replace(settings, **changes))


@pytest.fixture
def storage(server: S3Server) -> S3Storage:
    return storage_at(server)


def test_a_small_object_is_one_request(server: S3Server, storage: S3Storage) -> None:
    """What is committed is read as it was."""
    facts = incoming.store(storage, "org/small", [b"Hello, ", b"S3"])

    assert 9 == facts.size
    assert b"Hello, S3" == b"".join(storage.read("org/small"))
    assert {"org/small"} == server.keys("org/small")


def test_a_large_object_is_sent_in_parts(server: S3Server, storage: S3Storage) -> None:
    """Only a part is in memory at a time; pieces may cross the border of two parts."""
    pieces = [bytes([65 + i % 26]) * 1_000_000 for i in range(12)]
    assert 2 * PART_BYTES < sum(map(len, pieces))

    incoming.store(storage, "org/large", pieces)

    assert b"".join(pieces) == b"".join(storage.read("org/large"))
    assert [] == server.uploads()


def test_what_is_refused_leaves_nothing(server: S3Server, storage: S3Storage) -> None:
    """Neither an object nor the parts of one, in whichever piece the mistake is."""
    large = [b"x" * PART_BYTES, b"x", b"\xff"]
    for pieces in ([b"\xff"], large):
        with pytest.raises(InvalidRequest):
            incoming.store(storage, "org/refused", pieces)

    assert set() == server.keys("org/refused")
    assert [] == server.uploads()


def test_removal_takes_what_a_crash_left(server: S3Server, storage: S3Storage) -> None:
    """The object goes, and an upload that a dead process had begun; absent ones are no error."""
    incoming.store(storage, "org/old", [b"a"])
    begun = server.s3.create_multipart_upload(Bucket=BUCKET, Key="org/begun")
    server.s3.upload_part(
        Bucket=BUCKET, Key="org/begun", UploadId=begun["UploadId"], PartNumber=1, Body=b"a"
    )

    for key in ("org/old", "org/begun", "org/never"):
        storage.remove(key)

    assert set() == server.keys("org/old")
    assert [] == server.uploads()
    with pytest.raises(ObjectMissing):
        storage.read("org/old")


def test_wrong_settings_are_named(server: S3Server, storage: S3Storage) -> None:
    """A process with them does not start."""
    storage.check()
    with pytest.raises(UnusableStorage, match=r"ARKLOOP_S3_BUCKET: 'nowhere' does not exist"):
        storage_at(server, s3_bucket="nowhere").check()
    with pytest.raises(UnusableStorage, match=r"'files' cannot be used \(HTTP status 403\)"):
        storage_at(server, s3_secret_access_key="wrong").check()


def test_a_server_that_is_down_is_unavailable(
    server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The check only logs it, since everything else works; each use is a 503 for a client."""
    down = storage_at(server, s3_endpoint_url=f"http://127.0.0.1:{closed_port()}")

    down.check()

    assert "files are unavailable" in caplog.text
    with pytest.raises(StorageUnavailable):
        incoming.store(down, "org/1", [b"a"])
    for use in (down.read, down.remove):
        with pytest.raises(StorageUnavailable):
            use("org/1")


def test_a_silent_server_is_attempted_once(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The start of a process waits for 5 s, and not for all attempts of a use."""
    monkeypatch.setattr(s3_storage, "CHECK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        port = silent.getsockname()[1]
        advice = storage_at(server, s3_endpoint_url=f"http://127.0.0.1:{port}").check()
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()

    assert "files are unavailable: Read timeout" in caplog.text
    assert (advice or "").startswith("Start it")


def test_a_busy_server_is_unavailable_for_now(
    server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Its status 429 says nothing of the settings, and one attempt alone is made."""

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(429)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{busy.server_address[1]}"
        advice = storage_at(server, s3_endpoint_url=url).check()
        busy.shutdown()

    assert "responds with 429: files are unavailable" in caplog.text
    assert (advice or "").startswith("Start it")
