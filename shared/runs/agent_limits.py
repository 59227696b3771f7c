"""The demands on the writes of an agent worker: the output, the number of steps, known prices."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select

from arkloop.shared.billing import budgets
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events.types import MessageCompleted, RunError
from arkloop.shared.json_schema import JsonSchema
from arkloop.shared.storage.tables.events import run_events

#: Nodes of the schema times characters of the output; some milliseconds.
MAX_WORK = 1_000_000
#: Patterns times characters: beyond it patterns are left out.
MAX_MATCHED = 20_000


def check_output(persona: Persona, content: str, output: Mapping[str, Any] | None) -> None:
    """Check the output of a run. Raises: InvalidRequest: it does not fit the persona's schema."""
    if persona.output_schema is None:
        if output is not None:
            raise InvalidRequest(output=["the persona has no output_schema"])
        return
    if output is None:
        raise InvalidRequest(output=["is required by the persona's output_schema"])
    try:
        is_same = json.loads(content) == output
    except ValueError:
        is_same = False
    if not is_same:
        raise InvalidRequest(content=["must be the JSON text of `output`"])
    schema = JsonSchema(persona.output_schema)
    if schema.nodes * len(content) > MAX_WORK:
        raise InvalidRequest(output=["is too large to validate"])
    has_time = schema.patterns * len(content) <= MAX_MATCHED
    validator = schema.validator if has_time else schema.validator_without_patterns
    if not validator.is_valid(output):
        raise InvalidRequest(output=["does not fit the persona's output_schema"])


def check_steps(sql: Connection, run_id: UUID, persona: Persona) -> RunError | None:
    """Return the error of a run that has made more steps than its persona allows."""
    steps = sql.scalar(
        select(func.count()).where(
            run_events.c.run_id == run_id, run_events.c.type == MessageCompleted.type
        )
    )
    if (steps or 0) <= persona.max_steps:
        return None
    message = f"The run reached its persona's limit of {persona.max_steps} steps."
    return RunError("run.max_steps", message, False)


def check_unpriced(sql: Connection, claim: Claim, persona: Persona, model: str) -> None:
    """Check that a call without a known price may count as 0. Raises: InvalidRequest: it may not.

    Nothing could say when a budget, or prepaid credits, are used up.
    """
    limits = budgets.limits(sql, claim, persona)
    if limits.has_budget or limits.needs_reservation:
        why = f"`cost_usd` is required under a budget: the price of {model!r} is not known"
        raise InvalidRequest(events=[why])
