"""The check of cut streams, in short: on this service it finds nothing, on a broken one it does."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from chaos.cut_points import Service, check, check_live, script, start_run
from tests.system import System

CUTS = 30


@dataclass(frozen=True)
class OtherTable(Service):
    """Its table has other lines than the streams."""

    change: Callable[[list[str]], list[str]]

    def stored(self, run_id: str) -> list[str]:
        return self.change(super().stored(run_id))


@pytest.fixture
def service(system: System) -> Service:
    urls = [web.url for web in system.web]
    return Service(urls, system.caller().token, system.connections)


def test_cuts_change_no_byte(service: Service, system: System) -> None:
    """Wherever streams are cut, live or later, with Redis or without, readers get the rows."""
    flush = system.connections.redis.flushall
    run_id = asyncio.run(start_run(service, script(turns=4)))
    live = check_live(service, run_id, readers=8, seed=1, between=flush, after=100)
    ended = check(service, run_id, cuts=CUTS, seed=1, between=flush)
    assert [] == live.differences
    assert [] == ended.differences
    assert 8 == live.readers
    assert CUTS + 1 == ended.readers
    assert ended.cuts >= CUTS


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda lines: [*lines[:6], lines[6] + " ", *lines[7:]], "first at 7"),
        (lambda lines: [*lines, lines[-1]], "{n} of {more} lines"),
    ],
    ids=["another byte", "one line more"],
)
def test_a_difference_is_reported(
    service: Service, change: Callable[[list[str]], list[str]], reported: str
) -> None:
    """A reader whose lines are not those of Postgres is reported, with the place."""
    other = OtherTable(service.urls, service.token, service.connections, change)
    run_id = asyncio.run(start_run(service, script(turns=1)))
    found = check_live(other, run_id, readers=1, seed=1, between=lambda: None, after=1)
    expected = reported.format(n=found.events - 1, more=found.events)
    assert [f"reader 1: {expected}"] == found.differences
