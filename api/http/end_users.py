"""Fields of bodies that an org sets and its end users must not."""

from collections.abc import Mapping
from typing import Any

from arkloop.api.http.current import actor
from arkloop.shared.errors import Forbidden


def refuse_fields(body: Mapping[str, Any], *names: str) -> None:
    """Refuse these fields of an end user's request; empty or null is not given.

    Raises:
        Forbidden: one of them is given.
    """
    if actor().end_user_id is None:
        return
    given = [name for name in names if body.get(name) not in (None, {}, [])]
    if given:
        raise Forbidden(f"Client tokens cannot set {', '.join(given)}.")
