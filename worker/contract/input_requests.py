"""The input that a tool call needs from people before it can be completed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs import form_replies

#: For which a call that is in progress waits for a person.
HELD_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRequest:
    """A call that has ended so far, and is made again with the replies.

    `asked` are `{key, kind, prompt, schema?, url?, is_shared?}` each, `state` is what the tool
    requires back. A page that `is_shared` is visited once for all calls of a turn that ask for it.
    `earlier` is the number of replies that the call had before, without those to other calls.
    `held` names a call that is still in progress, in the process that made it: the replies continue
    this one.
    """

    asked: Sequence[Mapping[str, Any]]
    state: str | None = None
    earlier: int = 0
    mcp_tool: Mapping[str, str] | None = None
    held: str | None = None

    def to_text(self) -> str:
        return _text(self)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Invert `to_text`."""
        return cls(**json.loads(text))

    def next(self, replies: Sequence[str]) -> Mapping[str, Any] | None:
        """Return the first that has no reply among all those of the call; None: each has one."""
        place = len(replies) - self.earlier
        return self.asked[place] if place < len(self.asked) else None

    def responses(self, replies: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the replies by the keys of what was asked."""
        given = replies[self.earlier :]
        return {one["key"]: _read(text) for one, text in zip(self.asked, given, strict=True)}


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies with which a call is made again, by the keys of what was asked.

    Each is `{action, content?}`; `state` is what the tool gave with its request, `held` names the
    call that they continue.
    """

    responses: Mapping[str, Mapping[str, Any]]
    state: str | None
    held: str | None = None

    def to_text(self) -> str:
        return _text(self)


class InputRequired(Exception):
    """The end of a tool call that is to be made again with input from people."""

    def __init__(
        self, asked: Sequence[Mapping[str, Any]], state: str | None, held: str | None = None
    ) -> None:
        super().__init__("The tool requests input.")
        self.asked, self.state, self.held = asked, state, held

    def request(self, replies: Sequence[str], mcp_tool: Mapping[str, str] | None) -> InputRequest:
        """Build the request of a call that has had these replies before."""
        return InputRequest(
            asked=self.asked,
            state=self.state,
            earlier=len(replies),
            mcp_tool=mcp_tool,
            held=self.held,
        )


def _text(given: InputRequest | Replies) -> str:
    # Workers of the release before know no field `held`, and no such calls.
    return json.dumps({k: v for k, v in asdict(given).items() if k != "held" or v})


def _read(text: str) -> dict[str, Any]:
    try:
        return form_replies.read(text)
    except InvalidRequest:
        return {"action": "cancel"}
