"""Dumps that are loaded, as from before an upgrade into the database that was upgraded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from arkloop.shared.storage import row_security, schema, service_role
from tests import walls
from tests.dumps import dumped, dumped_by_the_service, load, load_in_parallel, load_over
from tests.full_org import contents, fill
from tests.shared.storage.test_schema import migrated_to
from tests.shared.storage.test_schema_privileges import migrate, owned, service_of
from tests.shared_app import connect_patiently

__all__ = ["owned"]

pytestmark = pytest.mark.processes


def test_a_dump_from_before_an_upgrade_is_loaded_and_migrated(
    owned: str, postgres: EmbeddedPostgres
) -> None:
    """The guide's way leaves nothing of the newer schema, not even its tables. The service's role
    gets its privileges again, and the wall is there, with the owner's privileges alone.
    """
    migrated_to("0055", owned).dispose()
    dump = dumped(postgres, owned)
    migrate(owned, service_of(owned))

    load(postgres, dump, owned)
    done = migrate(owned, service_of(owned))

    assert (0, f"{schema.needed_version()}\n") == (done.exit_code, done.stdout), done.output
    service = create_engine(service_of(owned))
    with service.connect() as sql:
        assert [] == service_role.lacking(sql)
        assert [] == row_security.without_policy(sql)
        assert [] == sql.execute(text("SELECT id FROM runs")).all()
    service.dispose()


def test_functions_that_a_dump_does_not_name_are_made_again(
    new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    """`pg_restore --clean` leaves functions that the upgrade had added."""
    url = walls.as_user(new_database(), "postgres")
    engine = migrated_to("0079", url)
    dump = dumped(postgres, url)
    schema.migrate(engine)
    engine.dispose()

    load_over(postgres, dump, url)

    assert schema.needed_version() == schema.migrate(engine)
    engine.dispose()


def test_a_dump_that_is_loaded_in_parallel_is_whole(
    owned: str, postgres: EmbeddedPostgres, settings: Settings, tmp_path: Path
) -> None:
    """The commands of the guide lose no row and no foreign key, even where the service owns its
    tables behind the wall.
    """
    assert 0 == migrate(owned, owned).exit_code
    connections = connect_patiently(replace(settings, database_url=owned))
    with connections.transaction() as tx:
        org_id = fill(tx)
    before = contents(connections, org_id), foreign_keys(owned)
    connections.close()
    dumped_by_the_service(postgres, owned, tmp_path / "dump")

    load_in_parallel(postgres, tmp_path / "dump", owned)

    connections = connect_patiently(replace(settings, database_url=owned))
    after = contents(connections, org_id), foreign_keys(owned)
    connections.close()
    assert before == after
    assert all(before[0].values()) and before[1] > 50


def foreign_keys(url: str) -> int:
    with walls.owner(url) as engine, engine.connect() as sql:
        return int(sql.scalar(text("SELECT count(*) FROM pg_constraint WHERE contype = 'f'")) or 0)
