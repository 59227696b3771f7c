"""The plans of Postgres for what the code sends.

The statements are those that the code sends, noted on their way to the driver. Each is planned
twice: for the values that were sent, and for any (as Postgres plans a statement that is prepared).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import psycopg
from sqlalchemy import Connection, event

from arkloop.shared.storage.connections import Connections
from tests import walls

BIG = {
    *("runs", "run_events", "messages", "threads", "tool_calls", "inputs", "forgotten_events"),
    *(
        "usage_days",
        "usage_intervals",
        "run_usage",
        "ledger_entries",
        "budgets",
        "spending",
        "holds",
        "credit_balances",
    ),
}

#: Indexes of small tables, of which all rows may be read.
_SMALL = {"pk_users", "pk_workers"}

_OF_SERVICE = (
    "enable_bitmapscan = off",
    "enable_seqscan = off",
    "max_parallel_workers_per_gather = 0",
)

Statement = tuple[str, dict[str, Any]]
Ask = Callable[[Connection], object]


@contextmanager
def noted(connections: Connections) -> Iterator[list[Statement]]:
    """Record every statement that is sent while the block lasts."""
    statements: list[Statement] = []

    def note(*details: Any) -> None:
        statements.append((details[2], details[3]))

    event.listen(connections.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(connections.engine, "before_cursor_execute", note)


def sent(connections: Connections, ask: Ask) -> list[Statement]:
    with noted(connections) as statements, connections.reading() as sql:
        ask(sql)
    return statements


class Plans:
    """The plans of one statement."""

    def __init__(self, connections: Connections, statement: Statement) -> None:
        self.statement, values = statement
        names: list[str] = []

        def numbered(match: re.Match[str]) -> str:
            if match[1] not in names:
                names.append(match[1])
            kind = "::interval" if isinstance(values[match[1]], timedelta) else ""
            return f"${names.index(match[1]) + 1}{kind}"

        generic = re.sub(r"%\((\w+)\)s", numbered, self.statement).replace("%%", "%")
        url = connections.settings.database_url.replace("+psycopg", "", 1)
        #: As the service has them: its sessions plan for indexes (`shared/storage/postgres.py`).
        self.of_values, self.of_any = _planned(
            url, self.statement, values, generic, names, settings=_OF_SERVICE
        )
        #: As Postgres has them by itself: an index that is no use is not chosen.
        self.of_choice = _planned(url, self.statement, values, generic, names)
        #: The same behind row-level security.
        walled = _walled(connections.settings.database_url).replace("+psycopg", "", 1)
        self.of_walled = _planned(walled, self.statement, values, generic, names)

    def check(self, indexes: set[str], *, few: set[str] = frozenset()) -> None:
        """Check that exactly these indexes of big tables are read, nothing else of those, and that
        no more of it is sorted than a page, or than `few` indexes give.
        """
        for kind, plan in (("values", self.of_values), ("any values", self.of_any)):
            shown = f"{kind}\n{self.statement}\n{_outline(plan)}"
            assert set() == _scanned(plan), shown
            assert indexes == _indexes(plan), shown
            for node in _nodes(plan):
                if "Sort" in node["Node Type"]:
                    assert _unlimited(node) - _SMALL <= few, shown
        self._check_choice()

    def _check_choice(self) -> None:
        """Check that no big table is read from end to end, behind the wall either, where Postgres
        may do so.

        Indexes may be others: policies look for rows, and need columns that some indexes lack.
        """
        for kind, plans in (("chosen", self.of_choice), ("walled", self.of_walled)):
            for plan in plans:
                assert set() == _scanned(plan), f"{kind}\n{self.statement}\n{_outline(plan)}"

    def indexes(self, *, is_prepared: bool = True) -> set[str]:
        """Return the indexes that are read with either plan; no big table is read from end to end.

        Those with the values alone, if the statement is never prepared. The plans may differ: for
        one run its key and the index of executing runs cost the same.
        """
        for kind, plan in (("values", self.of_values), ("any values", self.of_any)):
            assert set() == _scanned(plan), f"{kind}\n{self.statement}\n{_outline(plan)}"
        self._check_choice()
        of_any = _indexes(self.of_any) if is_prepared else set[str]()
        return _indexes(self.of_values) | of_any


_FIRST_WITH_GENERIC_PLAN = 160_000


def _planned(
    url: str,
    statement: str,
    values: dict[str, Any],
    generic: str,
    names: Sequence[str],
    *,
    settings: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plans for these values, and for any; `generic` has those of `names` by number."""
    with psycopg.connect(url) as sql:
        for setting in settings:
            sql.execute(f"SET {setting}")
        explain = "EXPLAIN (FORMAT JSON) "
        planned = sql.execute(explain + statement, values).fetchone()
        if sql.info.server_version >= _FIRST_WITH_GENERIC_PLAN:
            explain = "EXPLAIN (FORMAT JSON, GENERIC_PLAN) "
            prepared = sql.execute(explain + generic).fetchone()
        else:
            # With values, since partitions are left out when the plan begins.
            sql.execute("SET plan_cache_mode = force_generic_plan")
            sql.execute(f"PREPARE planned AS {generic}")
            of_values = f"({', '.join(f'%({name})s' for name in names)})" if names else ""
            explain += f"EXECUTE planned{of_values}"
            lists = {
                name: [*one] if isinstance(one, tuple) else one for name, one in values.items()
            }
            prepared = psycopg.ClientCursor(sql).execute(explain, lists).fetchone()
    assert planned is not None and prepared is not None
    return planned[0][0]["Plan"], prepared[0][0]["Plan"]


@cache
def _walled(url: str) -> str:
    """Put the wall up once in the database of a test module; the URL is that of another role."""
    return walls.put_up(url)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _whole(name: str) -> str:
    """Return the name of the table, or of its key, for that of a partition."""
    return re.sub(r"^run_events_[a-z0-9]+(_pkey)?$", _of_events, name)


def _of_events(partition: re.Match[str]) -> str:
    return "pk_run_events" if partition[1] else "run_events"


def _scanned(plan: dict[str, Any]) -> set[str]:
    """Return the big tables that are read from end to end."""
    return {
        _whole(one["Relation Name"]) for one in _nodes(plan) if "Seq Scan" in one["Node Type"]
    } & BIG


def _indexes(plan: dict[str, Any]) -> set[str]:
    """Return all indexes that are read, but for the keys of small tables."""
    used = {_whole(one["Index Name"]) for one in _nodes(plan) if "Index Name" in one}
    return used - _SMALL


def _unlimited(sort: dict[str, Any]) -> set[str]:
    """Return the indexes whose rows come to the sort without a limit between."""
    if sort["Node Type"] == "Limit":
        return set()
    if _whole(sort.get("Relation Name", "")) in BIG and "Index Name" not in sort:
        return {f"a scan of {sort['Relation Name']}"}
    here = {_whole(sort["Index Name"])} if "Index Name" in sort else set()
    return here.union(*map(_unlimited, sort.get("Plans", ())))


def _outline(plan: dict[str, Any], depth: int = 0) -> str:
    about = " ".join(
        str(plan[name]) for name in ("Node Type", "Index Name", "Relation Name") if name in plan
    )
    return "\n".join(
        ["  " * depth + f"{about} ({plan['Plan Rows']})"]
        + [_outline(child, depth + 1) for child in plan.get("Plans", ())]
    )


def only(connections: Connections, ask: Ask) -> Plans:
    """Return the plans of the one statement that it sends, or of the last."""
    return Plans(connections, sent(connections, ask)[-1])
