"""Lines of the log about outages: why something is unavailable."""

import pytest

from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost, StorageUnavailable, Unavailable
from arkloop.shared.outage_log import reason_of
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
