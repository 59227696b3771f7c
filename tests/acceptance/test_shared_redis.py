"""Two installations on one Redis: each takes its own messages alone."""

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from cli.dev.embedded_redis import EmbeddedRedis
from tests.caller import Caller
from tests.system import System, running_system
from tests.waiting import eventually

#: A run without a message starts after a second at the earliest.
MESSAGE_SECONDS = 0.9


@pytest.fixture(scope="module")
def systems(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[System]]:
    """Each with a database and a worker of its own."""
    folder = tmp_path_factory.mktemp("shared")
    with EmbeddedRedis(folder / "redis", persist=False) as redis:
        one, other = folder / "one", folder / "other"
        one.mkdir()
        other.mkdir()
        with (
            running_system(new_database, one, redis_url=redis.url) as first,
            running_system(new_database, other, redis_url=redis.url) as second,
        ):
            yield [first, second]


def test_each_run_is_started_by_its_own_message(systems: list[System]) -> None:
    """None is found late in Postgres because the other one's worker took its message."""
    callers = [system.caller() for system in systems]
    runs = [(caller, caller.run("hello")) for caller in callers for _ in range(10)]
    for caller, run_id in runs:
        eventually(lambda c=caller, r=run_id: c.get_run(r)["status"] == "completed", seconds=20)  # type: ignore[misc]

    waits = sorted(seconds_until_start(caller, run_id) for caller, run_id in runs)
    # One or two may be late on a busy machine; half of them were.
    assert waits[-4] < MESSAGE_SECONDS, waits


def seconds_until_start(caller: Caller, run_id: str) -> float:
    """By the clock of Postgres."""
    run = caller.get_run(run_id)
    created, began = (datetime.fromisoformat(run[name]) for name in ("created_at", "started_at"))
    return (began - created).total_seconds()
