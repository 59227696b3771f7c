"""Stream tickets: for browsers, whose EventSource cannot send an `Authorization` header.

A ticket is a JWT that opens the events of one run to one reader, and nothing
else; one that was issued for it also lets the reader send the results of the run's
client tools. It works again for reconnects until ten minutes after the run's end, for
24 hours at most, and only while the API key or the login it was made with is in force. One that
was made with a client token ends with that.
"""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

from arkloop.api.auth import signed_tokens
from arkloop.shared.actors import Actor
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized
from arkloop.shared.times import now

LIFETIME = timedelta(hours=24)
AFTER_END = timedelta(minutes=10)
_AUDIENCE = "arkloop-stream"
_TYPE = "JWT"  # that of the first release
_READER = frozenset({"data.runs.read"})
_SENDER = _READER | {"data.runs.write"}


def issue(
    settings: Settings,
    actor: Actor,
    run_id: UUID,
    ended_at: datetime | None,
    *,
    sends_results: bool = False,
) -> tuple[str, datetime]:
    """Issue a ticket; returns it and the time of its latest end.

    With `sends_results` the actor's own right to write the run is checked by the caller, and again
    whenever results are sent.
    """
    expires_at = now() + LIFETIME
    if ended_at is not None:
        expires_at = min(expires_at, ended_at + AFTER_END)
    if actor.end_user_id is not None and actor.expires_at is not None:
        expires_at = min(expires_at, actor.expires_at)
    claims = {
        "aud": _AUDIENCE,
        "iat": int(time.time()),
        "exp": int(expires_at.timestamp()),
        "run": str(run_id),
        "org": str(actor.org_id),
        "sub": str(actor.user_id),
        "role": actor.role,
        "key": actor.api_key_id and str(actor.api_key_id),
        "sid": actor.session_id and str(actor.session_id),
    }
    if sends_results:
        claims["results"] = True
    if actor.end_user_id is not None:
        claims["end_user"] = actor.end_user_id
        claims["thread"] = actor.thread_id and str(actor.thread_id)
    return signed_tokens.sign(settings, _TYPE, claims), expires_at


def verify(settings: Settings, ticket: str, run_id: UUID) -> Actor:
    """Return the reader that the ticket stands for.

    Raises:
        Unauthorized: not a ticket, for another run, expired, or bound to neither a key
            nor a login: older releases issued such tickets, and nothing could revoke them.
    """
    claims = signed_tokens.verify(
        settings, _TYPE, ticket, audience=_AUDIENCE, required=["exp", "sub", "run", "org"]
    )
    try:
        key_id, session_id, thread_id = (claims.get(name) for name in ("key", "sid", "thread"))
        if claims["run"] != str(run_id) or not (key_id or session_id):
            raise Unauthorized()
        return Actor(
            org_id=UUID(claims["org"]),
            user_id=UUID(claims["sub"]),
            role=claims["role"],
            permissions=_SENDER if claims.get("results") is True else _READER,
            api_key_id=UUID(key_id) if key_id else None,
            session_id=UUID(session_id) if session_id else None,
            expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            end_user_id=claims.get("end_user"),
            thread_id=UUID(thread_id) if thread_id else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Unauthorized() from error


def check_after_end(ended_at: datetime) -> None:
    """Check that a run which has ended can still be read by ticket. Raises: Unauthorized."""
    if ended_at + AFTER_END < now():
        raise Unauthorized()
