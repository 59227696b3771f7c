"""`/v1/client-tokens`: short-lived tokens for browser pages, each for one end user."""

from typing import TypedDict

from flask import Blueprint, Response, jsonify, make_response
from marshmallow import fields, validate

from arkloop.api.auth import client_tokens
from arkloop.api.auth.bearer import requires
from arkloop.api.http.current import actor, catalog, connections, settings
from arkloop.api.http.described import Time, UuidText, described
from arkloop.api.http.fields import BoundedList, ClientId, Id
from arkloop.api.http.idempotency import check_key
from arkloop.api.http.json_body import read_body
from arkloop.api.http.schema import Schema
from arkloop.shared.actors import DATA_PERMISSIONS
from arkloop.shared.catalog import personas
from arkloop.shared.errors import Forbidden, InvalidRequest, PersonaNotFound, ThreadNotFound
from arkloop.shared.threads import threads
from arkloop.shared.times import rfc3339

bp = Blueprint("client_tokens", __name__)


class CreateClientToken(Schema):
    end_user_id = ClientId(required=True)
    scopes = BoundedList(
        fields.String(validate=validate.OneOf(sorted(DATA_PERMISSIONS))),
        required=True,
        least=1,
        most=len(DATA_PERMISSIONS),
    )
    thread = Id(allow_none=True, load_default=None)
    persona_id = fields.String(
        allow_none=True,
        load_default=None,
        validate=validate.Regexp(rf"\A{personas.PERSONA_ID.pattern}\Z"),
    )
    lifetime_seconds = fields.Integer(
        strict=True,
        load_default=client_tokens.DEFAULT_LIFETIME,
        validate=validate.Range(client_tokens.MIN_LIFETIME, client_tokens.MAX_LIFETIME),
    )


class ShownClientToken(TypedDict):
    """A token, which is shown only this once."""

    token: str
    expires_at: Time
    end_user_id: str
    scopes: list[str]
    thread: UuidText | None
    persona_id: str


_BODY = CreateClientToken()


@bp.post("/v1/client-tokens")
@requires()
@described(
    body=CreateClientToken,
    returns=ShownClientToken,
    status=201,
    headers=["Idempotency-Key of a secret"],
    raises=[PersonaNotFound],
)
def create_client_token() -> Response:
    """Create a token for one end user; responds 201.

    Nothing is stored, so nothing is replayed: a request that is repeated with its
    `Idempotency-Key` gets a new token.
    """
    check_key()
    body = read_body(_BODY)
    scopes, end_user_id, thread_id = frozenset(body["scopes"]), body["end_user_id"], body["thread"]
    if not scopes <= actor().permissions:
        lacking = ", ".join(f"`{scope}`" for scope in sorted(scopes - actor().permissions))
        raise Forbidden(f"A client token cannot have scopes its issuer lacks: {lacking}.")
    with connections().reading() as sql:
        # With its version: a page cannot begin to use another one in the middle of a conversation.
        persona = catalog().persona(actor().org_id, body["persona_id"], sql=sql)
        if thread_id is not None:
            try:
                thread = threads.get(sql, actor(), thread_id)
            except ThreadNotFound:
                raise InvalidRequest(thread=["thread not found"]) from None
            if thread.end_user_id != end_user_id or thread.is_private:
                raise InvalidRequest(thread=["must be a thread of this end user, and not private"])
    token, expires_at = client_tokens.issue(
        settings(),
        actor(),
        end_user_id=end_user_id,
        scopes=scopes,
        persona_id=persona.id,
        thread_id=thread_id,
        lifetime_seconds=body["lifetime_seconds"],
    )
    shown: ShownClientToken = {
        "token": token,
        "expires_at": rfc3339(expires_at),
        "end_user_id": end_user_id,
        "scopes": sorted(scopes),
        "thread": None if thread_id is None else str(thread_id),
        "persona_id": persona.id,
    }
    return make_response(jsonify(shown), 201)
