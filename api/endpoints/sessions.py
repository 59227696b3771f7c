"""`/v1/auth/sessions`: the logins of the user that are in force, and the end of each."""

from typing import TypedDict
from uuid import UUID

from flask import Blueprint, Response, jsonify

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, connections_of_service
from arkloop.api.http.described import Time, UuidText, described
from arkloop.api.http.idempotency import refuse_key
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.shared.accounts import identities, sessions
from arkloop.shared.errors import Forbidden, SessionNotFound
from arkloop.shared.times import rfc3339

bp = Blueprint("sessions", __name__)
bp.before_request(refuse_key)


class SessionShown(TypedDict):
    """A login; `refreshed_at` is when its cookie was last exchanged."""

    id: UuidText
    is_current: bool
    created_at: Time
    refreshed_at: Time
    expires_at: Time


class SessionsShown(TypedDict):
    """The newest logins."""

    items: list[SessionShown]


@bp.get("/v1/auth/sessions")
@requires()
@described(returns=SessionsShown)
def list_sessions() -> Response:
    """List the user's logins that are in force, the newest 100. Not for API keys.

    A login by an identity provider sees those in its org alone.
    """
    query_args(NoArguments())
    current = _own_session()
    with connections_of_service().reading() as sql:
        in_org = identities.bound_org(sql, current)
        rows = sessions.list_(sql, actor().user_id, in_org=in_org)
    items = [
        SessionShown(
            id=str(row.id),
            is_current=row.id == current,
            created_at=rfc3339(row.created_at),
            refreshed_at=rfc3339(row.refreshed_at),
            expires_at=rfc3339(row.expires_at),
        )
        for row in rows
    ]
    return jsonify(SessionsShown(items=items))


@bp.delete("/v1/auth/sessions/<id:session_id>")
@requires()
@described(status=204, raises=[SessionNotFound])
def end_session(session_id: UUID) -> Response:
    """End a login of the user: its tokens and streams, within 5 s. Not for API keys. 204."""
    query_args(NoArguments())
    own = _own_session()
    with connections_of_service().transaction() as tx:
        user_id, in_org = actor().user_id, identities.bound_org(tx.sql, own)
        if not sessions.end(tx, user_id=user_id, session_id=session_id, in_org=in_org):
            raise SessionNotFound()
        record(tx, "auth.session_ended", "session", session_id)
    authenticator().forget()
    return Response(status=204)


def _own_session() -> UUID:
    """Return the login of this request. Raises: Forbidden: it came with an API key."""
    session_id = actor().session_id
    if session_id is None:
        raise Forbidden("An API key cannot see or end logins.")
    return session_id
