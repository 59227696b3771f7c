"""Lines of the log about outages: why, how often, and the end."""

import logging
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import DBAPIError

from arkloop.shared import outage_log
from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost, StorageUnavailable, Unavailable
from arkloop.shared.outage_log import LINE_SECONDS, OutageLog, reason_of
from arkloop.shared.storage.connections import connect


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return the error with the cause."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (raised(Unavailable(), OSError("refused")), "refused"),
        (raised(LeaseLost(), raised(Unavailable(), OSError("refused"))), "refused"),
        (raised(OSError("away"), ValueError("a detail")), "away"),
        (Unavailable("The schema is old."), "The schema is old."),
        (StorageUnavailable(), StorageUnavailable.message),
        (LeaseLost(), "LeaseLost"),
        (raised(Unavailable(), TimeoutError()), "TimeoutError"),
        (raised(Unavailable(), DBAPIError("SELECT 1", {}, OSError("disk full"))), "disk full"),
    ],
)
def test_a_reason_is_the_cause_or_the_error_itself(error: BaseException, reason: str) -> None:
    """No line ends in `None`, and none in the text for clients where the cause is known."""
    assert reason == reason_of(error)


def test_callers_that_are_turned_away_have_a_reason(settings: Settings) -> None:
    """While one caller tries a silent server, the others fail without an error of the server's."""
    connections = connect(settings, application="tests")
    connections.postgres_outage.failed()

    with pytest.raises(Unavailable) as ended, connections.reading():
        pass

    assert Unavailable.message == str(ended.value)
    assert "Postgres was unavailable a moment ago" == reason_of(ended.value)
    connections.close()


class Clock:
    """A clock that is moved by hand, and what was logged since the last look."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 100.0
        self._caplog = caplog

    def lines(self) -> list[str]:
        """Return the lines since the last look, with their levels."""
        found = [f"{line.levelname} {line.getMessage()}" for line in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    """The clock of outages."""
    caplog.set_level(logging.INFO)
    made = Clock(caplog)
    monkeypatch.setattr(outage_log, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def outage() -> OutageLog:
    return OutageLog(logging.getLogger("tests"), "renewing")


def test_an_outage_has_a_line_every_30_seconds(outage: OutageLog, clock: Clock) -> None:
    """Eight failures a second for a minute are three lines; the end says how long it lasted."""
    for _ in range(481):
        outage.failed("renewing failed: %s", "refused")
        clock.now += 0.125
    outage.worked()
    outage.worked()

    assert [
        "WARNING renewing failed: refused",
        "WARNING renewing failed: refused (239 more failures since the last such line)",
        "WARNING renewing failed: refused (239 more failures since the last such line)",
        "INFO renewing works again after 60.1 s (failures: 481, the last 0.1 s before)",
    ] == clock.lines()


def test_what_works_is_not_logged(outage: OutageLog, clock: Clock) -> None:
    """A success without a failure before it leaves no line."""
    outage.worked()

    assert [] == clock.lines()


def test_what_comes_and_goes_has_few_lines(outage: OutageLog, clock: Clock) -> None:
    """Half of all attempts fail; the failures between the lines are counted by the next one."""
    for _ in range(100):
        outage.failed("renewing failed: %s", "refused")
        clock.now += 0.1
        outage.worked()
    assert [
        "WARNING renewing failed: refused",
        "INFO renewing works again after 0.1 s (failures: 1, the last 0.1 s before)",
    ] == clock.lines()

    clock.now += LINE_SECONDS
    outage.worked()
    assert [
        "INFO renewing works again after 9.9 s (failures: 99, the last 0.1 s before)"
    ] == clock.lines()

    outage.failed("renewing failed: %s", "refused")
    assert ["WARNING renewing failed: refused"] == clock.lines()
