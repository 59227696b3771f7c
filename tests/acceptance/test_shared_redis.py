"""Two installations on one Redis: each takes its own messages alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import System, running_system

pytestmark = pytest.mark.processes

#: A run without a message starts after a second at the earliest.
MESSAGE_SECONDS = 0.9


@pytest.fixture
def systems(
    system: System, new_database: Callable[[], str], tmp_path: Path
) -> Iterator[list[System]]:
    """Each with a database and a worker of its own."""
    redis_url = system.environ["ARKLOOP_REDIS_URL"]
    with running_system(new_database, tmp_path, redis_url=redis_url, web=1) as other:
        yield [system, other]


def test_each_run_is_started_by_its_own_message(systems: list[System]) -> None:
    """None is found late in Postgres because the other one's worker took its message."""
    callers = [system.caller() for system in systems]

    def waits() -> list[float]:
        runs = [(caller, caller.run("hello")) for caller in callers for _ in range(10)]
        for caller, run_id in runs:
            assert "completed" == caller.ended(run_id)["status"]
        return sorted(caller.seconds_until_start(run_id) for caller, run_id in runs)

    # On a busy machine some may be late, and all of them for a moment; half of them always were.
    assert any(waits()[-6] < MESSAGE_SECONDS for _ in range(6))
