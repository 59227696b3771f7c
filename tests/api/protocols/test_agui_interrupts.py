"""Requests of a run, as interrupts of AG-UI."""

from typing import Any

import pytest

from arkloop.api.protocols.agui_interrupts import interrupt_of

ASKED = {"request_id": "r", "kind": "tool_confirmation", "prompt": "?", "expires_at": "later"}


@pytest.mark.parametrize("fields", [{"approved_by": "org"}, {"url": "https://a.example/"}, {}])
def test_an_interrupt_names_the_approvers_and_the_page_to_visit(fields: dict[str, Any]) -> None:
    """A page shows no buttons for what its user may not decide."""
    interrupt = interrupt_of({**ASKED, **fields}, "call", may_edit=False)

    assert (fields or None) == interrupt.metadata
