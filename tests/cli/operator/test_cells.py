"""`arkloop orgs copy`."""

import json
import signal
import subprocess
import sys
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Column, MetaData, Table, Uuid, text

from arkloop.cli.operator import org_rows
from arkloop.cli.operator.encryption import COLUMNS
from arkloop.shared.billing import usage_sums
from arkloop.shared.delivery import deliveries
from arkloop.shared.errors import FileMissing
from arkloop.shared.files import files
from arkloop.shared.files.incoming import Facts
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.sealing.sealed_columns import reseal
from arkloop.shared.security.encryption import keyring
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.postgres import connection_args
from arkloop.shared.storage.tables import metadata
from tests.full_org import Run, contents, environ

pytestmark = pytest.mark.processes


def test_a_copy_has_all_rows_of_the_org_and_no_others(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Each table is copied; no trigger adds a delivery of an event that is copied."""
    done = run("copy")

    assert 0 == done.exit_code, done.output
    counts = json.loads(done.stdout)["rows"]
    assert {table.name for table in org_rows.tables()} == counts.keys()
    assert [] == [name for name, count in counts.items() if count == 0]
    there = contents(target, org_id)
    assert contents(connections, org_id) == there
    assert counts == {name: len(rows) for name, rows in there.items()}
    with target.reading() as sql:
        assert 1 == sql.scalar(text("SELECT count(*) FROM orgs"))
        assert 1 == sql.scalar(text("SELECT count(*) FROM webhook_deliveries"))
        for pairs in ("thread_metadata", "run_metadata"):
            assert 2 == sql.scalar(text(f"SELECT count(*) FROM {pairs}"))


def test_a_malformed_url_of_the_other_cell_is_named(run: Run) -> None:
    """It is not taken for that of this cell, which is well."""
    done = run("copy", "--to", "mysql://there/runs")

    assert 1 == done.exit_code
    assert "Error: --to (ARKLOOP_TARGET_DATABASE_URL): must begin with postgresql" in done.output


def test_a_copy_that_is_repeated_changes_nothing(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """It says that it was there; what happens to the row that is left behind does not matter."""
    assert 0 == run("copy").exit_code
    there = contents(target, org_id)
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE runs SET metadata = '{}' WHERE org_id = :org"), {"org": org_id})

    again = run("copy")

    assert (0, {}) == (again.exit_code, json.loads(again.stdout)["rows"])
    assert there == contents(target, org_id)


@pytest.mark.owner
def test_a_copy_that_was_killed_is_made_again(
    connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Nothing of it is in the target until all of it is."""
    command = [sys.executable, "-m", "arkloop.cli", "orgs", "copy", "--org", str(org_id)]
    # Without the time limits of the service: a command may start slowly.
    with psycopg.connect(**connection_args(target.settings.database_url)) as locking:
        locking.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        process = subprocess.Popen(
            command, env=environ(connections, target), stderr=subprocess.PIPE
        )
        with process:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, b"")
            assert any(line.startswith(b"orgs: 1") for line in lines)
            process.send_signal(signal.SIGKILL)
        assert -signal.SIGKILL == process.returncode
    assert [] == [name for name, rows in contents(target, org_id).items() if rows]

    subprocess.run(command, env=environ(connections, target), check=True, capture_output=True)

    assert contents(connections, org_id) == contents(target, org_id)


def test_an_org_is_resumed_where_its_copy_is(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Nothing resumes it in the cell that it has left."""
    assert 0 == run("copy").exit_code

    refused = run("resume")
    resumed = run("resume", at=target)
    late = run("copy")

    assert 1 == refused.exit_code
    assert "was copied to another cell" in refused.output
    assert 0 == resumed.exit_code
    assert None is json.loads(resumed.output)["suspended_at"]
    assert 1 == late.exit_code
    assert "not as a copy that waits to be resumed" in late.output


def test_an_open_org_is_not_copied(run: Run, target: Connections, org_id: UUID) -> None:
    """Requests could change it meanwhile."""
    run("resume")

    refused = run("copy")

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    assert "Suspend it first" in refused.output


def test_an_upload_that_is_still_written_fails(
    run: Run, connections: Connections, org_id: UUID
) -> None:
    """The old cell would have a file that the new one does not know."""
    facts = Facts("text/plain", 1, "00")
    with connections.transaction() as tx:
        user_id = tx.sql.scalar(
            text("SELECT user_id FROM memberships WHERE org_id = :org"), {"org": org_id}
        )
        assert user_id is not None
        file_id = files.create(tx, org_id=org_id, user_id=user_id, name="late.txt")

    assert 0 == run("copy").exit_code

    with pytest.raises(FileMissing), connections.transaction() as tx:
        files.complete(tx, file_id, facts)


@pytest.mark.parametrize("lacking", ["", "another key, which has 32 bytes or more"])
def test_cells_with_other_encryption_keys_are_refused(
    run: Run, target: Connections, org_id: UUID, lacking: str
) -> None:
    """The other cell could not read the secrets of the org."""
    refused = run("copy", "--encryption-key", lacking)

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    assert "under another key than --encryption-key" in refused.output


def test_an_org_whose_key_is_not_rotated_yet_is_refused(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Its secrets would be lost with the former key, where the other cell is through with that."""
    first, second = connections.settings.encryption_key, "x" * 32
    keys = f"{second},{first}", f"{first},{second}"
    cells = connections, target
    try:
        refused = run("copy", "--encryption-key", keys[0])
        nothing = contents(target, org_id)["orgs"]
        for cell in cells:
            org_keys.rewrap(cell, keyring(keys[0]))
        done = run("copy", "--encryption-key", keys[0])
        of_step_1 = run("copy", "--encryption-key", keys[1])
    finally:
        for cell in cells:
            org_keys.rewrap(cell, keyring(keys[1]))

    assert (1, [], 0, 1) == (refused.exit_code, nothing, done.exit_code, of_step_1.exit_code)
    for one in (refused, of_step_1):
        assert "Secrets of the organization are not under the first" in one.output
        assert "the new key first: run `arkloop keys rotate-encryption`" in one.output


def test_an_org_with_a_secret_under_a_former_key_is_refused(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Earlier releases have not encrypted it by the org's key, which is up to date here."""
    first, former = connections.settings.encryption_key or "", "x" * 32
    column, keys = COLUMNS[0], f"{first},{former}"
    secret = keyring(former).seal("secret", org_id=org_id, purpose=column.purpose)
    stored = column.column.table.update().where(column.org_id == org_id)
    with connections.transaction() as tx:
        tx.sql.execute(stored.values({column.column.name: secret}))

    refused = run("copy", "--encryption-key", keys)
    nothing = contents(target, org_id)["orgs"]
    reseal(connections, column, keyring(keys), of_org=org_id)

    assert (1, [], 0) == (refused.exit_code, nothing, run("copy").exit_code)
    assert "Secrets of the organization are not under the first" in refused.output


@pytest.mark.owner
@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("0001", "bring both cells to its release, with `arkloop migrate`"),
        ("9999", "Bring both cells to the release that made the newest"),
    ],
)
def test_cells_with_other_schemas_are_refused(
    run: Run, target: Connections, org_id: UUID, version: str, advice: str
) -> None:
    """Rows of one release could lack what the other one needs. A newer schema stays as it is, so
    that `arkloop migrate` of this release is no way out.
    """
    set_version = text("UPDATE alembic_version SET version_num = :version RETURNING version_num")
    with target.transaction() as tx:
        before = tx.sql.scalar(text("SELECT version_num FROM alembic_version"))
        tx.sql.execute(set_version, {"version": version})
    refused = run("copy")
    with target.transaction() as tx:
        tx.sql.execute(set_version, {"version": before})

    assert 1 == refused.exit_code
    assert advice in refused.output


def test_a_cell_is_not_copied_to_itself(run: Run, connections: Connections) -> None:
    """A database that was made of a dump of it is refused, too."""
    refused = run("copy", "--to", connections.settings.database_url)

    assert 1 == refused.exit_code
    assert "the same installation" in refused.output


@pytest.mark.owner
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("check_violation", "refuses a row of threads: no. Nothing was copied."),
        ("foreign_key_violation", "refuses a row of threads: no. Nothing was copied."),
        ("not_null_violation", "refuses a row of threads: no. Nothing was copied."),
        ("insufficient_privilege", "no. The roles of both URLs need the rights of the service."),
    ],
)
def test_a_row_that_the_other_cell_refuses_is_one_line(
    run: Run, target: Connections, org_id: UUID, code: str, said: str
) -> None:
    """Its schema was changed by hand, say. The row itself is not shown."""
    with target.transaction() as tx:
        tx.sql.exec_driver_sql(_REFUSE.format(code=code))
    try:
        refused = run("copy")
    finally:
        with target.transaction() as tx:
            tx.sql.exec_driver_sql("DROP FUNCTION refuse CASCADE")

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and last.endswith(said), refused.output


_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
RAISE EXCEPTION 'no' USING ERRCODE = '{code}', TABLE = 'threads', DETAIL = 'Of the row';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON threads FOR EACH ROW EXECUTE FUNCTION refuse()
"""


def test_a_login_that_another_user_has_is_refused(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Nothing is copied, and the message says which one it is."""
    with target.transaction() as tx:
        add_user(tx, new_id(), email="taken@example.com")
    with connections.transaction() as tx:
        rename = "UPDATE users SET email = 'Taken@example.com' WHERE id = ANY (SELECT user_id"
        tx.sql.execute(text(f"{rename} FROM memberships WHERE org_id = :org)"), {"org": org_id})

    refused = run("copy")

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    assert "The other cell has a row of this id or name in users: " in refused.output
    # The value, where row-level security does not hide it.
    assert "=(taken@example.com)" in refused.output or "uq_users_email" in refused.output


def test_a_user_who_is_there_keeps_their_password(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """A user of two orgs was copied with the first one."""
    with connections.reading() as sql:
        user = sql.execute(
            text(
                "SELECT u.* FROM users u JOIN memberships m ON m.user_id = u.id WHERE org_id = :org"
            ),
            {"org": org_id},
        ).one()
    with target.transaction() as tx:
        add_user(tx, user.id, login=user.login, email=user.email, password_hash="newer")

    assert 0 == run("copy").exit_code

    with target.reading() as sql:
        query = text("SELECT password_hash FROM users WHERE id = :id")
        assert "newer" == sql.scalar(query, {"id": user.id})


def test_a_user_who_is_somebody_else_there_is_named(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """A login that was changed in one of the cells has to be the same again before."""
    query = text("SELECT user_id FROM memberships WHERE org_id = :org")
    with connections.reading() as sql:
        user_id = sql.execute(query, {"org": org_id}).scalar_one()
    with target.transaction() as tx:
        add_user(tx, user_id, login="renamed")

    refused = run("copy")

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    assert f"users with another login or address in the target: {org_id}" in refused.output
    assert str(user_id) in refused.output


def add_user(tx: Transaction, user_id: UUID, **columns: str) -> None:
    values = {"login": str(user_id), "email": str(user_id), "password_hash": "", **columns}
    tx.sql.execute(metadata.tables["users"].insert().values(id=user_id, **values))


@pytest.mark.parametrize("days", [-1, 1])
def test_days_that_one_cell_has_summed_up_are_counted_once(
    run: Run, connections: Connections, target: Connections, org_id: UUID, days: int
) -> None:
    """Whichever of both has summed up more days."""
    _sum_up_to(connections, "2026-01-10")
    _sum_up_to(target, f"2026-01-{10 + days}")
    used = text("UPDATE run_usage SET ended_at = :at, run_id = :id WHERE org_id = :org")
    copied = text(
        "INSERT INTO run_usage SELECT (jsonb_populate_record(u, jsonb_build_object("
        "'run_id', gen_random_uuid(), 'ended_at', CAST(:at AS text)))).*"
        " FROM run_usage u WHERE org_id = :org LIMIT 1"
    )
    with connections.transaction() as tx:
        tx.sql.execute(used, {"at": "2026-01-08T12:00Z", "id": new_id(), "org": org_id})
        for day in ("09", "10", "11"):
            tx.sql.execute(copied, {"at": f"2026-01-{day}T12:00Z", "org": org_id})
        both = {"org_id": org_id, "since": "2026-01-08", "until": "2026-01-10"}
        tx.sql.exec_driver_sql(usage_sums.ADD_INTERVALS, both | {"credits_per_usd": 1})
        for day in ("08", "09"):
            tx.sql.exec_driver_sql(usage_sums.ADD_DAY, both | {"day": f"2026-01-{day}"})

    assert 0 == run("copy").exit_code

    mine = "org_id = :org AND model IS NULL"
    days_there = text(f"SELECT to_char(day, 'DD'), runs FROM usage_days WHERE {mine} ORDER BY day")
    parts = text(f"SELECT to_char(began_at, 'DD HH24') FROM usage_intervals WHERE {mine}")
    with target.reading() as sql:
        found = dict(sql.execute(days_there, {"org": org_id}).all())
        intervals = set(sql.scalars(parts, {"org": org_id}))
    assert dict.fromkeys(("08", "09", "10")[: 2 + days], 1) == found
    assert {f"{10 + days:02} 12"} == intervals


def _sum_up_to(connections: Connections, day: str) -> None:
    """Let the cell have summed up the days before this one, and of it the intervals until 13:00."""
    until = text("UPDATE usage_days_until SET day = :day, interval_at = :at")
    with connections.transaction() as tx:
        tx.sql.execute(until, {"day": day, "at": f"{day}T13:00Z"})


def test_webhooks_of_an_org_that_has_left_are_not_sent(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """They wait until it is resumed, and are sent where its copy is."""
    assert org_id in _due(connections)
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE webhook_deliveries SET leased_until = NULL"))
    assert 0 == run("copy").exit_code

    assert org_id not in [*_due(connections), *_due(target)]
    run("resume", at=target)
    assert org_id in _due(target)


def _due(connections: Connections) -> list[UUID]:
    with connections.transaction() as tx:
        claimed = deliveries.claim(tx, capacity=100, most_per_endpoint=100, busy={})
        return [one.org_id for one in claimed]


def test_a_table_that_is_neither_copied_nor_named_is_an_error() -> None:
    """All tables of the database are one or the other, and none is both."""
    with pytest.raises(LookupError, match="says? whether rows of novel are copied"):
        org_rows._rows(Table("novel", MetaData(), Column("id", Uuid)))
    copied = {table.name for table in org_rows.tables()}
    assert {*metadata.tables, "alembic_version"} == copied | org_rows.NOT_COPIED.keys()
    assert set() == copied & org_rows.NOT_COPIED.keys()
