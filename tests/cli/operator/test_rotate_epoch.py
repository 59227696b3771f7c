"""`arkloop rotate-epoch` against a real database."""

from collections.abc import Callable
from dataclasses import replace

from click.testing import CliRunner

from arkloop.cli.main import main
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import connect


def test_nothing_that_redis_has_is_read_any_more(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """Processes that start after it use other names."""
    url = new_database()
    names = []
    for _ in range(2):
        connections = connect(replace(settings, database_url=url), application="tests")
        with connections.reading():
            names.append(connections.keys.epoch)
        connections.close()
        done = CliRunner().invoke(main, ["rotate-epoch", "--database-url", url])
        assert (0, "Started a new epoch.") == (done.exit_code, done.output[:20])

    assert 2 == len(set(names))
