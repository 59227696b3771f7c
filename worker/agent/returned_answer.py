"""The answer of a custom agent's run, made of what the agent has returned and streamed."""

from collections.abc import Mapping
from typing import Any, Protocol

from arkloop.shared.agents.transcript import Transcript, output_json
from arkloop.shared.events import types
from arkloop.shared.events.plain import clean
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.outcomes import RunFailure


class _Text(Protocol):
    """The text of the turn that an agent is streaming."""

    @property
    def open_text(self) -> str: ...

    def stream_text(self, text: str) -> None: ...

    def void_text(self, reason: str) -> None: ...


def answer_of(
    returned: Any,
    run: _Text,
    transcript: Transcript,
    last_turn: types.MessageCompleted | None,
    output_schema: Mapping[str, Any] | None,
) -> Answer:
    """Return the answer; what of it was not streamed yet is streamed now.

    `last_turn` is the last finished one, unless it called a tool: where nothing follows it, it is
    the answer.

    Raises:
        RunFailure: what was returned is no answer.
    """
    value: dict[str, Any] | None = None
    streamed = clean(run.open_text)
    if output_schema is not None:
        said = streamed or (last_turn.content if last_turn else "")
        returned, value = _output(returned, output_schema, said)
    elif returned is not None and not isinstance(returned, str):
        kind = type(returned).__name__
        raise RunFailure("agent.failed", f"The agent returned {kind}, not text.")
    if returned is not None:
        returned = clean(returned)
    if not streamed and last_turn and returned in (None, last_turn.content):
        return _answer(last_turn, value, ())
    if returned is not None and not returned.startswith(streamed):
        run.void_text("agent")
        streamed = ""
    if returned is not None:
        run.stream_text(returned[len(streamed) :])
    completed = transcript.turn(streamed if returned is None else returned)
    return _answer(completed, value, (completed,))


def _output(
    returned: Any, output_schema: Mapping[str, Any], said: str
) -> tuple[str, dict[str, Any]]:
    try:
        text = returned if isinstance(returned, str) else output_json(returned, said)
    except ValueError as error:
        raise RunFailure("agent.failed", str(error)) from error
    text = clean(text)
    output = OutputSchema(output_schema).read(text, "stop")
    if output.errors or output.value is None:
        raise RunFailure("output.invalid", " ".join(output.errors or ["It is no object."]))
    return text, output.value


def _answer(
    completed: types.MessageCompleted,
    output: dict[str, Any] | None,
    closing: tuple[types.Event, ...],
) -> Answer:
    return Answer(
        message_id=completed.message_id,
        content=completed.content,
        stop_reason="stop",
        output=output,
        closing=closing,
    )
