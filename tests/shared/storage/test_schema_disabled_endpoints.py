"""The migration from which on the time is kept for which a webhook endpoint was disabled."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema
from tests.shared.storage.test_schema import migrated_to, owner_of_thread

pytestmark = pytest.mark.owner

_ENDPOINT = """
INSERT INTO webhook_endpoints (id, org_id, url, description, event_types, secret_encrypted,
    is_enabled, disabled_reason, updated_at)
VALUES (:id, :org, 'https://shop.example', '', '{}', '', :enabled, :reason,
    now() - interval '5 days')
"""
_DELIVERY = """
INSERT INTO webhook_deliveries (id, endpoint_id, org_id, type, ordered_by, seq, data)
VALUES (:id, :endpoint, :org, 'run.completed', :id, 1, '{}')
"""
_DAYS = "round((extract(epoch FROM now() - disabled_at) / 86400)::numeric, 2)"


def test_an_upgrade_keeps_since_when_endpoints_are_disabled(
    new_database: Callable[[], str],
) -> None:
    """Since their last change by an admin; after a 410, whose time is not known, since now.

    What was attempted before has a share in all of that time; what a process of an earlier release
    begins afterwards has none.
    """
    engine = migrated_to("0079", new_database())
    enabled, disabled, gone, before, later = (str(new_id()) for _ in range(5))
    with engine.begin() as sql:
        org = {"org": owner_of_thread(sql)["org"]}
        for id_, reason in ((enabled, None), (disabled, None), (gone, "gone")):
            values = {"id": id_, "enabled": id_ == enabled, "reason": reason, **org}
            sql.execute(text(_ENDPOINT), values)
        sql.execute(text(_DELIVERY), {"id": before, "endpoint": disabled, **org})

    schema.migrate(engine)

    with engine.begin() as sql:
        sql.execute(text(_DELIVERY), {"id": later, "endpoint": disabled, **org})
        query = f"SELECT id::text, {_DAYS}, disabled_seconds FROM webhook_endpoints"
        days = {row[0]: tuple(row[1:]) for row in sql.execute(text(query))}
        query = "SELECT id::text, endpoint_disabled_seconds FROM webhook_deliveries"
        begun = {row[0]: row[1] for row in sql.execute(text(query))}
        sql.execute(text("UPDATE webhook_endpoints SET is_enabled = true"))
        query = "SELECT id::text, round((disabled_seconds / 86400)::numeric, 2)"
        query += " FROM webhook_endpoints WHERE disabled_at IS NULL"
        disabled_days = {row[0]: row[1] for row in sql.execute(text(query))}
    engine.dispose()
    assert {enabled: (None, 0), disabled: (5, 0), gone: (0, 0)} == days
    assert {before: 0, later: None} == begun
    assert {enabled: 0, disabled: 5, gone: 0} == disabled_days
