"""The receiver in Node.js that `docs/how-to/webhooks.md` shows takes what the sender signs."""

import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from arkloop.shared.security.signatures import new_secret, signed_headers

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "webhooks.md"
BODY = '{"type":"webhook.test","data":{"text":"ä"}}'.encode()


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_receiver_in_node_verifies_messages(tmp_path: Path) -> None:
    """It confirms a message with a valid signature among several, and refuses any other one."""
    program = re.search(r"receiver\.mjs <<'PROGRAM'\n(.*?)^PROGRAM$", PAGE.read_text(), re.S | re.M)
    assert program is not None
    (tmp_path / "receiver.mjs").write_text(program[1])
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
