"""The visibility of threads to a user, as a condition of SQL."""

from typing import Any

from sqlalchemy import ColumnElement, and_, false, or_

from arkloop.shared.storage.tables.threads import threads


def visible(org_id: Any, user_id: Any) -> ColumnElement[bool]:
    """Build SQL: that user may see a row of `threads`; takes values or parameters."""
    return and_(
        threads.c.org_id == org_id,
        threads.c.deleted_at.is_(None),
        or_(threads.c.is_private == false(), threads.c.created_by_user_id == user_id),
    )
