"""What a restore can lose although every later step of it succeeds."""

from collections.abc import Iterator
from uuid import UUID

from sqlalchemy import Connection, text

from arkloop.cli.doctor.findings import Finding, fail
from arkloop.shared.config import Settings
from arkloop.shared.events import partitions

#: Runs of each partition that are looked at: as many of the oldest as of the newest.
_MOST = 100
_LAST_ID = UUID(int=(1 << 128) - 1)
_RESTORE_AGAIN = (
    "If it comes from a dump, load that again, in sections, each of which must end with status 0:"
    " docs/how-to/operations.md"
)

# Each run by an index: joined, the tables might be read as a whole.
_WITHOUT_EVENTS = text(
    """
    SELECT id FROM (
        (SELECT id, ended_at FROM runs WHERE id >= :lower AND id <= :upper
            ORDER BY id LIMIT :most)
        UNION
        (SELECT id, ended_at FROM runs WHERE id >= :lower AND id <= :upper
            ORDER BY id DESC LIMIT :most)
    ) AS r
    WHERE ended_at IS NOT NULL AND (
        SELECT seq FROM run_events WHERE run_id = r.id ORDER BY run_id, seq LIMIT 1
    ) IS NULL
    ORDER BY id
    """
)


def of_events(_settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Find ended runs without any event, which no run has before it is deleted."""
    found = []
    lower = UUID(int=0)
    for upper in [*(UUID(int=one.upper.int - 1) for one in partitions.read(sql)), _LAST_ID]:
        values = {"lower": lower, "upper": upper, "most": _MOST}
        found += sql.scalars(_WITHOUT_EVENTS, values).all()
        lower = UUID(int=min(upper.int + 1, _LAST_ID.int))
    if found:
        yield fail(
            "lost events",
            f"{len(found):,} of the runs that were looked at have ended and have no event, such as"
            f" {found[0]} and {found[-1]}",
            _RESTORE_AGAIN,
        )
