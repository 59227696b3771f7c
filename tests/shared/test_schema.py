"""The schema's version, that of the code and that of a database."""

from collections.abc import Callable
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from shared import schema


def test_the_needed_version_is_the_one_that_migrating_leads_to() -> None:
    """It is read from the names of the files, and alembic from what is in them."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))

    assert ScriptDirectory.from_config(config).get_current_head() == schema.needed_version()


def test_a_database_that_was_never_migrated_has_no_version(new_database: Callable[[], str]) -> None:
    """Neither without alembic's table nor with an empty one."""
    engine = create_engine(new_database())
    with engine.begin() as sql:
        migrated = schema.current_version(sql)
        sql.execute(text("DELETE FROM alembic_version"))
        emptied = schema.current_version(sql)
        sql.execute(text("DROP TABLE alembic_version"))
        never = schema.current_version(sql)
    engine.dispose()

    assert (schema.needed_version(), None, None) == (migrated, emptied, never)
