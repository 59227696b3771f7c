"""`arkloop migrate` and how long it waits for other sessions."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from arkloop.cli.main import main
from arkloop.shared.storage.schema import needed_version
from tests.shared.storage.test_schema import migrated_to


def migrate(url: str, *args: str) -> Result:
    return CliRunner().invoke(main, ["migrate", *args], env={"ARKLOOP_DATABASE_URL": url})


@pytest.mark.owner
@pytest.mark.parametrize("seconds", ["inf", "1e308"])
def test_locks_may_be_waited_for_without_an_end(
    seconds: str, new_database: Callable[[], str]
) -> None:
    """A setting of Postgres has a greatest number, which stands for all beyond it."""
    migrated_to("0086", url := new_database()).dispose()

    done = migrate(url, "--lock-wait", seconds)

    assert (0, needed_version()) == (done.exit_code, done.stdout.strip()), done.output


@pytest.mark.parametrize("option", ["--wait", "--lock-wait"])
def test_seconds_that_are_no_number_are_refused(option: str) -> None:
    """No time would be later than that: the release would wait for good."""
    refused = migrate("postgresql://127.0.0.1:1/none", option, "nan")

    assert 2 == refused.exit_code
    assert option in refused.stderr


@pytest.mark.owner
def test_a_transaction_that_keeps_an_index_waiting_is_a_reason(
    new_database: Callable[[], str],
) -> None:
    """It has locked no table of the migration, and an operator must know what to look for."""
    engine = migrated_to("0086", url := new_database())
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as report:
        report.execute(text("SELECT count(*) FROM threads"))
        failed = migrate(url, "--lock-wait", "0")
    engine.dispose()

    assert 1 == failed.exit_code
    assert "or has an older transaction open, such as a dump or a long query" in failed.stderr
    assert 0 == migrate(url).exit_code
