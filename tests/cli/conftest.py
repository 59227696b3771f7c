"""The command line against a running system."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.caller import Caller
from tests.cli.command import Arkloop
from tests.cli.relay import Relay
from tests.system import System, running_system


@pytest.fixture(scope="session")
def system(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    with running_system(new_database, tmp_path_factory.mktemp("system")) as started:
        yield started


@pytest.fixture(scope="module")
def user(system: System) -> Caller:
    """The owner of an org of the module's own."""
    return system.caller()


@pytest.fixture
def arkloop(user: Caller, tmp_path: Path) -> Arkloop:
    """The command, talking to the system as `user`."""
    return Arkloop(tmp_path, {"ARKLOOP_URL": user.url, "ARKLOOP_API_KEY": user.token})


@pytest.fixture
def relay(user: Caller) -> Iterator[Relay]:
    """A way to the server that can be cut and blocked."""
    with Relay(int(user.url.rpartition(":")[2])) as started:
        yield started
