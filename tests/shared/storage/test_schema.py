"""The schema's version, that of the code and that of a database."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from arkloop.cli.main import main
from arkloop.shared.events import types
from arkloop.shared.events.stored_events import encode
from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema
from arkloop.shared.times import EPOCH
from tests.waiting import eventually

pytestmark = pytest.mark.owner


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[3] / "migrations"))
    return config


def test_the_needed_version_is_the_one_that_migrating_leads_to() -> None:
    """It is read from the names of the files, and alembic from what is in them."""
    assert (
        ScriptDirectory.from_config(alembic_config()).get_current_head() == schema.needed_version()
    )


def test_a_database_that_was_never_migrated_has_no_version(new_database: Callable[[], str]) -> None:
    """A database without alembic's table, or with an empty one, has no version."""
    engine = create_engine(new_database())
    with engine.begin() as sql:
        migrated = schema.current_version(sql)
        sql.execute(text("DELETE FROM alembic_version"))
        emptied = schema.current_version(sql)
        sql.execute(text("DROP TABLE alembic_version"))
        never = schema.current_version(sql)
    engine.dispose()

    assert (schema.needed_version(), None, None) == (migrated, emptied, never)


def waiting_for_locks(engine: Engine) -> int:
    """Count the sessions of the database that wait for locks."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
    """
    with engine.connect() as sql:
        return int(sql.scalar(text(query)) or 0)


def migrated_to(version: str, url: str) -> Engine:
    """Migrate the database, after emptying it, to an earlier version."""
    engine = create_engine(url)
    config = alembic_config()
    with engine.connect() as sql:
        sql.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        sql.commit()
        config.attributes["connection"] = sql
        command.upgrade(config, version)
        sql.commit()
    return engine


@pytest.fixture
def older(new_database: Callable[[], str]) -> Iterator[Engine]:
    """A database some migrations behind, the next of which changes the table of runs."""
    engine = migrated_to("0004", new_database())
    yield engine
    engine.dispose()


def test_a_table_that_is_held_stops_no_query(older: Engine) -> None:
    """A migration that waits for a locked table blocks other queries only briefly, and continues
    when the table is free.
    """
    with older.connect() as dump, ThreadPoolExecutor() as pool:
        dump.execute(text("SELECT count(*) FROM runs"))  # holds its lock until the end

        migrating = pool.submit(schema.migrate, older, lock_seconds=60)
        eventually(lambda: waiting_for_locks(older) > 0)
        with older.connect() as sql:
            sql.execute(text("SET statement_timeout = '5s'"))
            sql.execute(text("SELECT count(*) FROM runs"))
        eventually(lambda: waiting_for_locks(older) > 0)  # it has not given up
        dump.rollback()

        assert schema.needed_version() == migrating.result()


def test_a_table_that_is_held_too_long_leaves_the_schema_as_it_was(older: Engine) -> None:
    """The migration fails with the reason."""
    with older.connect() as dump:
        dump.execute(text("SELECT count(*) FROM runs"))
        with pytest.raises(OperationalError) as failed:
            schema.migrate(older)
        url = older.url.render_as_string(hide_password=False)
        told = CliRunner().invoke(
            main, ["migrate", "--lock-wait", "0"], env={"ARKLOOP_DATABASE_URL": url}
        )

    assert isinstance(failed.value.orig, LockNotAvailable)
    assert 1 == told.exit_code
    assert "another session locks a table" in told.output
    with older.connect() as sql:
        assert "0004" == schema.current_version(sql)
    assert schema.needed_version() == schema.migrate(older)


def test_an_upgrade_gives_slugs_to_orgs_of_the_operator_alone(
    new_database: Callable[[], str],
) -> None:
    """A name that a stranger can register, or that two orgs have, does not become a slug."""
    engine = migrated_to("0009", new_database())
    with engine.begin() as sql:
        for name, login, logged_in in [
            ("acme", "alice", True),
            ("dev", "dev", False),  # made by `arkloop dev`
            ("eve", "eve", True),  # registered
            ("beta", "beta", True),  # registered, with the name of the next one
            ("beta", "bob", False),
            ("twins", "castor", False),
            ("twins", "pollux", False),
            ("Not A Slug", "carol", False),
        ]:
            sql.execute(
                text(
                    """
                    WITH org AS (
                        INSERT INTO orgs (id, name) VALUES (gen_random_uuid(), :name) RETURNING id
                    ), person AS (
                        INSERT INTO users (id, login, email, password_hash)
                        VALUES (gen_random_uuid(), :login, :login || '@example.com', '')
                        RETURNING id
                    ), member AS (
                        INSERT INTO memberships (user_id, org_id, role)
                        SELECT person.id, org.id, 'owner' FROM person, org
                    )
                    INSERT INTO refresh_tokens (id, family_id, user_id, token_hash, expires_at)
                    SELECT gen_random_uuid(), gen_random_uuid(), id, :login, now() FROM person
                    WHERE :logged_in
                    """
                ),
                {"name": name, "login": login, "logged_in": logged_in},
            )

    schema.migrate(engine)

    query = """
        SELECT u.login, o.slug FROM orgs o JOIN memberships m ON m.org_id = o.id
        JOIN users u ON u.id = m.user_id WHERE o.slug IS NOT NULL ORDER BY o.slug
    """
    with engine.connect() as sql:
        slugs = [tuple(row) for row in sql.execute(text(query))]
    engine.dispose()
    assert [("alice", "acme"), ("bob", "beta"), ("dev", "dev")] == slugs


def test_runs_that_ended_before_usage_was_kept_have_usage(older: Engine) -> None:
    """The sum of `run_usage` is then that of the runs' totals; what is still active has none."""
    ended, active = (str(new_id()) for _ in range(2))
    with older.begin() as sql:
        owner = owner_of_thread(sql)
        for run_id, state, position in ((ended, "completed", 1), (active, "executing", 2)):
            sql.execute(
                text(EARLIER_RUN),
                {"id": run_id, "state": state, "position": position, **owner},
            )

    schema.migrate(older)
    schema.migrate(older)

    with older.connect() as sql:
        used = sql.execute(text("SELECT * FROM run_usage")).mappings().all()
    assert [ended] == [str(row["run_id"]) for row in used]
    names = ("route_id", "model", "persona_key", "input_tokens", "output_tokens", "cost_usd")
    expected = ("r", "m", "assistant", 7, 3, Decimal("0.5"))
    assert expected == tuple(used[0][name] for name in names)


def test_an_upgrade_counts_only_attempts_after_a_lost_worker(older: Engine) -> None:
    """Claims after input and deploys no longer count; a run without a claim keeps 0."""
    lost, answered, new = (str(new_id()) for _ in range(3))
    with older.begin() as sql:
        owner = owner_of_thread(sql)
        for position, (run_id, claims) in enumerate(((lost, 4), (answered, 3), (new, 0)), 1):
            values = {"id": run_id, "state": "completed", "position": position, **owner}
            sql.execute(text(EARLIER_RUN), values)
            sql.execute(
                text("UPDATE runs SET attempt = :claims WHERE id = :id"),
                {"id": run_id, "claims": claims},
            )
        for run_id, seq, reason in (
            (lost, 2, "input"),
            (lost, 3, "worker_lost"),
            (lost, 4, "worker_lost"),
            (answered, 2, "input"),
            (answered, 3, "deploy"),
        ):
            payload = encode(seq, types.RunResumed(seq, reason), EPOCH).payload
            sql.execute(
                text("INSERT INTO run_events VALUES (:id, :seq, 'run.resumed', :payload)"),
                {"id": run_id, "seq": seq, "payload": payload},
            )

    schema.migrate(older)

    with older.connect() as sql:
        rows = sql.execute(text("SELECT id::text, attempt FROM runs")).all()
    assert {lost: 3, answered: 1, new: 0} == {row.id: row.attempt for row in rows}


@pytest.mark.parametrize(
    ("change", "is_gone"), [("is_private = true", False), ("deleted_at = now()", True)]
)
def test_an_upgrade_hides_the_threads_of_sub_runs(
    new_database: Callable[[], str], change: str, is_gone: bool
) -> None:
    """The threads on all levels below one that is private or deleted are so, with their runs."""
    engine = migrated_to("0068", new_database())
    runs = [str(new_id()) for _ in range(3)]
    with engine.begin() as sql:
        owner = owner_of_thread(sql)
        for parent, run_id in zip((None, *runs), runs, strict=False):
            if parent is not None:
                owner["thread"] = str(new_id())
                thread = "INSERT INTO threads (id, org_id, created_by_user_id, parent_run_id)"
                thread += " VALUES (:thread, :org, :user, :parent)"
                sql.execute(text(thread), {"parent": parent, **owner})
            columns = {"id": run_id, "state": "completed", "position": 1}
            sql.execute(text(EARLIER_RUN), {**columns, **owner})
        top = "id = (SELECT thread_id FROM runs WHERE id = :run)"
        sql.execute(text(f"UPDATE threads SET {change} WHERE {top}"), {"run": runs[0]})

    schema.migrate(engine)

    with engine.connect() as sql:
        seen = [
            {str(row.visible_to) for row in sql.execute(text(f"SELECT visible_to FROM {table}"))}
            for table in ("threads", "runs")
        ]
        roots = sql.execute(text("SELECT parent_run_id, root_thread_id FROM threads")).all()
        query = text("SELECT thread_id FROM runs WHERE id = :run")
        root_id = sql.scalar(query, {"run": runs[0]})
    engine.dispose()
    assert [{str(None) if is_gone else owner["user"]}] * 2 == seen
    below = [root for parent, root in roots if parent is not None]
    assert [root_id, root_id] == below


def test_an_upgrade_leaves_private_threads_of_others_to_them(
    new_database: Callable[[], str],
) -> None:
    """Below a thread that another member has made private, on the second level, too."""
    engine = migrated_to("0068", new_database())
    runs, below = ([str(new_id()) for _ in range(2)] for _ in range(2))
    with engine.begin() as sql:
        owner = owner_of_thread(sql)
        other = {"other": str(new_id())}
        user = "INSERT INTO users (id, login, email, password_hash)"
        sql.execute(text(f"{user} VALUES (:other, 'o', 'o@x', '-')"), other)
        place = {**owner, **other}
        for run_id, thread_id in zip(runs, below, strict=True):
            columns = {"id": run_id, "state": "completed", "position": 1}
            sql.execute(text(EARLIER_RUN), {**columns, **place})
            place["thread"] = thread_id
            thread = "INSERT INTO threads (id, org_id, created_by_user_id, parent_run_id)"
            values = {"parent": run_id, **place}
            sql.execute(text(f"{thread} VALUES (:thread, :org, :other, :parent)"), values)
        private = text("UPDATE threads SET is_private = true WHERE id = :id")
        for thread_id in (below[1], owner["thread"]):
            sql.execute(private, {"id": thread_id})

    schema.migrate(engine)

    query = text("SELECT visible_to FROM threads WHERE id = :id")
    with engine.connect() as sql:
        seen = [str(sql.scalar(query, {"id": id_})) for id_ in (owner["thread"], *below)]
    engine.dispose()
    assert [owner["user"], owner["user"], other["other"]] == seen


def test_an_upgrade_leaves_threads_below_deleted_ones_to_their_creators(
    new_database: Callable[[], str],
) -> None:
    """Private threads stay so; public ones below a private one become private, on all levels."""
    engine = migrated_to("0068", new_database())
    ids: dict[str, str] = {}
    with engine.begin() as sql:
        owner = owner_of_thread(sql)
        users = {"user": owner["user"], "other": str(new_id())}
        user = "INSERT INTO users (id, login, email, password_hash)"
        sql.execute(text(f"{user} VALUES (:other, 'o', 'o@x', '-')"), users)
        for position, (name, above, creator, is_private) in enumerate(
            (
                ("shared", None, "user", False),
                ("own", "shared", "user", True),
                ("another's", "shared", "other", True),
                ("below another's", "another's", "user", True),
                ("public", "shared", "other", False),
                ("private", None, "user", True),
                ("another's below", "private", "other", True),
                ("second", "private", "other", False),
                ("third", "second", "other", False),
            ),
            1,
        ):
            ids[name] = owner["thread"] = str(new_id())
            values = {**owner, "creator": users[creator], "private": is_private, "parent": None}
            if above is not None:
                values["parent"] = str(new_id())
                run = {"id": values["parent"], "state": "completed", "position": position}
                sql.execute(text(EARLIER_RUN), {**owner, **run, "thread": ids[above]})
            columns = "id, org_id, created_by_user_id, is_private, parent_run_id"
            thread = f"INSERT INTO threads ({columns}) VALUES (:thread, :org, :creator, :private"
            sql.execute(text(f"{thread}, :parent)"), values)
        gone = "UPDATE threads SET deleted_at = now() WHERE id IN (:shared, :private)"
        sql.execute(text(gone), ids)

    schema.migrate(engine)

    query = "SELECT id::text, created_by_user_id::text, is_private, deleted_at IS NULL FROM threads"
    with engine.connect() as sql:
        found = {row[0]: row[1:] for row in sql.execute(text(query)) if row[0] in ids.values()}
    engine.dispose()
    names = {id_: name for name, id_ in {**ids, **users}.items()}
    assert {
        "shared": ("user", False, False),
        "own": ("user", True, False),
        "another's": ("other", True, False),
        "below another's": ("user", True, False),
        "public": ("other", False, False),
        "private": ("user", True, False),
        "another's below": ("other", True, False),
        "second": ("user", True, False),
        "third": ("user", True, False),
    } == {names[id_]: (names[row[0]], *row[1:]) for id_, row in found.items()}


def test_an_upgrade_cancels_scheduled_runs_of_deleted_threads(
    new_database: Callable[[], str],
) -> None:
    """The sweep ends those whose cancellation is requested; others stay as they are."""
    engine = migrated_to("0068", new_database())
    gone, kept = (str(new_id()) for _ in range(2))
    with engine.begin() as sql:
        owner = owner_of_thread(sql)
        for position, run_id in ((2**52, gone), (2**52 + 1024, kept)):
            values = {"id": run_id, "state": "scheduled", "position": position, **owner}
            sql.execute(text(EARLIER_RUN), values)
            owner["thread"] = str(new_id())
            thread = "INSERT INTO threads (id, org_id, created_by_user_id)"
            sql.execute(text(f"{thread} VALUES (:thread, :org, :user)"), owner)
        sql.execute(text("UPDATE runs SET ended_at = NULL, not_before = now() + interval '1 day'"))
        deleted = "id = (SELECT thread_id FROM runs WHERE id = :run)"
        sql.execute(text(f"UPDATE threads SET deleted_at = now() WHERE {deleted}"), {"run": gone})

    schema.migrate(engine)

    query = "SELECT id::text FROM runs WHERE cancel_requested_at IS NOT NULL"
    with engine.connect() as sql:
        assert [gone] == list(sql.scalars(text(query)))
    engine.dispose()


def owner_of_thread(sql: Connection) -> dict[str, str]:
    """Insert an org with a user and a thread; return their ids as parameters of `EARLIER_RUN`."""
    ids = {name: str(new_id()) for name in ("org", "user", "thread")}
    for statement in (
        "INSERT INTO orgs (id, name) VALUES (:org, 'o')",
        "INSERT INTO users (id, login, email, password_hash) VALUES (:user, 'u', 'u@x', '-')",
        "INSERT INTO threads (id, org_id, created_by_user_id) VALUES (:thread, :org, :user)",
    ):
        sql.execute(text(statement), ids)
    return ids


EARLIER_RUN = """
INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id, model,
    position, state, queued_at, ended_at, input_tokens, output_tokens, cost_usd)
VALUES (:id, :org, :thread, :user, 't', 'assistant@1', 'r', 'm', :position, :state, now(),
    CASE WHEN :state = 'completed' THEN now() END, 7, 3, 0.5)
"""
