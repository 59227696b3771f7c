"""`/v1/api-keys`: make, list and revoke API keys."""

from typing import Any
from uuid import UUID

from flask import Blueprint, Response
from marshmallow import Schema, ValidationError, fields, validate
from sqlalchemy import Row

from api.auth import authenticator, requires
from api.current import actor, connections
from api.idempotency import created, replayed_without
from api.json_body import NoArguments, query_args, read_body
from api.paging import ByTime, page, page_args
from shared import api_keys
from shared.actors import SCOPES
from shared.connections import Transaction
from shared.errors import Forbidden
from shared.times import now, rfc3339, rfc3339_or_none

bp = Blueprint("api_keys", __name__)


def _check_is_future(moment: Any) -> None:
    if moment <= now():
        raise ValidationError("must be in the future")


class CreateApiKey(Schema):
    name = fields.String(required=True, validate=validate.Length(1, 200))
    scopes = fields.List(
        fields.String(validate=validate.OneOf(sorted(SCOPES))),
        load_default=list,
        allow_none=False,
        validate=validate.Length(max=len(SCOPES)),
    )
    expires_at = fields.AwareDateTime("iso", load_default=None, validate=_check_is_future)


@bp.post("/v1/api-keys")
@requires()
@replayed_without("key")
def create_api_key(tx: Transaction) -> Response:
    """201 with `key`, which is shown this once."""
    _check_may_manage()
    row, key = api_keys.create(tx, actor(), **read_body(CreateApiKey()))
    return created({**_shown(row), "key": key}, location=f"/v1/api-keys/{row.id}")


@bp.get("/v1/api-keys")
@requires()
def list_api_keys() -> Response:
    """The caller's own keys; owners and admins see all of the org."""
    _check_may_manage()
    args = page_args(ByTime)
    with connections().reading() as sql:
        rows = api_keys.list_(sql, actor(), limit=args.limit + 1, before=args.before)
    return page(rows, args, show=_shown, cursor_of=lambda row: ByTime(row.created_at, row.id))


@bp.delete("/v1/api-keys/<id:key_id>")
@requires()
def revoke_api_key(key_id: UUID) -> Response:
    """204; the key stops working everywhere within 5 s."""
    query_args(NoArguments())
    _check_may_manage()
    with connections().transaction() as tx:
        api_keys.revoke(tx, actor(), key_id)
    authenticator().forget()
    return Response(status=204)


def _check_may_manage() -> None:
    # Else whoever steals a narrow key makes themselves others, and outlives its revocation.
    if actor().api_key_id is not None and "admin" not in actor().permissions:
        raise Forbidden("Only an API key with the scope admin manages API keys.")


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "user_id": str(row.user_id),
        "name": row.name,
        "key_prefix": row.key_prefix,
        "scopes": row.scopes,
        "revoked_at": rfc3339_or_none(row.revoked_at),
        "last_used_at": rfc3339_or_none(row.last_used_at),
        "expires_at": rfc3339_or_none(row.expires_at),
        "created_at": rfc3339(row.created_at),
    }
