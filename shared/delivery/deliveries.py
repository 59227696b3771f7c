"""Deliveries: an event for one endpoint each, until it is delivered or dead.

    pending ──attempt──▶ delivered | dead | pending, after a pause
    dead, delivered ──replay──▶ pending

A trigger of the database inserts those of a run's events, in the transaction of the event. A
process that makes an attempt has a lease on the delivery meanwhile; if it dies, another one repeats
the attempt when the lease is over. So an event arrives at least once, always under the same id.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, literal_column, select, text, update
from sqlalchemy.sql.elements import Label

from arkloop.shared.config import Settings
from arkloop.shared.delivery import endpoints
from arkloop.shared.errors import WebhookDeliveryNotFound, WebhookEndpointDisabled
from arkloop.shared.ids import new_id
from arkloop.shared.storage.arrays import TextArray, plain_array
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.pages import Place, after, newest
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.delivery import webhook_deliveries

TEST_TYPE = "webhook.test"
STATES = ("pending", "delivered", "dead")

#: A process has this many times the time of an attempt to begin it, make it and record its result.
LEASE_FACTOR = 2
#: Pauses are longer by up to this part, so that what failed together is not repeated together.
JITTER = 0.25
#: An endpoint that has failed for this long and responds again gets at once what failed meanwhile.
STEADY_SECONDS = 5.0
#: Deliveries that become due by one statement; the next success makes as many more due.
HASTENED_AT_ONCE = 10_000
#: The longest month, and the four days after it in which events of its budgets are still sent (the
#: function `budgets_have_their_deliveries`): by these rows it knows what was sent.
RETENTION_DAYS = 35
REPLAYED_AT_ONCE = 1_000
FORGOTTEN_AT_ONCE = 1_000

_CLAIM = statement(__package__, "claim")
_RECORD = statement(__package__, "record")
_CORRECT_TIMES = statement(__package__, "correct_times")
_FIND_LOCKED = statement(__package__, "find_locked")
_ENDPOINTS_OF_ORG = statement(__package__, "endpoints_of_org")
_FORGET_DELETED_ENDPOINTS = statement(__package__, "forget_deleted_endpoints")
_FORGET_RUNS = statement(__package__, "forget_runs")
_FORGET_END_USER = statement(__package__, "forget_end_user")
_FORGET_THREADS = statement(__package__, "forget_threads")
#: The place before all deliveries to an endpoint.
_FIRST: Mapping[str, Any] = {"created_at": datetime.min.replace(tzinfo=UTC), "id": UUID(int=0)}
#: A delivery has the time of its statement, and is seen when the transaction commits: all have
#: done so by then.
_IN_PROGRESS = timedelta(minutes=5)
#: Literal texts: Postgres finds a partial index by nothing else.
_IS_STATE = {state: text(f"state = '{state}'") for state in STATES}
#: When the thread of a row's run was deleted; null, too, if it is about no run.
_THREAD_DELETED_AT: Label[datetime | None] = literal_column(
    "(SELECT t.deleted_at FROM threads t"
    " WHERE t.id = (webhook_deliveries.data::json ->> 'thread_id')::uuid)"
).label("thread_deleted_at")
_SHOWN = [c for c in webhook_deliveries.c if c.name not in ("data", "ordered_by", "leased_until")]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of an attempt to reach `url`: the response's status, or an error without one."""

    delivery_id: UUID
    number: int
    url: str
    response_status: int | None = None
    error: str | None = None

    @property
    def is_delivered(self) -> bool:
        return self.response_status is not None and 200 <= self.response_status < 300


# ---- for the admin of an org ---------------------------------------------------------


def list_(
    sql: Connection,
    org_id: UUID,
    endpoint_id: UUID,
    *,
    limit: int,
    before: Place | None,
    state: str | None = None,
) -> list[Row[Any]]:
    """List deliveries to an endpoint, without their data, newest first.

    Raises:
        WebhookEndpointNotFound
    """
    endpoints.find(sql, org_id, endpoint_id)
    query = select(*_SHOWN).where(webhook_deliveries.c.endpoint_id == endpoint_id)
    if state is not None:
        query = query.where(_IS_STATE[state])
    page = newest(query, webhook_deliveries, limit=limit, is_deep=before is not None)
    return list(sql.execute(page, after(before)))


def find(sql: Connection, org_id: UUID, endpoint_id: UUID, delivery_id: UUID) -> Row[Any]:
    """Find a delivery with its data, and when the thread of its run was deleted.

    Raises:
        WebhookEndpointNotFound, WebhookDeliveryNotFound
    """
    endpoints.find(sql, org_id, endpoint_id)
    columns = [*_SHOWN, webhook_deliveries.c.data, _THREAD_DELETED_AT]
    is_one = webhook_deliveries.c.id == delivery_id
    of_endpoint = webhook_deliveries.c.endpoint_id == endpoint_id
    row = sql.execute(select(*columns).where(is_one, of_endpoint)).one_or_none()
    if row is None:
        raise WebhookDeliveryNotFound()
    return row


def test(tx: Transaction, org_id: UUID, endpoint_id: UUID) -> Row[Any]:
    """Queue a delivery of `TEST_TYPE`, whatever the endpoint subscribes to.

    Raises:
        WebhookEndpointNotFound, WebhookEndpointDisabled
    """
    if not endpoints.find(tx.sql, org_id, endpoint_id).is_enabled:
        raise WebhookEndpointDisabled()
    delivery_id = new_id()
    tx.sql.execute(
        webhook_deliveries.insert().values(
            id=delivery_id,
            endpoint_id=endpoint_id,
            org_id=org_id,
            type=TEST_TYPE,
            ordered_by=delivery_id,
            seq=1,
            data=f'{{"endpoint_id": "{endpoint_id}"}}',
        )
    )
    return find(tx.sql, org_id, endpoint_id, delivery_id)


def replay(
    tx: Transaction, org_id: UUID, endpoint_id: UUID, delivery_ids: Collection[UUID] | None = None
) -> int:
    """Deliver again: these, or the dead ones, oldest first and `REPLAYED_AT_ONCE` at most.

    Each begins anew, under the id that it has. Returns how many there are; pending ones are made
    due.

    Raises:
        WebhookEndpointNotFound
        WebhookDeliveryNotFound: one of these is none of the endpoint's.
    """
    endpoints.find(tx.sql, org_id, endpoint_id)
    of_endpoint = webhook_deliveries.c.endpoint_id == endpoint_id
    chosen = select(webhook_deliveries.c.id).where(of_endpoint)
    if delivery_ids is None:
        chosen = chosen.where(_IS_STATE["dead"]).order_by(
            webhook_deliveries.c.created_at, webhook_deliveries.c.id
        )
        chosen = chosen.limit(literal_column(str(REPLAYED_AT_ONCE)))
    else:
        chosen = chosen.where(webhook_deliveries.c.id.in_(delivery_ids))
    found = tx.sql.scalars(chosen.with_for_update()).all()
    if delivery_ids is not None and len(found) < len(set(delivery_ids)):
        raise WebhookDeliveryNotFound()
    begun_anew = {"state": "pending", "attempts": 0, "tried_since": None, "delivered_at": None}
    tx.sql.execute(
        update(webhook_deliveries)
        .where(webhook_deliveries.c.id.in_(found))
        .values(**begun_anew, due_at=func.now())
    )
    return len(found)


# ---- for workers ---------------------------------------------------------------------


def claim(
    tx: Transaction,
    *,
    capacity: int,
    most_per_endpoint: int,
    busy: Mapping[UUID, int],
    held: Collection[UUID] = (),
) -> Sequence[Row[Any]]:
    """Begin attempts of at most `capacity` deliveries that are due, in one statement.

    `busy` has the attempts that this process is making, by endpoint, and `held` lists deliveries
    whose results are not recorded yet. Each row has the delivery's id, type, data and attempt, when
    the thread of its run was deleted, and the endpoint's address and sealed secrets.
    """
    settings = tx.connections.settings
    return tx.sql.exec_driver_sql(
        _CLAIM,
        {
            "capacity": capacity,
            "most": most_per_endpoint,
            "busy_ids": plain_array(busy),
            "busy": plain_array(busy.values()),
            "held": plain_array(held),
            "lease_seconds": _lease(settings),
        },
    ).all()


def record(tx: Transaction, attempts: Sequence[Attempt]) -> None:
    """Record the results of attempts, in one statement."""
    settings = tx.connections.settings
    tx.sql.exec_driver_sql(
        _RECORD,
        {
            **_given(attempts),
            "attempts": plain_array(one.number for one in attempts),
            "errors": TextArray(one.error for one in attempts),
            "pauses": plain_array(_pause(settings, one.number) for one in attempts),
            "first_pause": _pause(settings, 1),
            "window_seconds": sum(settings.webhook_retry_seconds),
            "steady": timedelta(seconds=STEADY_SECONDS),
            "lease": timedelta(seconds=_lease(settings)),
            "most": HASTENED_AT_ONCE,
        },
    )


def find_locked(tx: Transaction, attempts: Sequence[Attempt]) -> Mapping[UUID, str]:
    """Find the deliveries whose records would wait for a row; returns which row that is."""
    found = tx.sql.exec_driver_sql(_FIND_LOCKED, _given(attempts))
    return {row.id: row.locked for row in found}


def _given(attempts: Sequence[Attempt]) -> Mapping[str, Any]:
    return {
        "ids": plain_array(one.delivery_id for one in attempts),
        "are_delivered": plain_array(one.is_delivered for one in attempts),
        "urls": TextArray(one.url for one in attempts),
        "statuses": plain_array(one.response_status for one in attempts),
    }


def _lease(settings: Settings) -> float:
    return settings.webhook_timeout_seconds * LEASE_FACTOR


def _pause(settings: Settings, attempt: int) -> float:
    pauses = settings.webhook_retry_seconds
    return pauses[min(attempt, len(pauses)) - 1] * random.uniform(1, 1 + JITTER)


# ---- for an erasure ------------------------------------------------------------------


def forget_runs(tx: Transaction, org_id: UUID, run_ids: Collection[UUID]) -> None:
    """Delete the deliveries of these runs of the org, pending ones, too."""
    whose = {
        "endpoint_ids": plain_array(_endpoints_of(tx.sql, org_id)),
        "run_ids": plain_array(run_ids),
    }
    tx.sql.exec_driver_sql(_FORGET_RUNS, whose)


def forget_end_user(
    connections: Connections,
    org_id: UUID,
    end_user_id: str,
    budget_scope: str,
    *,
    since: datetime | None = None,
) -> datetime:
    """Delete the deliveries that name an end user of the org, or are about their budget, which has
    this scope; some in each transaction.

    Runs may be gone before their deliveries: by their age, if `ARKLOOP_RETENTION_DAYS` is less than
    `RETENTION_DAYS`. Returns the time from which another call, with `since`, finds what this one
    cannot have seen.

    Raises:
        Unavailable
    """
    with connections.reading() as sql:
        found = _endpoints_of(sql, org_id)
        began_at: datetime = sql.execute(select(func.now() - _IN_PROGRESS)).scalar_one()
    first = _FIRST if since is None else {**_FIRST, "created_at": since}
    whose = {"end_user_id": end_user_id, "budget_scope": budget_scope}
    whose["budget_type"] = endpoints.BUDGET_TYPE
    _forget_pages(connections, found, _FORGET_END_USER, whose, first)
    return began_at


def forget_threads(connections: Connections, org_id: UUID, thread_ids: Collection[UUID]) -> None:
    """Delete the deliveries of all runs in these threads of the org, some in each transaction.

    As with those of an end user, runs may be gone before their deliveries.

    Raises:
        Unavailable
    """
    with connections.reading() as sql:
        found = _endpoints_of(sql, org_id)
    whose = {"thread_ids": plain_array(thread_ids)}
    _forget_pages(connections, found, _FORGET_THREADS, whose, _FIRST)


def _forget_pages(
    connections: Connections,
    endpoint_ids: Sequence[UUID],
    forget_page: str,
    whose: Mapping[str, Any],
    first: Mapping[str, Any],
) -> None:
    """Look through the deliveries to each endpoint from this place on, page by page."""
    for endpoint_id in endpoint_ids:
        place: Mapping[str, Any] | None = first
        while place is not None:
            values = {**whose, **place, "endpoint_id": endpoint_id, "limit": FORGOTTEN_AT_ONCE}
            with connections.transaction() as tx:
                last = tx.sql.exec_driver_sql(forget_page, values).one_or_none()
            place = None if last is None else last._asdict()


def _endpoints_of(sql: Connection, org_id: UUID) -> Sequence[UUID]:
    return sql.exec_driver_sql(_ENDPOINTS_OF_ORG, {"org_id": org_id}).scalars().all()


# ---- for the sweep -------------------------------------------------------------------


def correct_times(tx: Transaction) -> None:
    """Correct times that are in the future since Postgres' clock was set back."""
    lease = timedelta(seconds=_lease(tx.connections.settings))
    tx.sql.exec_driver_sql(_CORRECT_TIMES, {"lease": lease})


def forget(tx: Transaction) -> bool:
    """Delete deliveries beyond the retention, pending ones, too; returns whether more are left."""
    old = (
        select(webhook_deliveries.c.id)
        .where(
            webhook_deliveries.c.created_at
            < func.now() - func.make_interval(0, 0, 0, RETENTION_DAYS)
        )
        .order_by(webhook_deliveries.c.created_at)
        .limit(literal_column(str(FORGOTTEN_AT_ONCE)))
        .with_for_update(skip_locked=True)
    )
    gone = tx.sql.execute(delete(webhook_deliveries).where(webhook_deliveries.c.id.in_(old)))
    return bool(gone.rowcount == FORGOTTEN_AT_ONCE)


def forget_deleted_endpoints(tx: Transaction) -> bool:
    """Delete pending deliveries to endpoints that are deleted; returns whether more are left.

    An event that is stored while its endpoint is deleted can leave one behind, so that the deletion
    of the endpoint cannot do it.
    """
    limit = {"limit": FORGOTTEN_AT_ONCE}
    gone = tx.sql.exec_driver_sql(_FORGET_DELETED_ENDPOINTS, limit)
    return bool(gone.rowcount == FORGOTTEN_AT_ONCE)
