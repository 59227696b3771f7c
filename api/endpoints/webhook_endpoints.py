"""`/v1/webhook-endpoints`: where an org is notified of what happens in its runs."""

from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import ValidationError, fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.catalog_types import (
    ReplayedDeliveries,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointWithSecret,
    WholeWebhookDelivery,
)
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import BoundedList, Id, Seconds, StrictBoolean, utf8_length
from arkloop.api.http.idempotency import created, idempotent, replayed_without
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.delivery import deliveries, endpoints, messages
from arkloop.shared.delivery.endpoints import EVENT_TYPES, MAX_OVERLAP_SECONDS
from arkloop.shared.errors import WebhookDeliveryNotFound, WebhookEndpointDisabled
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339, rfc3339_or_none

bp = Blueprint("webhook_endpoints", __name__)

MAX_URL_CHARACTERS = 2_000
MAX_DESCRIPTION_BYTES = 1_024
MAX_REPLAYED = 100
DEFAULT_OVERLAP_SECONDS = 86_400


class EventTypes(BoundedList):
    """A list of event types, each once."""

    def __init__(self, **kwargs: Any) -> None:
        one = fields.String(validate=validate.OneOf(EVENT_TYPES))
        super().__init__(one, least=1, most=len(EVENT_TYPES), **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        found = super()._deserialize(value, *args, **kwargs)
        if len(found) != len(set(found)):
            raise ValidationError("must have each type once")
        return found


class EndpointChanges(Schema):
    url = fields.String(validate=validate.Length(1, MAX_URL_CHARACTERS))
    description = fields.String(validate=utf8_length(0, MAX_DESCRIPTION_BYTES))
    event_types = EventTypes()
    enabled = StrictBoolean()


class CreateEndpoint(Schema):
    url = fields.String(required=True, validate=validate.Length(1, MAX_URL_CHARACTERS))
    description = fields.String(load_default="", validate=utf8_length(0, MAX_DESCRIPTION_BYTES))
    event_types = EventTypes(load_default=lambda: list(EVENT_TYPES))


class RotateSecret(Schema):
    overlap_seconds = Seconds(0, MAX_OVERLAP_SECONDS, load_default=DEFAULT_OVERLAP_SECONDS)


class Replay(Schema):
    """A choice of deliveries; without `delivery_ids` the dead ones."""

    delivery_ids = BoundedList(Id(), least=1, most=MAX_REPLAYED, load_default=None)


class DeliveriesQuery(PageQuery):
    state = fields.String(validate=validate.OneOf(deliveries.STATES))


@bp.post("/v1/webhook-endpoints")
@requires("admin")
@replayed_without("signing_secret")
@described(body=CreateEndpoint, returns=WebhookEndpointWithSecret, status=201)
def create_endpoint(tx: Transaction) -> Response:
    """Create an endpoint; responds 201 with `signing_secret`, which is shown only this once."""
    row, secret = endpoints.create(tx, actor().org_id, **read_body(CreateEndpoint()))
    record(tx, "webhook_endpoint.created", "webhook_endpoint", row.id)
    location = f"/v1/webhook-endpoints/{row.id}"
    return created({**_shown(row), "signing_secret": secret}, location=location)


@bp.get("/v1/webhook-endpoints")
@requires("admin")
@described(query=PageQuery, returns=list[WebhookEndpoint])
def list_endpoints() -> Response:
    """List endpoints, newest first."""
    args = page_args(ByTime)
    with connections().reading() as sql:
        rows = endpoints.list_(sql, actor().org_id, limit=args.limit + 1, before=args.before)
    return page(rows, args, show=_shown, cursor_of=ByTime.of)


@bp.get("/v1/webhook-endpoints/<id:endpoint_id>")
@requires("admin")
@described(returns=WebhookEndpoint)
def get_endpoint(endpoint_id: UUID) -> Response:
    """Show one endpoint."""
    query_args(NoArguments())
    with connections().reading() as sql:
        return jsonify(_shown(endpoints.find(sql, actor().org_id, endpoint_id)))


@bp.patch("/v1/webhook-endpoints/<id:endpoint_id>")
@requires("admin")
@described(body=EndpointChanges, returns=WebhookEndpoint)
def change_endpoint(endpoint_id: UUID) -> Response:
    """Change an endpoint; fields that are missing in the body keep their values."""
    changes = read_body(EndpointChanges())
    with connections().transaction() as tx:
        row = endpoints.change(tx, actor().org_id, endpoint_id, changes)
        record(
            tx, "webhook_endpoint.changed", "webhook_endpoint", endpoint_id, fields=sorted(changes)
        )
    return jsonify(_shown(row))


@bp.delete("/v1/webhook-endpoints/<id:endpoint_id>")
@requires("admin")
@described(status=204)
def delete_endpoint(endpoint_id: UUID) -> Response:
    """Delete an endpoint: nothing is delivered to it any more. 204."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        endpoints.remove(tx, actor().org_id, endpoint_id)
        record(tx, "webhook_endpoint.deleted", "webhook_endpoint", endpoint_id)
    return Response(status=204)


@bp.post("/v1/webhook-endpoints/<id:endpoint_id>:rotate-secret")
@requires("admin")
@replayed_without("signing_secret")
@described(body=RotateSecret, body_optional=True, returns=WebhookEndpointWithSecret)
def rotate_endpoint_secret(tx: Transaction, endpoint_id: UUID) -> Response:
    """Replace the signing secret; the response has the new one, which is shown only this once."""
    overlap = read_body(RotateSecret(), optional=True)["overlap_seconds"]
    row, secret = endpoints.rotate(tx, actor().org_id, endpoint_id, overlap)
    record(tx, "webhook_endpoint.secret_rotated", "webhook_endpoint", endpoint_id)
    return jsonify({**_shown(row), "signing_secret": secret})


@bp.post("/v1/webhook-endpoints/<id:endpoint_id>:test")
@requires("admin")
@idempotent
@described(
    body=NoArguments,
    body_optional=True,
    returns=WholeWebhookDelivery,
    status=201,
    raises=[WebhookEndpointDisabled],
)
def test_endpoint(tx: Transaction, endpoint_id: UUID) -> Response:
    """Queue a delivery of `webhook.test`; responds 201 with it."""
    read_body(NoArguments(), optional=True)
    row = deliveries.test(tx, actor().org_id, endpoint_id)
    location = f"/v1/webhook-endpoints/{endpoint_id}/deliveries/{row.id}"
    return created(_whole(row), location=location)


@bp.post("/v1/webhook-endpoints/<id:endpoint_id>:replay")
@requires("admin")
@idempotent
@described(
    body=Replay, body_optional=True, returns=ReplayedDeliveries, raises=[WebhookDeliveryNotFound]
)
def replay_deliveries(tx: Transaction, endpoint_id: UUID) -> Response:
    """Deliver again: the named deliveries, or the oldest dead ones; responds how many."""
    chosen = read_body(Replay(), optional=True)["delivery_ids"]
    return jsonify({"replayed": deliveries.replay(tx, actor().org_id, endpoint_id, chosen)})


@bp.get("/v1/webhook-endpoints/<id:endpoint_id>/deliveries")
@requires("admin")
@described(query=DeliveriesQuery, returns=list[WebhookDelivery])
def list_deliveries(endpoint_id: UUID) -> Response:
    """List deliveries to an endpoint, newest first, without their data."""
    args = page_args(ByTime, DeliveriesQuery())
    with connections().reading() as sql:
        rows = deliveries.list_(
            sql,
            actor().org_id,
            endpoint_id,
            limit=args.limit + 1,
            before=args.before,
            state=args.filters.get("state"),
        )
    return page(rows, args, show=_delivery, cursor_of=ByTime.of)


@bp.get("/v1/webhook-endpoints/<id:endpoint_id>/deliveries/<id:delivery_id>")
@requires("admin")
@described(returns=WholeWebhookDelivery)
def get_delivery(endpoint_id: UUID, delivery_id: UUID) -> Response:
    """Show one delivery with its data."""
    query_args(NoArguments())
    with connections().reading() as sql:
        return jsonify(_whole(deliveries.find(sql, actor().org_id, endpoint_id, delivery_id)))


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "url": row.url,
        "description": row.description,
        "event_types": row.event_types,
        "enabled": row.is_enabled,
        "disabled_reason": row.disabled_reason,
        "failing_since": rfc3339_or_none(row.failing_since),
        "former_secret_until": rfc3339_or_none(row.former_secret_until),
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def _delivery(row: Row[Any]) -> dict[str, Any]:
    is_pending = row.state == "pending"
    return {
        "id": str(row.id),
        "endpoint_id": str(row.endpoint_id),
        "type": row.type,
        "run_id": None if row.run_id is None else str(row.run_id),
        "seq": row.seq,
        "state": row.state,
        "attempts": row.attempts,
        "response_status": row.response_status,
        "error": row.error,
        "tried_at": rfc3339_or_none(row.tried_at),
        "next_attempt_at": rfc3339(row.due_at) if is_pending else None,
        "delivered_at": rfc3339_or_none(row.delivered_at),
        "created_at": rfc3339(row.created_at),
    }


def _whole(row: Row[Any]) -> dict[str, Any]:
    return {**_delivery(row), "data": messages.data(row)}
