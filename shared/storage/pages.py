"""Pages of a list, newest first, each read from an index and no further than it goes.

A table that has `visible_to` says in each row who sees it: the org, by its id,
or one user. So what an actor sees are two ranges of one index, the org's and
their own, each in the order of the list; a filter that allows several values
doubles them. The heads of the ranges are merged, and only the rows of the page
are fetched. Rows that are not seen, or that the filter leaves out, are never
read, however many there are.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.sql.expression import Subquery

from shared.actors import Actor

#: `(created_at, id)` of the last row of the page before.
Place = tuple[datetime, UUID]
#: Bytes of one page at most, unless a single row is larger.
PAGE_BYTES = 1024 * 1024


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


def places(
    table: Table,
    *,
    limit: int,
    is_deep: bool,
    one_of: Sequence[ColumnElement[bool]] = (),
) -> Subquery:
    """Select `created_at` and `id` of the rows on the table's page that the actor may see.

    Join the table to it for the rest. Of the conditions in `one_of`, if there are any, each row
    fulfils exactly one; they stand in the index.
    """
    # Nothing but the columns of the index: to Postgres, which may not know how many rows somebody
    # sees, it then seems the cheapest way even for a few.
    ranges = [
        newest(
            select(table.c.created_at, table.c.id).where(
                table.c.visible_to == bindparam(seen_by, type_=table.c.visible_to.type), *also
            ),
            table,
            limit=limit,
            is_deep=is_deep,
        )
        for seen_by, also in product(("org_id", "user_id"), [[one] for one in one_of] or [[]])
    ]
    heads = union_all(*ranges).subquery("heads")
    return newest(select(heads), heads, limit=limit).subquery("page")


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
    """Return the parameters that identify the actor and the start of the page."""
    return {"org_id": actor.org_id, "user_id": actor.user_id, **after(before)}


def after(before: Place | None) -> Mapping[str, Any]:
    """Return the parameters with the start of a deep page."""
    return {} if before is None else {"before_created_at": before[0], "before_id": before[1]}
