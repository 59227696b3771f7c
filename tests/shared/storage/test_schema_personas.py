"""The migration that gives a field of stored personas its name of today."""

import json
from collections.abc import Callable

import pytest
from sqlalchemy import text

from arkloop.shared.catalog import published_personas
from arkloop.shared.storage import schema
from tests.shared.storage.test_schema import migrated_to, owner_of_thread

pytestmark = pytest.mark.owner

_PERSONA = """
INSERT INTO personas (org_id, key, version, definition, created_by_user_id)
VALUES (:org, :key, '1', CAST(:definition AS jsonb), :user)
"""


def test_an_upgrade_keeps_the_approvals_of_personas(new_database: Callable[[], str]) -> None:
    """A stored `confirm` is `require_approval` afterwards; other definitions stay as they are."""
    engine = migrated_to("0088", new_database())
    tools = {"tools": ["calculator", "http_fetch"]}
    definitions = {
        "earlier": {**tools, "confirm": ["http_fetch"]},
        "newer": {**tools, "require_approval": ["calculator"]},
        "none": tools,
    }
    with engine.begin() as sql:
        owner = owner_of_thread(sql)
        for key, definition in definitions.items():
            of = {"org": owner["org"], "user": owner["user"], "key": key}
            sql.execute(text(_PERSONA), {**of, "definition": json.dumps(definition)})

    schema.migrate(engine)

    with engine.connect() as sql:
        rows = sql.execute(text("SELECT * FROM personas")).all()
    engine.dispose()
    definitions["earlier"] = {**tools, "require_approval": ["http_fetch"]}
    assert definitions == {row.key: row.definition for row in rows}
    [earlier] = [row for row in rows if row.key == "earlier"]
    assert {"http_fetch"} == published_personas.persona_of(earlier).require_approval
