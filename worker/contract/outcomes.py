"""The ways in which a run can end or stop, other than by its model's final answer.

RunFailure (Exception)         the run fails with this code
├── ProviderError              provider.*: the model could not be called
└── LimitExceeded              run.timeout, run.max_steps, …
StopRun (BaseException)        this attempt ends; not an error
├── CancelRequested            somebody cancels the run
├── TimeToLand                 its time is nearly over: one last call is left
├── DeadlineExceeded           its time is over
├── ShuttingDown               this process ends; another one resumes
└── WaitForInput               a person, or a tool elsewhere, must answer first

`shared.errors.LeaseLost` is of the second kind: not derived from Exception, so
that a tool's `except Exception` cannot swallow it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from arkloop.shared import times
from arkloop.shared.agents import call_approvals
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events.plain import clean, plain
from arkloop.shared.events.types import RunError
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.contract.input_requests import HELD_SECONDS

MAX_SHOWN_CHARACTERS = 8192


class RunFailure(Exception):
    """`str()` of it is the message that the run's owner reads."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy is made, as for another process: not by `__init__`, since `args` has
        the message alone.
        """
        return Exception.__new__, (type(self), *self.args), self.__dict__

    def as_error(self) -> RunError:
        # It may be a provider's text, and is stored together with the endings of other runs.
        return RunError(self.code, clean(str(self)), self.retryable)


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """A request that the provider can never accept, with the numbers that it reported.

    `is_per_minute`: the limit is the account's tokens per minute; else it is the model's context.
    `is_unclear`: it may be another limit, such as that of a proxy for the bytes of a body.
    """

    limit_tokens: int | None = None
    sent_tokens: int | None = None
    is_per_minute: bool = False
    is_unclear: bool = False


class ProviderError(RunFailure):
    """`kind` as in the code `provider.<kind>`; `retry_after` in seconds, if the provider said.

    `is_gone`: what the route names, a model or an address, is not there. `is_shared`: a 429 says
    that the account's own limit is exhausted, so it concerns everybody who uses the account.
    `was_accepted`: the provider had the whole request and may bill it, though the call failed.
    `refused_setting`: the provider would accept the call without this model setting;
    `refuses_attachments`: without some of its images and files, `most_images`: with this many;
    `most_output_tokens`: with an output limit of no more than this.
    `idle_tokens`: a 429 came although this limit of tokens per minute was not used at all.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        retry_after: float | None = None,
        is_gone: bool = False,
        was_accepted: bool = False,
        is_shared: bool = False,
        idle_tokens: int | None = None,
        too_large: TooLarge | None = None,
        refused_setting: str | None = None,
        refuses_attachments: bool = False,
        most_images: int | None = None,
        most_output_tokens: int | None = None,
    ) -> None:
        retryable = kind in ("rate_limited", "overloaded", "timeout", "connection", "malformed")
        super().__init__(f"provider.{kind}", message, retryable=retryable)
        self.retry_after = retry_after
        self.is_gone = is_gone
        self.was_accepted = was_accepted
        self.is_shared = is_shared
        self.idle_tokens = idle_tokens
        self.too_large = too_large
        self.refused_setting = refused_setting
        self.refuses_attachments = refuses_attachments
        self.most_images = most_images
        self.most_output_tokens = most_output_tokens

    @property
    def is_of_route(self) -> bool:
        """True if the fault may lie with this provider, so that another one may succeed."""
        is_refused = self.is_gone or self.too_large is not None or self.code == "provider.auth"
        return self.retryable or is_refused


class LimitExceeded(RunFailure):
    """A limit of the run itself that was exceeded.

    `affordable_usd` is what a model call may cost at most that does not fit into a budget.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        affordable_usd: Decimal | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable)
        self.affordable_usd = affordable_usd


class StopRun(BaseException):
    """Ends the attempt; raised only where the run is checked, caught only in `execution.py`."""


class CancelRequested(StopRun):
    """A request to cancel, by the user `by_user_id` and without another cause; if that is None,
    the run's row has user and cause.
    """

    def __init__(self, by_user_id: UUID | None = None) -> None:
        super().__init__()
        self.by_user_id = by_user_id


class TimeToLand(StopRun):
    """The run has only the time left that is reserved for its last call."""


class DeadlineExceeded(StopRun):
    """The run has used up its `timeout_seconds`."""

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__()
        self.timeout_seconds = timeout_seconds


class ShuttingDown(StopRun):
    """The end of this process."""


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A tool call that has begun, and whose result `result_from` sends.

    `facts` are those that its client gets with it. After `timeout_seconds` without a result the
    model reads that there is none; None: the run waits for as long as for people.
    """

    tool_call_id: str
    name: str
    arguments: Any
    result_from: ResultSource | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None


#: The fields of a request, and of a `Tool`, by which an approval is bound to a tool that is not
#: built in: another one may have its name by the time of the reply.
BOUND_TO = ("mcp_tool", "worker_tool", "http_tool")


@dataclass(eq=False, kw_only=True)
class WaitForInput(StopRun):
    """A person or a program must answer first, at the latest when the `persona` says.

    `kind` is `question`, `tool_confirmation`, `form`, `authorization` or `tool_results`;
    `tool_name`, `arguments` and one of `BOUND_TO` are those of the call in question, `calls` those
    whose results are missing and `identity` that of their run, `schema` is that of a form and `url`
    a page to visit. `is_held`: the call is in progress meanwhile, in this process, and not for
    long. `gives_access`: the page is where access to the tool's server is authorized.
    """

    persona: Persona
    kind: str
    prompt: str
    tool_call_id: str | None = None
    calls: Sequence[PendingCall] = ()
    options: list[str] | None = None
    tool_name: str | None = None
    arguments: Any = None
    mcp_tool: Mapping[str, str] | None = None
    worker_tool: Mapping[str, str] | None = None
    http_tool: Mapping[str, str] | None = None
    schema: Mapping[str, Any] | None = None
    url: str | None = None
    identity: Mapping[str, Any] | None = None
    is_held: bool = False
    gives_access: bool = False

    def expires_at(self, now: datetime) -> datetime:
        """Return until when a run that waits from now on waits for all that is missing."""
        return now + timedelta(seconds=self._seconds)

    def next_expires_at(self, now: datetime) -> datetime:
        """Return when the first of the missing results is given up."""
        limits = [call.timeout_seconds for call in self.calls if call.timeout_seconds is not None]
        return now + timedelta(seconds=min([self._seconds, *limits]))

    @property
    def _seconds(self) -> float:
        seconds = self.persona.input_expires_seconds
        return min(seconds, HELD_SECONDS) if self.is_held else seconds

    def shown(self, now: datetime) -> dict[str, Any]:
        """Return the exact calls that the request is about, as far as a list has room for them.

        Arguments that are too long are left out: `tool.call` has those of a call to approve, and
        `run.waiting_for_input` those of calls whose results are missing.
        """
        if self.kind == "tool_results":
            remaining = MAX_SHOWN_CHARACTERS
            calls = []
            for call in self._sent(now):
                remaining -= len(json.dumps(call["arguments"]))
                calls.append(call if remaining >= 0 else {**call, "arguments": None})
            return {"calls": [{k: v for k, v in c.items() if v is not None} for c in calls]}
        if self.is_held:
            # A run does not fail because somebody needs longer than a server waits.
            return {"tool_name": self.tool_name, "is_held": True, "on_expiry": "continue"}
        if len(json.dumps(self.arguments, default=str)) > MAX_SHOWN_CHARACTERS:
            return {"tool_name": self.tool_name}
        return {"tool_name": self.tool_name, "arguments": plain(self.arguments)}

    def request(self, request_id: str, now: datetime) -> dict[str, Any]:
        """Return the fields of the `run.waiting_for_input` of a run that waits from now on."""
        return {
            "request_id": request_id,
            "kind": self.kind,
            "prompt": self.prompt,
            "tool_call_id": self.tool_call_id,
            "options": self.options,
            "approved_by": call_approvals.reserved_for(self.kind, self.persona.approved_by),
            "mcp_tool": self.mcp_tool,
            "worker_tool": self.worker_tool,
            "http_tool": self.http_tool,
            "calls": self._sent(now) or None,
            "identity": self.identity,
            "schema": self.schema,
            "url": self.url,
            "expires_at": times.rfc3339(self.expires_at(now)),
        }

    def _sent(self, now: datetime) -> list[dict[str, Any]]:
        """Return the calls whose results somebody has to send."""
        return [
            {
                "tool_call_id": call.tool_call_id,
                "name": call.name,
                "arguments": plain(call.arguments),
                **call.facts,
                **({"result_from": "http"} if call.result_from is ResultSource.HTTP else {}),
                **_limit(call, now),
            }
            for call in self.calls
            if call.result_from is not ResultSource.RUN
        ]


def _limit(call: PendingCall, now: datetime) -> dict[str, str]:
    if call.timeout_seconds is None:
        return {}
    return {"expires_at": times.rfc3339(now + timedelta(seconds=call.timeout_seconds))}
