"""Two cells, for the tests of orgs that move; other modules have fixtures of their own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from arkloop.cli.main import main
from arkloop.shared.storage import rewinds
from arkloop.shared.storage.connections import Connections
from tests.full_org import Run, environ, fill
from tests.shared_app import connect_patiently


@pytest.fixture(scope="module")
def target(connections: Connections, new_database: Callable[[], str]) -> Iterator[Connections]:
    """The database of another cell."""
    opened = connect_patiently(replace(connections.settings, database_url=new_database()))
    with opened.transaction() as tx:
        # Databases of tests are copies of one.
        rewinds.rotate(tx.sql)
    yield opened
    opened.close()


@pytest.fixture
def org_id(connections: Connections) -> UUID:
    """A suspended org with a row in each table; there is another one beside it."""
    with connections.transaction() as tx:
        fill(tx)
        return fill(tx)


@pytest.fixture
def run(connections: Connections, target: Connections, org_id: UUID) -> Run:
    """Call it with the words after `arkloop orgs`; `--org` is the test's."""

    def run(command: str, *words: str, at: Connections = connections) -> Result:
        return CliRunner().invoke(
            main, ["orgs", command, "--org", str(org_id), *words], env=environ(at, target)
        )

    return run
