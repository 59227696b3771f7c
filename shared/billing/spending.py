"""The amounts that each scope of a budget has spent and reserved in a month: rows of `spending`.

A scope is `org`, `api_key:<id>` or `persona:<key>` of an org. A row is made when its scope has a
limit and is first needed in a month; it begins with what has ended before it had the limit. From
then on every run that has a reservation adds to it. Rows are locked by org, scope and month, in
this order.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

ORG = "org"
API_KEY_SCOPE = "api_key:"  # and the key's id

#: SQL: the first day of this month, UTC, by Postgres' clock.
MONTH = "date_trunc('month', now() AT TIME ZONE 'UTC')::date"
# What ended runs have cost in the month `w.month` of the scope `w.scope`. Nothing for a persona: a
# version has its limit from the beginning, so all that it limits have had a reservation.
_ENDED = """
SELECT coalesce(sum(u.cost_usd), 0) FROM run_usage u
WHERE u.org_id = :org_id AND u.ended_at >= w.month::timestamp AT TIME ZONE 'UTC'
    AND u.month = w.month
    AND CASE split_part(w.scope, ':', 1)
        WHEN 'org' THEN true
        WHEN 'api_key' THEN u.api_key_id::text = substr(w.scope, length('api_key:') + 1)
        ELSE false
    END
"""
_WANTED = """
unnest(:scopes ::text[], :months ::date[], :spents ::numeric[], :helds ::numeric[])
    AS w (scope, month, spent, held)
"""
# CHECK constraints run on the proposed row before ON CONFLICT applies: hence `greatest`.
_MOVE = text(
    f"""
    INSERT INTO spending AS s (org_id, scope, month, spent_usd, held_usd)
    SELECT :org_id, w.scope, w.month,
        w.spent + CASE WHEN EXISTS (
            SELECT FROM spending s
            WHERE s.org_id = :org_id AND s.scope = w.scope AND s.month = w.month
        ) THEN 0 ELSE ({_ENDED}) END,
        greatest(w.held, 0)
    FROM {_WANTED}
    ORDER BY w.scope, w.month
    ON CONFLICT (org_id, scope, month) DO UPDATE SET
        (spent_usd, held_usd) = (
            SELECT s.spent_usd + w.spent, s.held_usd + w.held
            FROM {_WANTED} WHERE w.scope = s.scope AND w.month = s.month
        )
    RETURNING scope, month, spent_usd, held_usd
    """  # noqa: S608 - constant text
)
_NOW = text(
    f"""
    SELECT w.scope, w.month,
        coalesce(CASE WHEN :are_limited THEN s.spent_usd END, ({_ENDED})) AS spent_usd,
        coalesce(s.held_usd, 0) AS held_usd
    FROM (SELECT unnest(:scopes ::text[]) AS scope, {MONTH} AS month) AS w
    LEFT JOIN spending s ON s.org_id = :org_id AND s.scope = w.scope AND s.month = w.month
    """  # noqa: S608 - constant text
)
_RECOUNT = text(
    f"""
    UPDATE spending w SET spent_usd = ({_ENDED})
    WHERE w.org_id = :org_id AND w.scope = :scope AND w.month = {MONTH}
    """  # noqa: S608 - constant text
)
_LOCK = text(
    """
    SELECT FROM spending JOIN unnest(:orgs ::uuid[], :scopes ::text[], :months ::date[])
        AS w (org_id, scope, month) USING (org_id, scope, month)
    ORDER BY org_id, scope, month FOR UPDATE OF spending
    """
)


def api_key_scope(api_key_id: UUID) -> str:
    """Return the scope of a key's budget."""
    return f"{API_KEY_SCOPE}{api_key_id}"


def persona_scope(key: str) -> str:
    """Return the scope of a persona's budget, whatever its version."""
    return f"persona:{key}"


def move(
    sql: Connection, org_id: UUID, changes: Mapping[tuple[str, date], tuple[Decimal, Decimal]]
) -> Sequence[Row[Any]]:
    """Add USD (spent, held) to the rows of (scope, month), and keep their locks.

    Returns `scope`, `month`, `spent_usd` and `held_usd` as they are then.
    """
    if not changes:
        return []
    return sql.execute(
        _MOVE,
        {
            "org_id": org_id,
            "scopes": [scope for scope, _ in changes],
            "months": [month for _, month in changes],
            "spents": [spent for spent, _ in changes.values()],
            "helds": [held for _, held in changes.values()],
        },
    ).all()


def now(
    sql: Connection, org_id: UUID, scopes: Sequence[str], *, are_limited: bool = True
) -> Sequence[Row[Any]]:
    """Return `month`, `spent_usd` and `held_usd` of each scope, this month; reads without a lock.

    Without a limit a scope's row is not kept up to date: what has ended is summed up instead.
    """
    if not scopes:
        return []
    return sql.execute(
        _NOW, {"org_id": org_id, "scopes": list(scopes), "are_limited": are_limited}
    ).all()


def recount(sql: Connection, org_id: UUID, scope: str) -> None:
    """Set what is spent this month to what has ended in it.

    While a scope has no limit, runs end that do not add to its row.
    """
    [this_month] = now(sql, org_id, [scope])
    # Locked by a statement of its own: the next one sees whatever ended before.
    move(sql, org_id, {(scope, this_month.month): (Decimal(0), Decimal(0))})
    sql.execute(_RECOUNT, {"org_id": org_id, "scope": scope})


def lock(sql: Connection, places: Sequence[tuple[UUID, str, date]]) -> None:
    """Lock these rows, (org, scope, month), in the one order."""
    orgs, scopes, months = zip(*places, strict=True) if places else ((), (), ())
    sql.execute(_LOCK, {"orgs": list(orgs), "scopes": list(scopes), "months": list(months)})
