"""`/v1/llm-providers`: an org's own providers, and their models, which are its routes."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import ValidationError, fields, post_load, validate, validates_schema
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.catalog_types import LlmModel, LlmProvider
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, changes_catalog, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import (
    BoundedDict,
    BoundedList,
    ModelSettings,
    StrictBoolean,
    Usd,
    shown_name,
    whole,
)
from arkloop.api.http.idempotency import created, idempotent
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.catalog import llm_providers, org_routes, platforms
from arkloop.shared.catalog.model_routes import (
    APIS,
    ATTACHMENTS,
    FIRST_BYTE_SECONDS,
    IDLE_SECONDS,
    MAX_SILENT_SECONDS,
)
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.errors import NameTaken
from arkloop.shared.events.plain import money
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339

bp = Blueprint("llm_providers", __name__)

MAX_URL_CHARACTERS = 2_000
MAX_MODELS_AT_ONCE = 50
#: What an HTTP header can carry; the message does not repeat the key.
_KEY = validate.Regexp(
    r"\A[\x21-\x7e]{1,1000}\Z", error="must be 1 to 1000 printable ASCII characters, without spaces"
)
_NAME = shown_name(200)


class PricesFields(Schema):
    """USD per million tokens; cache prices that are left out are that of input."""

    input = Usd(required=True)
    output = Usd(required=True)
    cache_read = Usd(allow_none=True)
    cache_write = Usd(allow_none=True)

    @post_load
    def make(self, values: dict[str, Any], **_: Any) -> Prices:
        return Prices.of(**values)


class ModelChanges(Schema):
    """Null is not given; without prices and context those of the library hold."""

    model = fields.String(validate=_NAME)
    priority = whole(0, 1_000)
    is_default = StrictBoolean()
    api = fields.String(validate=validate.OneOf(APIS), allow_none=True)
    prices = fields.Nested(PricesFields, allow_none=True)
    max_output_tokens = whole(1, 1_000_000)
    context_tokens = whole(1, 100_000_000)
    first_byte_seconds = whole(1, MAX_SILENT_SECONDS)
    idle_seconds = whole(1, MAX_SILENT_SECONDS)
    accepts = BoundedList(
        fields.String(validate=validate.OneOf(ATTACHMENTS)), most=len(ATTACHMENTS), allow_none=True
    )
    model_settings = ModelSettings(allow_none=True)
    requests_per_minute = whole(1, 1_000_000)
    tokens_per_minute = whole(1, 1_000_000_000)


class CreateModel(ModelChanges):
    model = fields.String(required=True, validate=_NAME)


class ProviderChanges(Schema):
    """A null address is the vendor's or platform's own; null credentials are none."""

    name = fields.String(validate=_NAME)
    kind = fields.String(validate=validate.OneOf(llm_providers.KINDS))
    base_url = fields.String(allow_none=True, validate=validate.Length(1, MAX_URL_CHARACTERS))
    api_key = fields.String(allow_none=True, validate=_KEY)
    platform = fields.String(allow_none=True, validate=validate.OneOf(platforms.PLATFORMS))
    region = fields.String(allow_none=True, validate=validate.Length(1, 64))
    project_id = fields.String(allow_none=True, validate=validate.Length(1, 64))
    api_version = fields.String(allow_none=True, validate=validate.Length(1, 64))
    credentials = BoundedDict(allow_none=True, most=20)

    @validates_schema
    def check_secrets(self, data: dict[str, Any], **_: object) -> None:
        if data.get("api_key") is not None and data.get("credentials") is not None:
            raise ValidationError({"credentials": ["cannot be combined with `api_key`"]})


class CreateProvider(ProviderChanges):
    name = fields.String(required=True, validate=_NAME)
    kind = fields.String(required=True, validate=validate.OneOf(llm_providers.KINDS))
    models = BoundedList(fields.Nested(CreateModel), most=MAX_MODELS_AT_ONCE)

    @validates_schema
    def check_default(self, data: dict[str, Any], **_: object) -> None:
        models = enumerate(data.get("models", ()))
        if second := [place for place, model in models if model.get("is_default")][1:]:
            why = {"is_default": ["only one of the models can be the default"]}
            raise ValidationError({"models": dict.fromkeys(second, why)})


# ---- providers -----------------------------------------------------------------------


@bp.post("/v1/llm-providers")
@requires("admin")
@changes_catalog
@idempotent
@described(body=CreateProvider, returns=LlmProvider, status=201, raises=[NameTaken])
def create_llm_provider(tx: Transaction) -> Response:
    """Create a provider; responds 201 with it and the models that were sent with it."""
    provider = llm_providers.create(tx, actor(), **read_body(CreateProvider()))
    record(tx, "llm_provider.created", "llm_provider", provider.id)
    [shown] = _shown(tx.sql, [provider])
    return created(shown, location=f"/v1/llm-providers/{provider.id}")


@bp.get("/v1/llm-providers")
@requires("admin")
@described(query=PageQuery, returns=list[LlmProvider])
def list_llm_providers() -> Response:
    """List providers, newest first."""
    args = page_args(ByTime)
    with connections().reading() as sql:
        rows = llm_providers.list_(sql, actor(), limit=args.limit + 1, before=args.before)
        shown = {provider["id"]: provider for provider in _shown(sql, rows)}
    return page(rows, args, show=lambda row: shown[str(row.id)], cursor_of=ByTime.of)


@bp.get("/v1/llm-providers/<id:provider_id>")
@requires("admin")
@described(returns=LlmProvider)
def get_llm_provider(provider_id: UUID) -> Response:
    """Show a provider and its models."""
    query_args(NoArguments())
    with connections().reading() as sql:
        [shown] = _shown(sql, [llm_providers.get(sql, actor(), provider_id)])
    return jsonify(shown)


@bp.patch("/v1/llm-providers/<id:provider_id>")
@requires("admin")
@changes_catalog
@described(body=ProviderChanges, returns=LlmProvider, raises=[NameTaken])
def change_llm_provider(provider_id: UUID) -> Response:
    """Change a provider; fields that are missing in the body keep their values."""
    body = read_body(ProviderChanges())
    with connections().transaction() as tx:
        provider = llm_providers.change(tx, actor(), provider_id, **body)
        record(tx, "llm_provider.changed", "llm_provider", provider_id, fields=sorted(body))
        [shown] = _shown(tx.sql, [provider])
    return jsonify(shown)


@bp.delete("/v1/llm-providers/<id:provider_id>")
@requires("admin")
@changes_catalog
@described(status=204)
def delete_llm_provider(provider_id: UUID) -> Response:
    """Delete a provider and its models; responds 204."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        llm_providers.delete_(tx, actor(), provider_id)
        record(tx, "llm_provider.deleted", "llm_provider", provider_id)
    return Response(status=204)


# ---- models --------------------------------------------------------------------------


@bp.post("/v1/llm-providers/<id:provider_id>/models")
@requires("admin")
@changes_catalog
@idempotent
@described(body=CreateModel, returns=LlmModel, status=201, raises=[NameTaken])
def create_llm_model(tx: Transaction, provider_id: UUID) -> Response:
    """Create a model; responds 201 with the model, whose id is a `route_id`."""
    body = read_body(CreateModel())
    model = llm_providers.create_model(tx, actor(), provider_id, **body)
    record(tx, "llm_model.created", "llm_model", model.id)
    provider = llm_providers.get(tx.sql, actor(), provider_id)
    location = f"/v1/llm-providers/{provider_id}/models/{model.id}"
    return created(_shown_model(model, provider), location=location)


@bp.get("/v1/llm-providers/<id:provider_id>/models")
@requires("admin")
@described(query=PageQuery, returns=list[LlmModel])
def list_llm_models(provider_id: UUID) -> Response:
    """List a provider's models, newest first."""
    args = page_args(ByTime)
    with connections().reading() as sql:
        provider = llm_providers.get(sql, actor(), provider_id)
        rows = llm_providers.list_models(
            sql, actor(), provider_id, limit=args.limit + 1, before=args.before
        )
    return page(rows, args, show=lambda row: _shown_model(row, provider), cursor_of=ByTime.of)


@bp.get("/v1/llm-providers/<id:provider_id>/models/<id:model_id>")
@requires("admin")
@described(returns=LlmModel)
def get_llm_model(provider_id: UUID, model_id: UUID) -> Response:
    """Show a model."""
    query_args(NoArguments())
    with connections().reading() as sql:
        provider = llm_providers.get(sql, actor(), provider_id)
        model = llm_providers.get_model(sql, actor(), provider_id, model_id)
    return jsonify(_shown_model(model, provider))


@bp.patch("/v1/llm-providers/<id:provider_id>/models/<id:model_id>")
@requires("admin")
@changes_catalog
@described(body=ModelChanges, returns=LlmModel, raises=[NameTaken])
def change_llm_model(provider_id: UUID, model_id: UUID) -> Response:
    """Change a model; fields that are missing in the body keep their values."""
    body = read_body(ModelChanges())
    with connections().transaction() as tx:
        model = llm_providers.change_model(tx, actor(), provider_id, model_id, **body)
        record(tx, "llm_model.changed", "llm_model", model_id, fields=sorted(body))
        provider = llm_providers.get(tx.sql, actor(), provider_id)
    return jsonify(_shown_model(model, provider))


@bp.delete("/v1/llm-providers/<id:provider_id>/models/<id:model_id>")
@requires("admin")
@changes_catalog
@described(status=204)
def delete_llm_model(provider_id: UUID, model_id: UUID) -> Response:
    """Delete a model; responds 204."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        llm_providers.delete_model(tx, actor(), provider_id, model_id)
        record(tx, "llm_model.deleted", "llm_model", model_id)
    return Response(status=204)


# ---- as they are shown ---------------------------------------------------------------


def prices_shown(prices: Prices | None) -> dict[str, float] | None:
    """Return USD per million tokens; for a library price that rises with the input, the lowest."""
    if prices is None:
        return None
    return {name: money(getattr(prices, name)) for name in llm_providers.PRICE_COLUMNS}


def _shown(sql: Any, providers: Iterable[Row[Any]]) -> list[dict[str, Any]]:
    """Render the providers with all their models, never with a key."""
    by_id = {provider.id: provider for provider in providers}
    models: dict[UUID, list[dict[str, Any]]] = {id_: [] for id_ in by_id}
    for model in llm_providers.models_of(sql, by_id):
        provider = by_id[model.provider_id]
        models[provider.id].append(_shown_model(model, provider))
    return [
        {
            "id": str(provider.id),
            "org_id": str(provider.org_id),
            "name": provider.name,
            "kind": provider.kind,
            "base_url": provider.base_url,
            "platform": provider.platform,
            "region": provider.region,
            "project_id": provider.project_id,
            "api_version": provider.api_version,
            "has_api_key": provider.api_key_encrypted is not None,
            "api_key_last_four": provider.api_key_last_four,
            "models": models[provider.id],
            "created_at": rfc3339(provider.created_at),
            "updated_at": rfc3339(provider.updated_at),
        }
        for provider in by_id.values()
    ]


def _shown_model(model: Row[Any], provider: Row[Any]) -> dict[str, Any]:
    prices = org_routes.effective_prices(model, provider)
    given = org_routes.given_prices(model) is not None
    return {
        "id": str(model.id),
        "route_id": str(model.id),
        "org_id": str(model.org_id),
        "provider_id": str(model.provider_id),
        "model": model.model,
        "api": org_routes.effective_api(model, provider),
        "priority": model.priority,
        "is_default": model.is_default,
        "prices": prices_shown(prices),
        "prices_source": "given" if given else "unknown" if prices is None else "library",
        "max_output_tokens": model.max_output_tokens,
        "context_tokens": org_routes.effective_context_tokens(model, provider),
        "first_byte_seconds": model.first_byte_seconds or FIRST_BYTE_SECONDS,
        "idle_seconds": model.idle_seconds or IDLE_SECONDS,
        "accepts": list(ATTACHMENTS) if model.accepts is None else model.accepts,
        "model_settings": model.model_settings or {},
        "requests_per_minute": model.requests_per_minute,
        "tokens_per_minute": model.tokens_per_minute,
        "created_at": rfc3339(model.created_at),
        "updated_at": rfc3339(model.updated_at),
    }
