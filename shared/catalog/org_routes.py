"""An org's models as routes; a model's id is its route's."""

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from arkloop.shared.catalog import platforms, prices
from arkloop.shared.catalog.llm_providers import PRICE_COLUMNS
from arkloop.shared.catalog.model_routes import ATTACHMENTS, FIRST_BYTE_SECONDS, IDLE_SECONDS, Route
from arkloop.shared.catalog.platforms import OPTIONS
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.sealing import org_keys
from arkloop.shared.storage.tables.catalog import llm_models, llm_providers
from arkloop.shared.times import now


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRoute:
    """A route without its key, and the key as it is stored, with the org's to open it."""

    route: Route
    api_key: bytes | None
    org_key: bytes | None


def routes_of(sql: Connection, org_id: UUID) -> list[SealedRoute]:
    """Return every model of the org as a route, oldest first; one query."""
    rows = sql.execute(
        select(
            llm_models,
            llm_providers.c.kind,
            llm_providers.c.base_url,
            *(llm_providers.c[name] for name in ("platform", *OPTIONS)),
            llm_providers.c.api_key_encrypted,
            org_keys.wrapped_key(org_id).label("org_key"),
        )
        .join(llm_providers, llm_providers.c.id == llm_models.c.provider_id)
        .where(llm_models.c.org_id == org_id)
        .order_by(llm_models.c.created_at, llm_models.c.id)
    )
    return [
        SealedRoute(
            route=Route(
                id=str(row.id),
                provider=row.kind,
                model=row.model,
                base_url=row.base_url,
                api=row.api,
                **_platform(row),
                prices=effective_prices(row, row),
                has_library_prices=given_prices(row) is None,
                max_output_tokens=row.max_output_tokens,
                context_tokens=effective_context_tokens(row, row),
                first_byte_seconds=row.first_byte_seconds or FIRST_BYTE_SECONDS,
                idle_seconds=row.idle_seconds or IDLE_SECONDS,
                accepts=ATTACHMENTS if row.accepts is None else tuple(row.accepts),
                model_settings=row.model_settings or {},
                requests_per_minute=row.requests_per_minute,
                tokens_per_minute=row.tokens_per_minute,
                is_of_org=True,
                is_default=row.is_default,
                priority=row.priority,
            ),
            api_key=row.api_key_encrypted,
            org_key=row.org_key,
        )
        for row in rows
    ]


def given_prices(model: Row[Any]) -> Prices | None:
    """Return the prices that the org has set for the model, all four or None."""
    if model.input_price is None:
        return None
    return Prices(**{name: getattr(model, column) for name, column in PRICE_COLUMNS.items()})


def effective_prices(model: Row[Any], provider: Row[Any]) -> Prices | None:
    """Return the prices of a call: those set, else the library's; None if neither is known."""
    return given_prices(model) or _known(provider.kind, model.model, _address(provider))[0]


def effective_context_tokens(model: Row[Any], provider: Row[Any]) -> int | None:
    """Return the model's context window, as set or else as in the library; None if unknown."""
    if model.context_tokens is not None:
        return int(model.context_tokens)
    return _known(provider.kind, model.model, _address(provider))[1]


def effective_api(model: Row[Any], provider: Row[Any]) -> str | None:
    """Return which of OpenAI's APIs the model is called by; None for providers of other kinds."""
    return Route(
        id=str(model.id),
        provider=provider.kind,
        model=model.model,
        base_url=provider.base_url,
        api=model.api,
        platform=provider.platform,
    ).effective_api


def _platform(provider: Row[Any]) -> dict[str, Any]:
    return {name: getattr(provider, name) for name in ("platform", *OPTIONS)}


def _address(provider: Row[Any]) -> str | None:
    return provider.base_url or platforms.address(provider.platform, provider.region)


def _known(kind: str, model: str, base_url: str | None) -> tuple[Prices | None, int | None]:
    """Look up prices and context window in the library."""
    return _known_on(now().date(), kind, model, base_url)


@lru_cache(maxsize=4_096)
def _known_on(
    day: date, kind: str, model: str, base_url: str | None
) -> tuple[Prices | None, int | None]:
    # Some prices end on a day; within one, looking 500 models up every 2 s would block the process.
    return prices.known(kind, model, base_url, day), prices.context_tokens(kind, model, base_url)
