"""`arkloop orgs copy` and `erase`: the move of an org to the database of another cell, and the
erasure of what it has left behind.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from uuid import UUID

import click
import psycopg
from sqlalchemy import func, select, update

from arkloop.cli.operator import org_copies, org_erasures
from arkloop.cli.operator.database import (
    checked,
    database_url_option,
    find_org,
    org_option,
    record,
    without_notifications,
)
from arkloop.cli.operator.encryption import COLUMNS
from arkloop.cli.operator.erasure import confirmed
from arkloop.cli.output import print_json, print_line
from arkloop.shared.files import files
from arkloop.shared.runs import operated_runs, sweep
from arkloop.shared.sealing import org_keys
from arkloop.shared.sealing.sealed_columns import older_than_org_key
from arkloop.shared.security.encryption import CannotOpen, NoEncryptionKey, keyring
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.accounts import orgs

#: A credential counts for 2 s after the suspension. A request of then may read its body for 10 s,
#: wait for one with the same idempotency key for 5 s, and write for 2 s.
QUIET_SECONDS = 20
_POLL_SECONDS = 0.2

_CANCELLING = "runs that are being cancelled"

# Sweeps end these, with all that they cost, and leave them alone once the org has left.
_BEFORE_IT_LEAVES = {
    _CANCELLING: "SELECT EXISTS (SELECT FROM runs r JOIN orgs o ON o.id = r.org_id"
    " WHERE o.id = %(org)s AND suspended_at IS NOT NULL AND moved_to IS NULL"
    " AND cancel_requested_at IS NOT NULL AND ended_at IS NULL AND state <> 'executing')",
}
# What is under way outside of Postgres, which the copy would not know of.
_UNDER_WAY = {
    "requests of before the suspension": "SELECT EXISTS (SELECT FROM orgs WHERE id = %(org)s"
    f" AND suspended_at > now() - interval '{QUIET_SECONDS} s')",
    "runs that are executed": "SELECT EXISTS (SELECT FROM runs WHERE org_id = %(org)s"
    " AND ended_at IS NULL AND state = 'executing')",
    _CANCELLING: "SELECT EXISTS (SELECT FROM runs WHERE org_id = %(org)s"
    " AND ended_at IS NULL AND cancel_requested_at IS NOT NULL)",
    "webhooks that are being sent": "SELECT EXISTS (SELECT FROM webhook_deliveries d"
    " WHERE org_id = %(org)s AND state = 'pending' AND leased_until > now())",
    # One of before still ends runs of the org. This lock is released at once.
    "a sweep": f"SELECT NOT pg_try_advisory_xact_lock({sweep.LOCK_KEY})",
}
_INSTALLATION = "SELECT epoch, (SELECT version_num FROM alembic_version) FROM installation"
_MOVED_TO = "SELECT moved_to FROM orgs WHERE id = %s"
_LEFT = "SELECT suspended_at, moved_to FROM orgs WHERE id = %s"
#: How a message names the URL of the other cell.
_TARGET = "--to (ARKLOOP_TARGET_DATABASE_URL)"
_NOT_UNDER_FIRST = (
    "Secrets of the {} are not under the first of --encryption-key. Give new,old, the new key"
    " first: run `arkloop keys rotate-encryption` with that in both cells, and then this."
)


_target_option = click.option(
    "--to",
    "target_url",
    envvar="ARKLOOP_TARGET_DATABASE_URL",
    required=True,
    help="Postgres of the other cell.  [default: $ARKLOOP_TARGET_DATABASE_URL]",
)


@click.command("copy")
@database_url_option
@org_option
@_target_option
@click.option(
    "--encryption-key",
    envvar="ARKLOOP_ENCRYPTION_KEY",
    help="That of the other cell, which must be the same.  [default: $ARKLOOP_ENCRYPTION_KEY]",
)
@click.option(
    "--wait",
    "wait_seconds",
    type=click.IntRange(0),
    default=120,
    show_default=True,
    help="Seconds to wait for the end of what is under way.",
)
def copy(
    database_url: str, org: str, target_url: str, encryption_key: str | None, wait_seconds: int
) -> None:
    """Copy all rows of a suspended organization to the database of another cell, and compare them.

    The organization stays suspended in both. From then on it can be resumed in the other cell
    alone. It may be repeated, also after it was killed: the other cell has all of it or nothing.
    """
    began = time.monotonic()
    with (
        without_notifications(database_url) as connections,
        _opened(checked(database_url)) as source,
        _opened(checked(target_url, name=_TARGET)) as target,
    ):
        with connections.reading() as sql:
            org_id = find_org(sql, org)
            older = [value for one in COLUMNS for value in older_than_org_key(sql, one, org_id)]
        epoch = _check_installations(source, target)
        _check_keys(source, target, encryption_key, org_id, older)
        rows: dict[str, int] = {}
        if _is_in_use(target, org_id):
            # An earlier call may have died before it noted this. The next check raises.
            _note_complete(connections, org_id, epoch)
        if not _is_there(source, target, org_id, epoch):
            deadline = began + wait_seconds
            _wait(source, org_id, deadline, _BEFORE_IT_LEAVES)
            with connections.transaction() as tx:
                _leave(tx, org_id, epoch)
            end_cancelled = partial(_end_cancelled, connections, org_id)
            _wait(source, org_id, deadline, _UNDER_WAY, end_cancelled)
            _check_still_left(source, org_id, epoch)
            with connections.transaction() as tx:
                files.end_uploads(tx, org_id)
            rows = _copied(source, target, org_id, epoch)
        _note_complete(connections, org_id, epoch)
    seconds = round(time.monotonic() - began, 1)
    print_json({"org_id": str(org_id), "to": str(epoch), "rows": rows, "seconds": seconds})


@click.command("erase")
@database_url_option
@org_option
@_target_option
@click.option("--yes", is_flag=True, help="Erase without asking.")
def erase(database_url: str, org: str, target_url: str, yes: bool) -> None:
    """Erase what an organization has left behind, once it is resumed in another cell.

    Bytes of files stay, since cells can share them; so do users, the audit log and the ledger. It
    may be repeated after it was stopped.
    """
    with (
        without_notifications(database_url) as connections,
        _opened(checked(database_url)) as source,
        _opened(checked(target_url, name=_TARGET)) as target,
    ):
        with connections.reading() as sql:
            org_id = find_org(sql, org)
        _check_installations(source, target)
        _check_left(source, target, org_id)
        confirmed(f"the rows of {org_id} in the database {source.info.dbname}", yes)
        rows = {}
        for name, count in org_erasures.erase(source, org_id):
            rows[name] = count
            print_line(f"{name}: {count}", err=True)
    print_json({"org_id": str(org_id), "rows": rows})


def _check_left(source: org_copies.Connection, target: org_copies.Connection, org_id: UUID) -> None:
    """Check that the org is served there and not here. Raises: ClickException."""
    here, there = (org_copies.asked(one, _MOVED_TO, [org_id]) for one in (source, target))
    if here is None or here[0] is None:
        raise click.ClickException("It was not copied to another cell; nothing was erased.")
    if there is None or there[0] is not None:
        raise click.ClickException(
            "It is not resumed in the other cell; nothing was erased. Resume it there first."
        )


@contextmanager
def _opened(url: str) -> Iterator[org_copies.Connection]:
    try:
        with org_copies.opened(url) as connection:
            yield connection
    except (psycopg.OperationalError, psycopg.InternalError) as error:
        raise click.ClickException(f"Postgres: {error}") from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise click.ClickException(
            f"Postgres: {error.diag.message_primary}. The roles of both URLs need the rights of"
            " the service."
        ) from None


def _check_installations(source: org_copies.Connection, target: org_copies.Connection) -> UUID:
    """Return the epoch of the target. Raises: ClickException: the two cannot exchange rows."""
    (epoch, version), (target_epoch, target_version) = map(_installation, (source, target))
    needed = schema.needed_version()
    if version != needed or target_version != needed:
        raise click.ClickException(
            f"The schemas are {version} here and {target_version} there, and this command knows"
            f" {needed}: {_way_to_one_release(version, target_version)}"
        )
    if epoch == target_epoch:
        raise click.ClickException(
            "Both URLs lead to the same installation, or one is a copy of the other: then begin"
            " another epoch in one of them, with `arkloop rotate-epoch`."
        )
    return target_epoch


def _way_to_one_release(*versions: str) -> str:
    """Return what to do where the cells' schemas are not both of this command's release."""
    if not any(map(schema.is_newer, versions)):
        return "bring both cells to its release, with `arkloop migrate`."
    # An older release leaves a newer schema as it is.
    return (
        "no schema can go back. Bring both cells to the release that made the newest, and use the"
        " command of that release; until then the org can be resumed in the cell that it is in."
    )


def _installation(connection: org_copies.Connection) -> tuple[UUID, str]:
    try:
        row = org_copies.asked(connection, _INSTALLATION)
    except psycopg.errors.UndefinedTable:
        row = None
    if row is None:
        raise click.ClickException(
            f"The database {connection.info.dbname} has no schema: run `arkloop migrate`."
        )
    return row[0], row[1]


def _check_keys(
    source: org_copies.Connection,
    target: org_copies.Connection,
    setting: str | None,
    org_id: UUID,
    older: Collection[bytes],
) -> None:
    """Check that both cells have encrypted by the first key of this setting what they have
    encrypted, if anything: once a cell is through with a rotation, nothing in it may be under the
    former key, which is then removed. `older` are secrets of the org from before it had a key.

    Raises:
        ClickException
    """
    ring = keyring(setting)
    of_org = "SELECT org_id, wrapped FROM org_keys WHERE org_id = %s"
    found = [("organization", org_copies.asked(source, of_org, [org_id]))]
    if older or found[0][1] is not None:
        any_one = org_copies.asked(target, "SELECT org_id, wrapped FROM org_keys LIMIT 1")
        found.append(("other cell", any_one))
    for whose, row in found:
        if row is None:
            continue
        wrapped = bytes(row[1])
        try:
            org_keys.unwrapped(ring, wrapped, row[0])
        except (CannotOpen, NoEncryptionKey):
            raise click.ClickException(
                f"The secrets of the {whose} are under another key than --encryption-key: both"
                " cells need the same, see `arkloop keys rotate-encryption`."
            ) from None
        if not ring.is_up_to_date(wrapped):
            raise click.ClickException(_NOT_UNDER_FIRST.format(whose))
    if not all(map(ring.is_up_to_date, older)):
        raise click.ClickException(_NOT_UNDER_FIRST.format("organization"))


def _is_in_use(target: org_copies.Connection, org_id: UUID) -> bool:
    """Return whether the target has the org, and not as a copy that waits to be resumed."""
    there = org_copies.asked(target, _MOVED_TO, [org_id])
    return there is not None and there[0] is None


def _is_there(
    source: org_copies.Connection, target: org_copies.Connection, org_id: UUID, epoch: UUID
) -> bool:
    """Return whether there is a copy since this suspension, and thus a complete one.

    Raises:
        ClickException: the target has the org, but in use, or as it was before it was resumed here.
    """
    there = org_copies.asked(target, _LEFT, [org_id])
    if there is None:
        return False
    if there[1] != epoch:
        raise click.ClickException(
            f"The other cell has the organization {org_id}, and not as a copy that waits to be"
            " resumed. Nothing was changed there."
        )
    if there != org_copies.asked(source, _LEFT, [org_id]):
        raise click.ClickException(
            f"The other cell has an earlier copy of the organization {org_id}, which was given up"
            " when it was resumed here. Erase that one first: `arkloop orgs erase --to` this"
            " database, in the environment of the other cell."
        )
    return True


def _leave(tx: Transaction, org_id: UUID, epoch: UUID) -> None:
    """Mark the org as one that leaves: it is resumed in that installation, and nowhere else.

    Raises:
        ClickException: it is not suspended, or was copied to a third installation.
    """
    query = select(orgs.c.suspended_at, orgs.c.moved_to).where(orgs.c.id == org_id)
    row = tx.sql.execute(query.with_for_update()).one()
    if row.suspended_at is None:
        raise click.ClickException("Suspend it first: `arkloop orgs suspend`.")
    if row.moved_to not in (None, epoch):
        raise click.ClickException(
            f"It was copied to the installation {row.moved_to} before. If that copy is not used:"
            " `arkloop orgs resume --despite-copy`, and suspend it again."
        )
    leaves = {"moved_to": epoch, "copy_began_at": func.now()}
    tx.sql.execute(update(orgs).where(orgs.c.id == org_id).values(leaves))
    if row.moved_to is None:
        record(tx, org_id, "org.copied", "org", org_id, to=str(epoch))


def _note_complete(connections: Connections, org_id: UUID, epoch: UUID) -> None:
    """Note that an org that leaves for this installation has a complete copy there."""
    leaves = (orgs.c.id == org_id) & (orgs.c.moved_to == epoch)
    with connections.transaction() as tx:
        tx.sql.execute(update(orgs).where(leaves).values(copy_began_at=None))


def _check_still_left(source: org_copies.Connection, org_id: UUID, epoch: UUID) -> None:
    """Check what `_leave` has stored. Raises: ClickException."""
    suspended_at, moved_to = org_copies.asked(source, _LEFT, [org_id]) or (None, None)
    if suspended_at is None or moved_to != epoch:
        raise click.ClickException("It was resumed meanwhile. Nothing was copied.")


def _end_cancelled(connections: Connections, org_id: UUID) -> None:
    """End runs that were to be cancelled when the org left: its copy does not exist yet."""
    with connections.transaction() as tx:
        operated_runs.end_cancelled(tx, org_id)


def _wait(
    source: org_copies.Connection,
    org_id: UUID,
    deadline: float,
    under_way: Mapping[str, str],
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Wait for the end of what is under way, doing `meanwhile` before each look.

    Raises:
        ClickException: it takes longer.
    """
    for what, query in under_way.items():
        while True:
            if meanwhile is not None:
                meanwhile()
            if not (org_copies.asked(source, query, {"org": org_id}) or [False])[0]:
                break
            if time.monotonic() > deadline:
                raise click.ClickException(
                    f"Still under way: {what}. Is a web or worker process alive here? Nothing was"
                    " copied; repeat the command."
                )
            time.sleep(_POLL_SECONDS)


def _copied(
    source: org_copies.Connection, target: org_copies.Connection, org_id: UUID, epoch: UUID
) -> dict[str, int]:
    """Copy, and return the number of rows by table. Raises: ClickException."""
    rows = {}
    try:
        with org_copies.reading(source), org_copies.writing(target, org_id):
            # As the snapshot has it: a copy of an open org would be open.
            _check_still_left(source, org_id, epoch)
            # Another call may have been faster.
            if not _is_there(source, target, org_id, epoch):
                for name, count in org_copies.copy(source, target, org_id):
                    rows[name] = count
                    print_line(f"{name}: {count}", err=True)
                target.execute("UPDATE orgs SET copy_began_at = NULL WHERE id = %s", [org_id])
    except psycopg.errors.UniqueViolation as error:
        # Behind row-level security there is no detail.
        detail = error.diag.message_detail or error.diag.constraint_name
        raise click.ClickException(
            f"The other cell has a row of this id or name in {error.diag.table_name}: {detail}"
            " Nothing was copied."
        ) from None
    except psycopg.IntegrityError as error:
        # Its detail is the whole row.
        raise click.ClickException(
            f"The other cell refuses a row of {error.diag.table_name}:"
            f" {error.diag.message_primary}. Nothing was copied."
        ) from None
    except org_copies.Differs as error:
        raise click.ClickException(f"{error}. Nothing was copied.") from None
    return rows
