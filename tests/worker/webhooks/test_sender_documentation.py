"""The receivers that `docs/how-to/webhooks.md` shows take what the sender signs."""

import http.client
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from arkloop.shared.security.signatures import new_secret, signed_headers
from tests.waiting import eventually

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "webhooks.md"
BODY = '{"type":"webhook.test","data":{"text":"ä"}}'.encode()
#: Work of the receiver in Python whose first attempt fails.
WORK = """
attempts = []


def work(*said, flush):
    attempts.append(said)
    if len(attempts) == 1:
        raise OSError("the reader's database is down")
    print(*said, flush=flush)
"""


def _program(name: str) -> str:
    """Return the text of the program that the page writes to the file of this name."""
    program = re.search(rf"{name} <<'PROGRAM'\n(.*?)^PROGRAM$", PAGE.read_text(), re.S | re.M)
    assert program is not None
    return program[1]


def test_the_receiver_in_python_does_again_what_has_failed(tmp_path: Path) -> None:
    """Work that fails is done when its message is sent again, and then no more."""
    text = _program("receiver.py")
    assert 1 == text.count(" print(")
    (tmp_path / "receiver.py").write_text(WORK + text.replace(" print(", " work("))
    (tmp_path / "webhook-secret").write_text(secret := new_secret())
    message = signed_headers([secret], "msg_1", int(time.time()), BODY), BODY
    receiver = subprocess.Popen(
        [sys.executable, "receiver.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        address = tmp_path / "receiver.url"
        eventually(lambda: address.exists() and bool(address.read_text()))
        with pytest.raises(http.client.RemoteDisconnected):
            _status(address.read_text(), *message)
        statuses = [_status(address.read_text(), *message) for _ in range(2)]
    finally:
        receiver.kill()
        printed, _ = receiver.communicate()

    assert [204, 204] == statuses
    assert "webhook.test None\n" == printed


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_receiver_in_node_verifies_messages(tmp_path: Path) -> None:
    """It confirms a message with a valid signature among several, and refuses any other one.

    A connection that ends in the middle of a body before does not end it.
    """
    (tmp_path / "receiver.mjs").write_text(_program("receiver.mjs"))
    secret, other, now = new_secret(), new_secret(), int(time.time())
    messages = [
        (signed_headers([other, secret], "msg_1", now, BODY), BODY),
        (signed_headers([other], "msg_1", now, BODY), BODY),
        (signed_headers([secret], "msg_1", now, BODY), BODY + b" "),
        (signed_headers([secret], "msg_1", now - 600, BODY), BODY),
        ({}, BODY),
    ]
    node = subprocess.Popen(
        ["node", tmp_path / "receiver.mjs"],
        env={"WEBHOOK_SECRET": secret},
        stdout=subprocess.PIPE,
        text=True,
        executable=shutil.which("node"),
    )
    try:
        assert node.stdout is not None
        url = node.stdout.readline().strip()
        with socket.create_connection(("127.0.0.1", int(url.strip("/").rpartition(":")[2]))) as cut:
            cut.sendall(b"POST / HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100\r\n\r\n{")
        statuses = [_status(url, headers, body) for headers, body in messages]
        printed = node.stdout.readline().strip()
    finally:
        node.kill()
        node.communicate()

    assert [204, 401, 401, 401, 401] == statuses
    assert "webhook.test" == printed


def _status(url: str, headers: dict[str, str], body: bytes) -> int:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
