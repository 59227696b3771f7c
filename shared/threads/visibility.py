"""The visibility of threads to an actor, as a condition of SQL."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, Text, Uuid, and_, bindparam, false, or_

from arkloop.shared.actors import Actor
from arkloop.shared.storage.tables.threads import threads

_TYPES: dict[str, Uuid[UUID] | Text] = {
    "org_id": Uuid(),
    "user_id": Uuid(),
    "seen_end_user_id": Text(),
    "seen_thread_id": Uuid(),
}


def seen_by(actor: Actor) -> Mapping[str, Any]:
    """Return the parameters of `IS_VISIBLE`."""
    return {
        "org_id": actor.org_id,
        "user_id": actor.reader_of_private,
        "seen_end_user_id": actor.end_user_id,
        "seen_thread_id": actor.thread_id,
    }


def visible(actor: Actor) -> ColumnElement[bool]:
    """Build SQL: the actor may see a row of `threads`."""
    return threads.c.deleted_at.is_(None) & _condition(
        **{
            name: bindparam(None, value, type_=_TYPES[name])
            for name, value in seen_by(actor).items()
        }
    )


def _condition(
    *,
    org_id: BindParameter[Any],
    user_id: BindParameter[Any],
    seen_end_user_id: BindParameter[Any],
    seen_thread_id: BindParameter[Any],
) -> ColumnElement[bool]:
    return and_(
        threads.c.org_id == org_id,
        or_(threads.c.is_private == false(), threads.c.created_by_user_id == user_id),
        or_(seen_end_user_id.is_(None), threads.c.end_user_id == seen_end_user_id),
        or_(seen_thread_id.is_(None), threads.c.id == seen_thread_id),
    )


#: The actor whom `seen_by` gives as parameters may see a row of `threads`, if it is not deleted.
IS_VISIBLE_OR_DELETED = _condition(
    **{name: bindparam(name, type_=type_) for name, type_ in _TYPES.items()}
)
IS_VISIBLE = threads.c.deleted_at.is_(None) & IS_VISIBLE_OR_DELETED
