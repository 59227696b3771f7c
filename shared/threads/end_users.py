"""Limits on what an end user makes and changes: threads of their own, which the org can see."""

from collections.abc import Mapping
from typing import Any

from arkloop.shared.actors import Actor
from arkloop.shared.errors import Forbidden

_NO_ON_BUSY = "Client tokens cannot set the on_busy of a thread; a request for a run has its own."


def own_thread(actor: Actor, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the columns of a new thread, which an end user makes as their own.

    Raises:
        Forbidden: see `check_fields`, or the actor has one thread alone.
    """
    if actor.end_user_id is None:
        return fields
    if actor.thread_id is not None:
        raise Forbidden("This client token is for one thread, and creates no other.")
    check_fields(actor, fields)
    return {**fields, "end_user_id": actor.end_user_id}


def check_fields(actor: Actor, fields: Mapping[str, Any]) -> None:
    """Check the columns that an end user sets.

    Raises:
        Forbidden: another end user, a private thread, which the end user would not see, or an
            `on_busy`, which decides what becomes of the org's own requests.
    """
    if actor.end_user_id is None:
        return
    if fields.get("end_user_id", actor.end_user_id) not in (None, actor.end_user_id):
        raise Forbidden("This client token is for another end user.")
    if fields.get("is_private"):
        raise Forbidden("Threads of end users cannot be private.")
    if fields.get("on_busy") is not None:
        raise Forbidden(_NO_ON_BUSY)


def check_changes(actor: Actor, changes: Mapping[str, Any]) -> None:
    """Check the columns of a thread that an end user changes.

    Raises:
        Forbidden: see `check_fields`, or the thread would be no end user's.
    """
    check_fields(actor, changes)
    if actor.end_user_id is None:
        return
    if changes.get("end_user_id", actor.end_user_id) is None:
        raise Forbidden("A client token cannot take the end user off a thread.")
    if "on_busy" in changes:  # null is a change, too
        raise Forbidden(_NO_ON_BUSY)
