"""One running system for all acceptance tests of runs."""

from collections.abc import Callable, Iterator

import pytest

from tests.caller import Caller
from tests.system import System, running_system


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Chromium; `make test-browser` installs it")


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
