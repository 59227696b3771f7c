"""The texts of refusals: those for people of the org, and those that end users read."""

import re
from dataclasses import replace
from decimal import Decimal

import pytest

from arkloop.shared.billing.budgets import Refused
from tests.stored_runs import StoredRuns

CALL = "The next model call may exceed the budget of "


@pytest.mark.parametrize(
    ("scope", "set_by", "shown"),
    [
        ("org", "org", f"{CALL}the org in this month."),
        ("api_key:7", "org", f"{CALL}the API key in this month."),
        ("end_user:7", "org", f"{CALL}the end user in this month."),
        ("persona:7", "org", f"{CALL}the persona in this month."),
        ("run:7", "org", f"{CALL}the run with its sub-runs."),
        ("run", "org", f"{CALL}a run of the org."),
        ("run", "persona:7", f"{CALL}a run of the persona."),
        ("credits", "org", "The run may need more credits than are left, including its next model"),
    ],
)
def test_an_end_user_reads_neither_amounts_nor_ids(
    stored: StoredRuns, scope: str, set_by: str, shown: str
) -> None:
    """What the org allows is not in the events of runs with an end user; it is in all others."""
    refused = Refused(scope, limit=Decimal(500), needed=Decimal(501), set_by=set_by)
    claim = stored.claimed()

    text = refused.shown(replace(claim, end_user_id="ann"))

    assert text.startswith(shown)
    assert None is re.search("[0-9]", text)
    assert str(refused) == refused.shown(claim)
    assert {"500", "501"} <= set(re.findall("[0-9]+", str(refused)))
    assert ("7" in set_by + scope) == (" 7 " in str(refused))
