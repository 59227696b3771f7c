"""Settings of single orgs by the operator."""

from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.accounts import accounts, org_settings
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.storage.connections import Connections
from tests.waiting import in_parallel


@pytest.fixture
def org_id(connections: Connections) -> UUID:
    with connections.transaction() as tx:
        return accounts.create_org(tx, "acme")


def test_an_org_has_its_own_limits_and_else_those_of_the_settings(
    connections: Connections, org_id: UUID
) -> None:
    """0 is a limit of its own: none."""
    settings = replace(connections.settings, org_streams=5, key_streams=4, org_queued_runs=3)
    with connections.transaction() as tx:
        before = org_settings.limits_of(tx.sql, settings, org_id)
        org_settings.change(tx, org_id, {"org_streams": 0, "key_streams": 9, "weight": 7})
        after = org_settings.limits_of(tx.sql, settings, org_id)

    assert OrgLimits(org_streams=5, key_streams=4, org_queued_runs=3) == before
    assert OrgLimits(org_streams=0, key_streams=9, org_queued_runs=3, weight=7) == after


def test_changes_at_once_lose_nothing(connections: Connections, org_id: UUID) -> None:
    """This holds for the first row of an org, too."""

    def change(number: int) -> None:
        name = org_settings.NAMES[number]
        with connections.transaction() as tx:
            assert {name: 2} == org_settings.change(tx, org_id, {name: 2})

    in_parallel(8, change)

    with connections.reading() as sql:
        assert dict.fromkeys(org_settings.NAMES, 2) == org_settings.own_of(sql, org_id)


@pytest.mark.parametrize(
    ("name", "value"), [("weight", 0), ("weight", 101), ("org_streams", -1), ("key_streams", 10**9)]
)
def test_a_value_out_of_range_is_refused(
    connections: Connections, org_id: UUID, name: str, value: int
) -> None:
    """The function refuses it, and so does the table."""
    with connections.transaction() as tx, pytest.raises(InvalidRequest) as refused:
        org_settings.change(tx, org_id, {name: value})
    assert [name] == [*refused.value.details]

    insert = f"INSERT INTO org_settings (org_id, {name}) VALUES (:org_id, :value)"
    with pytest.raises(Exception, match="ck_org_settings"), connections.transaction() as tx:
        tx.sql.execute(text(insert), {"org_id": org_id, "value": value})
