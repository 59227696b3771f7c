"""The catalog of an org in tests."""

from typing import Any

from arkloop.shared.catalog import llm_providers, published_personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.ids import new_id
from tests.stored_runs import StoredRuns

BARE = Persona(key="p", version="1")
SERVERS = {
    "local": Route(id="local", provider="openai", model="small", api_key="local"),
    "scripted": Route(id="scripted", provider="scripted", model="scripted-1"),
}


def add_model(
    stored: StoredRuns, *, api_key: str | None = None, model: str = "m", **fields: Any
) -> str:
    """Add a model of a new provider, and return its route."""
    with stored.connections.transaction() as tx:
        row = llm_providers.create(
            tx, stored.actor, name=str(new_id()), kind="openai", api_key=api_key
        )
        made = llm_providers.create_model(tx, stored.actor, row.id, model=model, **fields)
    return str(made.id)


def publish(stored: StoredRuns, key: str, version: str | None = None, **definition: Any) -> str:
    with stored.connections.transaction() as tx:
        row = published_personas.publish(tx, stored.actor, key, version, definition)
    return f"{row.key}@{row.version}"
