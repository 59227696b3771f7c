"""Fields of bodies that an org sets and its end users must not, or only as their token has them."""

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
        why = "a client token cannot set it"
        message = f"Client tokens cannot set {', '.join(given)}."
        raise Forbidden(message, **{name: [why] for name in given})


def chosen_persona(persona_id: str | None) -> str | None:
    """Return the id of the persona that a request chooses; for an end user, that of their token.

    The request may repeat it, also without the version. It is checked before anything is looked up:
    no answer says which other personas there are, and what they require.

    Raises:
        Forbidden: an end user has chosen another one.
    """
    of_token = actor().persona_id
    if of_token is None:
        return persona_id or None
    if persona_id and persona_id not in (of_token, of_token.partition("@")[0]):
        raise Forbidden(f"This client token is for the persona {of_token}.")
    return of_token
