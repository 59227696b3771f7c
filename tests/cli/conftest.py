"""The command line against a running system."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.caller import Caller
from tests.cli.client.relay import Relay
from tests.cli.command import Arkloop


@pytest.fixture
def arkloop(user: Caller, tmp_path: Path) -> Arkloop:
    """The command, talking to the system as `user`."""
    return Arkloop(tmp_path, {"ARKLOOP_URL": user.url, "ARKLOOP_API_KEY": user.token})


@pytest.fixture
def relay(user: Caller) -> Iterator[Relay]:
    """A way to the server that can be cut and blocked."""
    with Relay(int(user.url.rpartition(":")[2])) as started:
        yield started
