"""Reading what is omitted of a tool result that is too long for the model's context."""

from itertools import islice
from typing import Annotated

import re2
from pydantic import Field

from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.contract.token_estimates import beginning
from arkloop.worker.tools import CallInfo, ToolFailed, tool

MAX_PATTERN_CHARACTERS = 500
MAX_MATCHES = 20
#: Characters before and after a match.
AROUND = 160
#: Bytes; RE2 is linear in the text, and gives up what would take more.
MAX_MEMORY = 8 * 1024 * 1024


@tool(idempotent=True)
def read_result(
    context: ToolContext,
    id: Annotated[str, Field(description="The id in the note of the cut result, such as 12.34.")],
    info: CallInfo,
    offset: Annotated[int, Field(ge=0, description="Where to begin, in characters.")] = 0,
    limit: Annotated[int, Field(ge=1, description="The most characters to return.")] = 8_000,
    pattern: Annotated[
        str | None,
        Field(
            max_length=MAX_PATTERN_CHARACTERS,
            description="An RE2 pattern: find it from the offset on, instead of reading.",
        ),
    ] = None,
) -> str:
    """Read an earlier tool result of this conversation that was cut, or search in it."""
    text = context.stored_result(id)
    if text is None:
        raise ToolFailed(f"There is no stored result with the id {id!r}.")
    if pattern is not None:
        return beginning(_found(text, pattern, offset), info.result_tokens)
    part = beginning(text[offset : offset + limit], info.result_tokens)
    end = offset + len(part)
    rest = f"; continue with offset {end}" if end < len(text) else ""
    return f"[characters {offset} to {end} of {len(text)}{rest}]\n{part}"


def _found(text: str, pattern: str, offset: int) -> str:
    options = re2.Options()
    options.max_mem, options.log_errors = MAX_MEMORY, False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace")
        raise ToolFailed(f"The pattern is not valid RE2: {why}") from None
    with cpu_slice():
        found = list(islice(compiled.finditer(text, offset), MAX_MATCHES + 1))
    lines = [f"[{len(found)} matches]"]
    if len(found) > MAX_MATCHES:
        after = found.pop().start()
        lines = [f"[the first {MAX_MATCHES} matches; the next one is at offset {after}]"]
    for match in found:
        start, end = max(0, match.start() - AROUND), min(match.end(), match.start() + AROUND)
        lines.append(f"[offset {match.start()}] {text[start : end + AROUND]}")
    return "\n".join(lines)
