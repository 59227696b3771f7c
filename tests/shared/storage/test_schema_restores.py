"""Dumps from before an upgrade, which are loaded into the database that was upgraded."""

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.storage import row_security, schema, service_role
from tests import walls
from tests.dumps import dumped, load, load_over
from tests.shared.storage.test_schema import migrated_to
from tests.shared.storage.test_schema_privileges import migrate, owned, service_of

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
