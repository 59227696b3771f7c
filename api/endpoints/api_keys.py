"""`/v1/api-keys`: make, list, limit and revoke API keys."""

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import ValidationError, fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.endpoints.account_types import ApiKey, CreatedApiKey
from arkloop.api.endpoints.budgets import CostLimits, limits_shown
from arkloop.api.http.audited import record, texts_of
from arkloop.api.http.current import actor, changes_catalog, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import BoundedList, Moment
from arkloop.api.http.idempotency import created, replayed_without
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.reports import reports
from arkloop.shared.accounts import api_keys, credentials
from arkloop.shared.actors import OPERATE, SCOPES
from arkloop.shared.errors import Forbidden
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import now, rfc3339, rfc3339_or_none

bp = Blueprint("api_keys", __name__)


def _check_is_future(moment: datetime) -> None:
    if moment <= now():
        raise ValidationError("must be in the future")


class CreateApiKey(CostLimits):
    name = fields.String(required=True, validate=validate.Length(1, 200))
    scopes = BoundedList(
        fields.String(validate=validate.OneOf([*sorted(SCOPES), OPERATE])),
        least=1,  # an empty list must not become all that the creator may
        most=len(SCOPES) + 1,
    )
    expires_at = Moment(load_default=None, validate=_check_is_future)


@bp.post("/v1/api-keys")
@requires()
@changes_catalog
@replayed_without("key")
@described(body=CreateApiKey, returns=CreatedApiKey, status=201)
def create_api_key(tx: Transaction) -> Response:
    """Create a key; responds 201 with `key`, which is shown only this once."""
    _check_may_manage()
    body = read_body(CreateApiKey())
    # Else a key that was revoked a moment ago, in another process, would leave another one.
    creator = replace(actor(), permissions=credentials.permissions_now(tx.sql, actor()))
    row, key = api_keys.create(tx, creator, **body)
    named = {"key_prefix": row.key_prefix, "scopes": row.scopes}
    record(tx, "api_key.created", "api_key", row.id, **named)
    return created({**_shown(row), "key": key}, location=f"/v1/api-keys/{row.id}")


@bp.get("/v1/api-keys")
@requires()
@described(query=PageQuery, returns=list[ApiKey])
def list_api_keys() -> Response:
    """List the caller's own keys; owners and admins see those of the whole org."""
    _check_may_manage()
    args = page_args(ByTime)
    with connections().reading() as sql:
        rows = api_keys.list_(sql, actor(), limit=args.limit + 1, before=args.before)
    return page(rows, args, show=_shown, cursor_of=ByTime.of)


@bp.patch("/v1/api-keys/<id:key_id>")
@requires()
@changes_catalog
@described(body=CostLimits, returns=ApiKey)
def change_api_key(key_id: UUID) -> Response:
    """Change a key's limits; fields that are missing in the body keep their values."""
    _check_may_manage()
    limits = read_body(CostLimits())
    with reports().turn(actor().org_id), connections().transaction() as tx:
        row = api_keys.change(tx, actor(), key_id, **limits)
        record(tx, "api_key.changed", "api_key", key_id, **texts_of(limits))
        return jsonify(_shown(row))


@bp.delete("/v1/api-keys/<id:key_id>")
@requires()
@described(status=204)
def revoke_api_key(key_id: UUID) -> Response:
    """Revoke a key: it stops working within 5 s, and its active runs are cancelled. 204."""
    query_args(NoArguments())
    _check_may_manage()
    with connections().transaction() as tx:
        api_keys.revoke(tx, actor(), key_id)
        record(tx, "api_key.revoked", "api_key", key_id)
    authenticator().forget()
    return Response(status=204)


def _check_may_manage() -> None:
    # Else the thief of a narrow key could make other keys, which outlive its revocation.
    if actor().api_key_id is not None and "admin" not in actor().permissions:
        raise Forbidden("An API key needs the scope `admin` to manage API keys.")


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "user_id": str(row.user_id),
        "name": row.name,
        "key_prefix": row.key_prefix,
        "scopes": row.scopes,
        **limits_shown(row),
        "revoked_at": rfc3339_or_none(row.revoked_at),
        "last_used_at": rfc3339_or_none(row.last_used_at),
        "expires_at": rfc3339_or_none(row.expires_at),
        "created_at": rfc3339(row.created_at),
    }
