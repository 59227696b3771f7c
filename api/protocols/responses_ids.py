"""The ids of responses, of their items, and of calls of functions: each names its run.

A run that asks its client is continued by the next response, so a run has one response and one
more for each time that it has asked. `resp_<run>` is the first, `resp_<run>_<n>` the one that
begins after the run has waited n times.

The `call_id` of a function call is not the run's id of it, which other runs of the conversation may
have, too: clients keep calls by `call_id` alone, and some send no ids of items. Nor does it contain
that one: OpenAI takes at most 64 characters, and others no dots.

Calls whose own events are lost begin with the event by which the run waits for their results: the
ids of their items have a number behind it, and their `call_id` is the run's.
"""

import re
from typing import NamedTuple
from uuid import UUID

from arkloop.shared.ids import parse_id

_RESPONSE = re.compile("resp_([0-9a-f]{32})(?:_([1-9][0-9]{0,8}))?")
_ITEM = re.compile("(?:msg|rs|fc|mcp|mcpr|call)_([0-9a-f]{32})_([0-9]{1,19})(?:_[1-9][0-9]{0,3})?")


class ResponseId(NamedTuple):
    """The part of a run that a response shows: what follows its `waits`-th wait."""

    run_id: UUID
    waits: int

    def __str__(self) -> str:
        suffix = f"_{self.waits}" if self.waits else ""
        return f"resp_{self.run_id.hex}{suffix}"


class ItemId(NamedTuple):
    """The run of an item of a response, and the event that the item begins with."""

    run_id: UUID
    seq: int


def parse(text: object) -> ResponseId | None:
    """Return the id; None unless `text` is its one form."""
    found = _RESPONSE.fullmatch(text) if isinstance(text, str) else None
    run_id = _run_id(found[1]) if found is not None else None
    if found is None or run_id is None:
        return None
    return ResponseId(run_id, int(found[2] or 0))


def parse_item(text: object) -> ItemId | None:
    """Return the id of an item, also by a `call_id`; None if `text` has another form."""
    found = _ITEM.fullmatch(text) if isinstance(text, str) else None
    run_id = _run_id(found[1]) if found is not None else None
    if found is None or run_id is None or int(found[2]) > 2**63 - 1:  # Postgres has no such seq
        return None
    return ItemId(run_id, int(found[2]))


def call_id(call: ItemId) -> str:
    """Return the `call_id` of a function call, by the item's id."""
    return f"call_{call.run_id.hex}_{call.seq}"


def _run_id(digits: str) -> UUID | None:
    return parse_id(str(UUID(digits)))
