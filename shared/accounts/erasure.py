"""The export and the erasure of what belongs to one person: a user, or an end user of an org.

An erasure can be repeated: what a first one has left behind, because a run did not end, is erased
by the next. It leaves a record of numbers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select, update

from arkloop.shared.accounts import accounts, api_keys, identities, members, sessions
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import OPERATOR, NewEntry
from arkloop.shared.billing import budget_limits, usage_reports
from arkloop.shared.billing.spending import end_user_scope
from arkloop.shared.catalog import mcp_access, mcp_owners
from arkloop.shared.delivery import deliveries
from arkloop.shared.errors import LastOwner
from arkloop.shared.files import files
from arkloop.shared.ids import new_id
from arkloop.shared.runs import commands, moved_orgs, offered_messages, operated_runs, personal_data
from arkloop.shared.runs.personal_data import Conversations
from arkloop.shared.storage import idempotency, org_locks
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.accounts import api_keys as keys
from arkloop.shared.storage.tables.accounts import (
    erasures,
    invitations,
    memberships,
    orgs,
    password_resets,
    refresh_tokens,
    users,
)

#: Workers see a cancel with a heartbeat, the sweep comes round, and a lost worker is noticed.
RUNS_END_SECONDS = 60
#: Processes that are alive have begun to end the runs by then.
ALONE_AFTER_SECONDS = 10
#: Web processes have noticed the end of all access by then: nothing new is created.
ACCESS_ENDS_SECONDS = 5
THREADS_AT_ONCE = 50
RUNS_AT_ONCE = 50
_POLL_SECONDS = 0.2
_POLL_ALONE_SECONDS = 2

#: In place of names.
ERASED = "erased"


class RunsGoOn(Exception):
    """Runs of the person, in these orgs, have not ended in time: not everything was erased."""

    def __init__(self, org_ids: Sequence[UUID]) -> None:
        self.org_ids = org_ids


@dataclass(slots=True)
class Erased:
    """Numbers of what was erased."""

    threads: int = 0
    messages: int = 0
    runs: int = 0
    files: int = 0


def export_user(connections: Connections, user_id: UUID) -> Iterator[dict[str, Any]]:
    """Yield the user, their orgs, API keys, identities, logins, and threads that they created."""
    with connections.reading() as sql:
        account = list(_account(sql, user_id))
        created = personal_data.created_by(sql, user_id)
    yield from account
    yield from personal_data.exported(connections, created)


def _account(sql: Connection, user_id: UUID) -> Iterator[dict[str, Any]]:
    profile = select(users.c.id, users.c.login, users.c.email, users.c.created_at)
    yield {"type": "user", **sql.execute(profile.where(users.c.id == user_id)).mappings().one()}
    for org in accounts.orgs_of(sql, user_id):
        yield {"type": "membership", "org_id": org.id, "org_name": org.name, "role": org.role}
    names = ("id", "org_id", "name", "scopes", "created_at", "last_used_at", "revoked_at")
    of_user = select(*(keys.c[name] for name in names)).where(keys.c.user_id == user_id)
    for key in sql.execute(of_user.order_by(keys.c.id)).mappings():
        yield {"type": "api_key", **key}
    for identity in identities.of_user(sql, user_id):
        yield {"type": "identity", **identity._mapping}
    for login in sessions.list_(sql, user_id):
        yield {"type": "login", **login._mapping}


def export_end_user(
    connections: Connections, org_id: UUID, end_user_id: str
) -> Iterator[dict[str, Any]]:
    """Yield threads, messages, runs and files of an end user of the org."""
    with connections.reading() as sql:
        found = personal_data.of_end_user(sql, org_id, end_user_id)
    yield from personal_data.exported(connections, found)
    with connections.reading() as sql:
        named = personal_data.file_ids(sql, found)
        listed = files.of_end_user(sql, org_id, end_user_id, named)
    for file in listed:
        yield {"type": "file", **file._mapping}


def erase_end_user(connections: Connections, org_id: UUID, end_user_id: str) -> dict[str, Any]:
    """Erase an end user of the org, with all threads, runs and files; returns the record.

    Raises:
        RunsGoOn
    """

    def find(sql: Connection) -> Conversations:
        return personal_data.of_end_user(sql, org_id, end_user_id)

    def forget_responses(tx: Transaction, thread_ids: Sequence[UUID | None]) -> None:
        # A stored response outlives the membership of its issuer, by a day and seconds.
        issuers = members.issuers(tx.sql, org_id, within=2 * idempotency.KEPT)
        idempotency.forget_end_user(tx, org_id, end_user_id, issuers=issuers, thread_ids=thread_ids)

    erased = Erased()
    whose: Mapping[str, Any] = {"org_id": org_id, "end_user_id": end_user_id}
    so_far = _take_offers_back(connections, erased, whose)
    # Before the threads, as those of a user. Runs from before a thread had its end user do not name
    # them in their deliveries, and may be gone.
    with connections.reading() as sql:
        thread_ids = find(sql).thread_ids
    if thread_ids:
        deliveries.forget_threads(connections, org_id, thread_ids)
    _erase_threads(connections, find, erased, whose, forget_responses)
    _forget_prompts(connections, find)
    scope = end_user_scope(end_user_id)
    seen_at = deliveries.forget_end_user(connections, org_id, end_user_id, scope)
    # By the record, runs that are active store no summary with these messages from here on. Without
    # the messages an erasure that is repeated would not find it.
    with connections.transaction() as tx:
        so_far = _recorded(tx, erased, so_far, kind="end_user", org_id=org_id)
    with connections.reading() as sql:
        found = find(sql)
        first = personal_data.first_places(sql, found)
        elsewhere = personal_data.threads_of_single(sql, found)
    personal_data.forget_summaries(connections, first)
    # To tokens for threads that have another end user, or none, by now: one for each issuer and
    # thread, which take time to compute.
    for start in range(0, len(elsewhere), THREADS_AT_ONCE):
        with connections.transaction() as tx:
            forget_responses(tx, elsewhere[start : start + THREADS_AT_ONCE])
    with connections.transaction() as tx:
        found = find(tx.sql)
        # Created since all others have ended: nothing is deleted then, and all is found again.
        unended = personal_data.cancel(tx, replace(found, thread_ids=()))
        if not unended:
            first = personal_data.first_places(tx.sql, found)
            file_ids = personal_data.file_ids(tx.sql, found)
            personal_data.delete_single(tx, found)
            erased.runs += len(found.run_ids)
            erased.messages += len(found.message_ids)
            erased.files += files.remove_all(tx, **whose, file_ids=file_ids)
            forget_responses(tx, [None])
            # Limits are locked before what is spent, as where they are set.
            budget_limits.forget_end_user(tx, org_id, end_user_id)
            usage_reports.forget_end_user(tx, org_id, end_user_id)
            mcp_owners.forget(tx, mcp_access.owner_of(end_user_id, None), org_id=org_id)
            record = _recorded(tx, erased, so_far, kind="end_user", org_id=org_id)
            # By the record: the id of an end user may be a name.
            _audit(tx, org_id, "end_user.erased", ("erasure", record["id"]))
    if unended:
        raise RunsGoOn(unended)
    # Again: until the commit, runs that began a minute after the first record or later may have
    # stored some with these messages, and those that ended may have passed a budget's threshold.
    personal_data.forget_summaries(connections, first)
    deliveries.forget_end_user(connections, org_id, end_user_id, scope, since=seen_at)
    return record


def erase_user(connections: Connections, user_id: UUID) -> dict[str, Any]:
    """Erase a user: end all access, delete private threads, and take the name off the rest.

    Returns the record.

    Raises:
        LastOwner: an org with other members would have no owner, and no other cell has it.
        RunsGoOn: the user's access has ended; the name is still there.
    """
    with connections.transaction() as tx:
        _end_access(tx, user_id)
    erased = Erased()
    while True:
        time.sleep(ACCESS_ENDS_SECONDS)
        _erase_private_threads(connections, user_id, erased)
        with connections.transaction() as tx:
            if _take_name_off(tx, user_id):
                return _recorded(tx, erased, kind="user", user_id=user_id)


def _erase_private_threads(connections: Connections, user_id: UUID, erased: Erased) -> None:
    def find(sql: Connection) -> Conversations:
        return personal_data.of_user(sql, user_id)

    # Before the threads, which an erasure that is repeated does not find again. Deliveries that are
    # made from here on are of runs that are deleted with their threads.
    with connections.reading() as sql:
        by_org = personal_data.by_org(sql, find(sql))
    for org_id, thread_ids in by_org.items():
        deliveries.forget_threads(connections, org_id, thread_ids)
    _erase_threads(connections, find, erased, {"created_by_user_id": user_id})


def _take_offers_back(
    connections: Connections, erased: Erased, whose: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Delete messages of an end user that wait for a step of a run, and their files.

    The end of the run would make new runs of them. The last call of a run sends messages that it
    may not take: what may repeat them is forgotten first, since nothing leads there without them.
    Returns the record of it, if there were any: by that, the run stores no summary with them from
    here on.
    """
    with connections.reading() as sql:
        offered = offered_messages.by_run(sql, **whose)
        message_ids = [id_ for of_run in offered.values() for id_ in of_run]
        first = personal_data.first_places(sql, Conversations((), message_ids=message_ids))
    if not offered:
        return None
    with connections.transaction() as tx:
        record = _recorded(tx, erased, kind="end_user", org_id=whose["org_id"])
    personal_data.forget_summaries(connections, first)
    for run_id in offered:
        with connections.transaction() as tx:
            taken = offered_messages.take_back(tx, run_id, **whose)
            found = Conversations((), message_ids=taken)
            file_ids = personal_data.file_ids(tx.sql, found)
            if file_ids:
                erased.files += files.remove_all(tx, **whose, file_ids=file_ids)
            personal_data.delete_single(tx, found)
            erased.messages += len(taken)
    return record


def _erase_threads(
    connections: Connections,
    find: Callable[[Connection], Conversations],
    erased: Erased,
    whose: Mapping[str, Any],
    also: Callable[[Transaction, Sequence[UUID]], None] | None = None,
) -> None:
    """Delete the threads, with the files of theirs that `files.remove_all` finds by `whose`.

    `also` is called with those that are deleted, in the transaction that does so.
    """
    began = time.monotonic()
    while True:
        with connections.transaction() as tx:
            found = find(tx.sql)
            unended = personal_data.cancel(tx, found)
        if not unended and _delete_threads(connections, found, erased, whose, also):
            return
        seconds = time.monotonic() - began
        if unended and seconds > RUNS_END_SECONDS:
            raise RunsGoOn(unended)
        if seconds < ALONE_AFTER_SECONDS:
            time.sleep(_POLL_SECONDS)
        else:
            # Perhaps no process is there that sweeps: after a restore, erasures come before any.
            with connections.reading() as sql:
                run_ids = personal_data.unended(sql, found)
            operated_runs.requeue_each(connections, run_ids)
            time.sleep(_POLL_ALONE_SECONDS)


def _delete_threads(
    connections: Connections,
    found: Conversations,
    erased: Erased,
    whose: Mapping[str, Any],
    also: Callable[[Transaction, Sequence[UUID]], None] | None,
) -> bool:
    """Delete the threads, some in each transaction; False if a run has begun in the meantime."""
    for start in range(0, len(found.thread_ids), THREADS_AT_ONCE):
        some = found.thread_ids[start : start + THREADS_AT_ONCE]
        with connections.transaction() as tx:
            file_ids = personal_data.file_ids(tx.sql, Conversations(some))
            deleted = personal_data.delete_threads(tx, some)
            if deleted is None:
                return False
            if file_ids:
                erased.files += files.remove_all(tx, **whose, file_ids=file_ids)
            if also is not None:
                also(tx, some)
        erased.threads += len(some)
        erased.messages += deleted[0]
        erased.runs += deleted[1]
    return True


def _forget_prompts(connections: Connections, find: Callable[[Connection], Conversations]) -> None:
    """Forget prompts, summaries in events and checkpoints of others that may have messages of the
    person, those of some runs in each transaction.

    This comes before the runs that these messages belong to are deleted, by which they are found.
    """
    with connections.reading() as sql:
        found = find(sql)
        run_ids = personal_data.prompted_later(sql, found)
        first = personal_data.first_places(sql, found)
    for start in range(0, len(run_ids), RUNS_AT_ONCE):
        with connections.transaction() as tx:
            personal_data.forget_prompts(tx, run_ids[start : start + RUNS_AT_ONCE], first)


def _end_access(tx: Transaction, user_id: UUID) -> None:
    left = tx.sql.scalars(moved_orgs.left()).all()
    for org in sorted(accounts.orgs_of(tx.sql, user_id), key=lambda org: str(org.id)):
        org_locks.lock(tx, org.id)
        in_org = memberships.c.org_id == org.id
        count = tx.sql.scalar(select(func.count()).where(in_org)) or 0
        owners = select(func.count()).where(in_org, memberships.c.role == members.OWNER)
        is_needed = org.role == members.OWNER and count > 1 and org.id not in left
        if is_needed and tx.sql.scalar(owners) == 1:
            raise LastOwner()
        if count == 1:
            login = select(users.c.login).where(users.c.id == user_id).scalar_subquery()
            # Registration names an org by the login of the user.
            of_login = (orgs.c.id == org.id) & (orgs.c.name == login)
            tx.sql.execute(update(orgs).where(of_login).values(name=ERASED))
        _audit(tx, org.id, "user.erased", ("user", user_id))
    # First: a reset in use is locked before the user.
    accounts.end_password_reset(tx, user_id)
    # By its password the account could accept an invitation. This waits for a login that has
    # verified it; what that has added is deleted next.
    _void_password(tx, user_id)
    _end_ways_in(tx, user_id)
    identities.forget(tx, user_id)


def _void_password(tx: Transaction, user_id: UUID) -> None:
    tx.sql.execute(update(users).where(users.c.id == user_id).values(password_hash=ERASED))


def _end_ways_in(tx: Transaction, user_id: UUID) -> bool:
    """End memberships, logins and keys, and what else leads to access; returns whether the user was
    a member of an org, or logged in.
    """
    accounts.end_password_reset(tx, user_id)
    left = tx.sql.execute(delete(memberships).where(memberships.c.user_id == user_id))
    ended = tx.sql.execute(delete(refresh_tokens).where(refresh_tokens.c.user_id == user_id))
    for table in (invitations, password_resets):
        tx.sql.execute(delete(table).where(table.c.created_by_user_id == user_id))
    for org_id in tx.sql.scalars(select(keys.c.org_id).where(keys.c.user_id == user_id).distinct()):
        for key_id in api_keys.revoke_all(tx, org_id=org_id, user_id=user_id, by_user_id=None):
            _audit(tx, org_id, "api_key.revoked", ("api_key", key_id))
    return bool(left.rowcount or ended.rowcount)


def _take_name_off(tx: Transaction, user_id: UUID) -> bool:
    """Keep the row that threads of the org refer to, with nothing of the person in it.

    Runs in these threads that wait for the person to authorize access continue without it. Returns
    False, and keeps the name, if the person has come back: a login by an identity provider, or the
    refresh of one, may have been under way when access ended. It ends here, and private threads may
    exist again.
    """
    # First: transactions that have locked a run or a reset refer to the user next, whose row is
    # locked below.
    owner = mcp_access.owner_of(None, user_id)
    commands.decline_visits(tx, mcp_owners.forget(tx, owner))
    came_back = _end_ways_in(tx, user_id)
    identities.forget(tx, user_id)
    _void_password(tx, user_id)
    if came_back or personal_data.of_user(tx.sql, user_id).thread_ids:
        return False
    # Nobody can have taken it: no login has an "@", and no email begins with it.
    name = f"@{ERASED}-{user_id}"
    nothing = {"login": name, "email": name}
    tx.sql.execute(update(users).where(users.c.id == user_id).values(**nothing))
    named = update(keys).where(keys.c.user_id == user_id).values(name=ERASED)
    key_ids = tx.sql.scalars(named.returning(keys.c.id)).all()
    idempotency.forget_actors(tx, [user_id, *key_ids])
    return True


def _audit(tx: Transaction, org_id: UUID, action: str, target: tuple[str, UUID]) -> None:
    entry = NewEntry(org_id=org_id, action=action, by=OPERATOR, target=target)
    audit_log.record(tx, entry)


def _recorded(
    tx: Transaction, erased: Erased, so_far: Mapping[str, Any] | None = None, **whose: Any
) -> dict[str, Any]:
    """Record what was erased, in place of the record so far."""
    if so_far is not None:
        tx.sql.execute(delete(erasures).where(erasures.c.id == so_far["id"]))
    # Late: `thread_contexts.move` compares this time, and until the commit all can be read.
    values = {"id": new_id(), **whose, **asdict(erased), "created_at": func.clock_timestamp()}
    record = tx.sql.execute(insert(erasures).values(**values).returning(*erasures.c)).one()
    return dict(record._mapping)
