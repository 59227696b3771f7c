"""The command `arkloop` as a whole."""

import subprocess
from pathlib import Path

import pytest

from arkloop.shared.storage.connections import Connections
from tests.cli.command import ARKLOOP, SECONDS
from tests.web_server import INHERITED

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("words", [["--help"], ["orgs", "list"], ["orgs", "list", "--help"]])
def test_output_that_cannot_be_written_is_one_line(
    connections: Connections, words: list[str]
) -> None:
    """A full disk is no bug of the command: no traceback, not even at its end."""
    environ = {**INHERITED, "ARKLOOP_DATABASE_URL": connections.settings.database_url}
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [ARKLOOP, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environ,
            timeout=SECONDS,
        )

    assert b"Error: Cannot write the output: No space left on device.\n" == ended.stderr
    assert 1 == ended.returncode
