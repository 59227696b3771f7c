"""Pages of a list, newest first, each read from an index and no further than it goes.

A table that has `visible_to` says in each row who sees it: the org, by its id,
or one user. So what an actor sees are two ranges of one index, the org's and
their own, each in the order of the list; a filter that allows several values
doubles them. The heads of the ranges are merged, and only the rows of the page
are fetched. Rows that are not seen, or that the filter leaves out, are never
read, however many there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.sql.expression import Subquery

from arkloop.shared.actors import Actor

#: `(created_at, id)` of the last row of the page before.
Place = tuple[datetime, UUID]
#: Bytes of one page at most, unless a single row is larger.
PAGE_BYTES = 1024 * 1024
#: Rows that are looked at for one page where an index does not give exactly its rows: for some
#: tens of milliseconds. The page may then be short, and the next one begins behind them.
WALKED = 20_000


def newest(query: Select[Any], of: FromClause, *, limit: int, is_deep: bool = False) -> Select[Any]:
    """Limit the query to `limit` rows, ordered by `created_at` and `id` of `of`, newest first.

    `is_deep` ones are those after a place, which is a parameter.
    """
    if is_deep:
        before = (
            bindparam("before_created_at", type_=of.c.created_at.type),
            bindparam("before_id", type_=of.c.id.type),
        )
        query = query.where(tuple_(of.c.created_at, of.c.id) < tuple_(*before))
    # Literal: of a limit that it does not know Postgres thinks that it is a tenth of the table.
    return query.order_by(of.c.created_at.desc(), of.c.id.desc()).limit(
        literal_column(str(int(limit)))
    )


@dataclass(frozen=True, slots=True)
class Walk:
    """The rows of a list in its order: those that an actor sees and a filter lets through.

    `table` is walked by an index that begins with `visible_to` and the columns of `by`, or of one
    of the conditions in `one_of`, of which each row fulfils exactly one. `rest` is checked row by
    row: few rows may fulfil it, so that no more than `WALKED` are looked at for one page.
    """

    table: Table
    by: tuple[ColumnElement[bool], ...] = ()
    one_of: tuple[ColumnElement[bool], ...] = ()
    rest: tuple[ColumnElement[bool], ...] = ()
    #: All rows have the same `visible_to`, which their index need not have.
    is_one_range: bool = False
    #: The table that has the orgs of the rows, by their ids, if it is another one.
    of: Table | None = None

    def page(self, *, limit: int, is_deep: bool, is_bounded: bool = False) -> Subquery:
        """Select `created_at` and `id` of the rows on the page; join the table to it for the rest.

        A bounded one does not go beyond the place that `end` has found, which is a parameter.
        """
        also = self.rest
        if is_bounded:
            end = (
                bindparam("end_created_at", type_=self.table.c.created_at.type),
                bindparam("end_id", type_=self.table.c.id.type),
            )
            also = (*also, tuple_(self.table.c.created_at, self.table.c.id) >= tuple_(*end))
        return self._newest(also, limit=limit, is_deep=is_deep).subquery("page")

    def end(self, *, is_deep: bool) -> Select[Any]:
        """Select the place where a walk ends; nothing if it ends with the list."""
        walked = self._newest((), limit=WALKED, is_deep=is_deep)
        return walked.offset(literal_column(str(WALKED - 1))).limit(literal_column("1"))

    def _newest(
        self, also: Sequence[ColumnElement[bool]], *, limit: int, is_deep: bool
    ) -> Select[Any]:
        # Nothing but the columns of the index: to Postgres, which may not know how many rows
        # somebody sees, it then seems the cheapest way even for a few.
        table = self.table
        of_org, private = (
            table.c.visible_to == bindparam(by, type_=table.c.visible_to.type)
            for by in ("org_id", "user_id")
        )
        is_seen = [of_org, private & self._is_of_org()]
        if self.is_one_range:  # all of it is in one org, which the caller's join checks
            is_seen = [or_(of_org, private)]
        ranges = [
            newest(
                select(table.c.created_at, table.c.id).where(seen, *one, *self.by, *also),
                table,
                limit=limit,
                is_deep=is_deep,
            )
            for seen, one in product(is_seen, [[one] for one in self.one_of] or [[]])
        ]
        heads = union_all(*ranges).subquery("heads")
        return newest(select(heads), heads, limit=limit)

    def _is_of_org(self) -> ColumnElement[bool]:
        """Build SQL: a private row is in this org of its creator, who may be in others, too."""
        of = (self.table if self.of is None else self.of).alias("of_row")
        org_id = select(of.c.org_id).where(of.c.id == self.table.c.id).scalar_subquery()
        # Looked up for each row, so that the index alone is walked. Nearly all rows are: Postgres
        # takes that of a test for null, and of a comparison that few are, which it would sort.
        is_it = org_id == bindparam("org_id", type_=of.c.org_id.type)
        return case((is_it, true())).is_not(None)


def has_pairs(pairs: Table, count: int) -> tuple[ColumnElement[bool], ...]:
    """Build SQL: a row of `pairs` is the first of these pairs, and its object has all of them.

    The parameters are those that `read` sets.
    """
    conditions: list[ColumnElement[bool]] = []
    for number in range(count):
        value: ColumnElement[str] = bindparam(f"pair_{number}")
        other = pairs.alias()
        conditions.append(
            exists().where(other.c.id == pairs.c.id, other.c.pair == value)
            if number
            else pairs.c.pair == value
        )
    return tuple(conditions)


class Page(NamedTuple):
    """Rows of a list. With `end` they may be few, and the list continues behind that place."""

    rows: Sequence[Row[Any]]
    end: Place | None


def read(
    sql: Connection,
    given: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    end: Select[Any] | None,
    page: Callable[[bool], Select[Any]],
) -> Page:
    """Read a page whose walk has this `end`, None if its index gives exactly its rows.

    `page` builds the statement, bounded or not. Of several pairs of metadata a rare one is walked,
    if there is any: all of its rows are looked at for one page.
    """
    pairs = [f"{key}={value}" for key, value in metadata.items()]
    found: Row[Any] | None = None
    for turn in range(len(pairs) or 1):
        turned = pairs[turn:] + pairs[:turn]
        given = {**given, **{f"pair_{number}": pair for number, pair in enumerate(turned)}}
        found = None if end is None else sql.execute(end, given).one_or_none()
        if found is None:
            return Page(sql.execute(page(False), given).all(), None)
    assert found is not None
    given = {**given, "end_created_at": found.created_at, "end_id": found.id}
    return Page(sql.execute(page(True), given).all(), (found.created_at, found.id))


def fitting(
    page: Select[Any],
    size: Callable[[FromClause], ColumnElement[int]],
    order: Callable[[FromClause], Sequence[ColumnElement[Any]]],
) -> Select[Any]:
    """Limit a page to its first rows of together `PAGE_BYTES`, but at least two, in its `order`.

    The second shows that there is more where the first alone fills the page. `size` must be no
    more than the bytes of a row in the response: else the caller, who ends the page there, shows
    the last of these rows and cannot tell that rows after it were left out.
    """
    of = page.subquery("rows")
    by = order(of)
    place = func.row_number().over(order_by=by).label("place")
    # What Postgres keeps elsewhere because it is long is measured without being read.
    before = func.sum(size(of)).over(order_by=by, rows=(None, -1)).label("before")
    measured = select(*of.c, place, before).subquery("measured")
    return (
        select(*(measured.c[column.key] for column in of.c))
        .where(or_(measured.c.place <= 2, measured.c.before < PAGE_BYTES))
        .order_by(measured.c.place)
    )


def newest_first(of: FromClause) -> Sequence[ColumnElement[Any]]:
    """Return the order of `newest`, for `fitting`."""
    return [of.c.created_at.desc(), of.c.id.desc()]


def json_size(column: ColumnElement[Any]) -> ColumnElement[int]:
    """Build SQL: the bytes of JSON in a response, at least; null has none."""
    # Half: the text has spaces that the response leaves out.
    return func.coalesce(func.octet_length(cast(column, Text)) / 2, 0)


def values(actor: Actor, before: Place | None = None) -> Mapping[str, Any]:
    """Return the parameters that identify the actor and the start of the page.

    They leave out private threads for an end user, and a filter those of other end users.
    """
    return {"org_id": actor.org_id, "user_id": actor.reader_of_private, **after(before)}


def after(before: Place | None) -> Mapping[str, Any]:
    """Return the parameters with the start of a deep page."""
    return {} if before is None else {"before_created_at": before[0], "before_id": before[1]}
