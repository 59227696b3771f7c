"""The demands on the writes of an agent worker: the output, and the size of the events."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from jsonschema_rs import ValidationError
from sqlalchemy import Connection, func, select

from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events.types import RunError
from arkloop.shared.json_schema import InvalidSchema, JsonSchema, short
from arkloop.shared.storage.tables.events import run_events

#: Characters of an output under patterns: a web process checks it, and serves nothing meanwhile.
MAX_MATCHED = 20_000
#: All events of a run are counted after this number of them, and with each request of this size.
COUNTED_EVENTS = 256
COUNTED_BYTES = 16 * 1024


def check_output(persona: Persona, content: str, output: Mapping[str, Any] | None) -> None:
    """Check the output of a run.

    Raises:
        InvalidRequest: it does not fit the persona's schema, or this release cannot use that.
    """
    if persona.output_schema is None:
        if output is not None:
            raise InvalidRequest(output=["the persona has no output_schema"])
        return
    if output is None:
        raise InvalidRequest(output=["is required by the persona's output_schema"])
    try:
        is_same = json.loads(content) == output
    except (ValueError, RecursionError):
        is_same = False
    if not is_same:
        raise InvalidRequest(content=["must be the JSON text of `output`"])
    try:
        schema = JsonSchema(persona.output_schema)
    except InvalidSchema as error:  # an earlier release has stored it
        why = f"this release of the server does not support its schema: {error}"
        raise InvalidRequest(output=[f"cannot be validated: {why}"]) from None
    work = schema.work.product(output)
    is_too_much = schema.work.is_too_much(output, work)
    if is_too_much or schema.matched_characters(output, MAX_MATCHED) > MAX_MATCHED:
        raise InvalidRequest(output=["is too large to validate"])
    for misfit in schema.errors(output, work):
        why = f"does not fit the persona's output_schema: {_misfit(misfit)}"
        raise InvalidRequest(output=[why])


def _misfit(error: ValidationError) -> str:
    """Name the property that does not fit, and say why, without its value."""
    path = short(".".join(map(str, error.instance_path)))
    reason = short(error.message)
    return f"property {path!r}: {reason}" if path else reason


def check_output_size(
    sql: Connection, run_id: UUID, last_seq: int, new_events: int, new_bytes: int, most: int
) -> RunError | None:
    """Return the error of a run whose events have more than `most` bytes; at times, as it costs."""
    is_due = last_seq % COUNTED_EVENTS < new_events or new_bytes >= COUNTED_BYTES
    if not is_due:
        return None
    size = sql.scalar(
        select(func.sum(func.octet_length(run_events.c.payload))).where(
            run_events.c.run_id == run_id
        )
    )
    if (size or 0) <= most:
        return None
    message = f"The run's events have more than {most // (1024 * 1024)} MiB."
    return RunError("run.output_limit", message, False)
