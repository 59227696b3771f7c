"""The run as the code of a custom agent sees it, in a worker and behind an agent worker alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from arkloop.shared.agents.approvals import ApprovalReply

#: Of a checkpoint, as JSON.
MAX_CHECKPOINT_BYTES = 1024 * 1024
#: The text that stands for the result of a call whose process was lost.
UNKNOWN_OUTCOME = (
    "The outcome of this call is unknown: the process that made it crashed. The call"
    " may or may not have taken effect, and was not repeated."
)

#: Why a run has to stop: somebody cancelled it, its time is over, its process ends, it waits for a
#: person, it reached a limit of its budget or size, or it belongs to another process by now.
StopReason = Literal["cancelled", "timeout", "shutdown", "waiting", "limit", "lost"]


class RunStopped(BaseException):
    """The end of this execution of the agent: every method of `AgentRun` raises it from then on.

    Not derived from Exception, so that `except Exception` around a step does not swallow it. Clean
    up and let it through; whatever the agent returns afterwards is ignored.
    """

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


def is_stop(error: BaseException) -> bool:
    """Return whether the agent has ended because its run stops, also as a group of its tasks."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(RunStopped)[1] is None
    return isinstance(error, RunStopped)


class ToolFailed(Exception):
    """A failed call; the model reads the message as its result, and the run continues."""


class Call(TypedDict):
    """A tool call: `id` is unique in its run, `arguments` any JSON."""

    id: str
    name: str
    arguments: Any


class Message(TypedDict):
    """A message of the conversation.

    `tool_calls` are those of an `assistant`; a `tool` message is the result of the call
    `tool_call_id`. `files` are the images and files of a message or a result: the `kind` of each,
    `image` or `file`, and its `url`, or its `file_id`, `name`, `media_type` and `size` in bytes.
    `is_error` is true in the failed results of the run's own turns.
    """

    role: Literal["user", "assistant", "tool"]
    content: str
    tool_calls: NotRequired[list[Call]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    is_error: NotRequired[bool]
    files: NotRequired[list[dict[str, Any]]]


class DelegatedTask(TypedDict):
    """A task for a run of another persona; `tool_call_id` is unique in the run that gives it."""

    persona: str
    task: str
    tool_call_id: str


@dataclass(frozen=True, slots=True)
class SubRunResult:
    """The result of a sub-run: its output as text, or with `is_error` why there is none.

    With `is_cut` the output is a part: the results together were too long.
    """

    output: str
    is_error: bool
    is_cut: bool = False


class AgentRun(Protocol):
    """A run that a custom agent carries out; all methods may be called from any thread.

    Each method raises `RunStopped` if the run has to stop. What it records is numbered, stored and
    streamed as the events of the built-in loop are.
    """

    # ---- on whose behalf ----

    @property
    def run_id(self) -> str: ...
    @property
    def thread_id(self) -> str: ...
    @property
    def org_id(self) -> str: ...
    @property
    def end_user_id(self) -> str | None: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def traceparent(self) -> str:
        """The header of W3C Trace Context for calls to other services."""

    def idempotency_key(self, tool_call_id: str) -> str:
        """Return the key of a tool call, the same whenever the call is repeated.

        Pass it on to the service that has the effect: `<run_id>:<tool_call_id>`, in which an id
        with other characters than letters, digits, `_` and `-` is represented by a digest.
        """

    # ---- what to do ----

    @property
    def instructions(self) -> str:
        """The persona's `system_prompt`, with the run's overrides."""

    @property
    def model(self) -> str:
        """The model of the run's route: a default, which the agent need not use."""

    @property
    def model_settings(self) -> Mapping[str, Any]:
        """The persona's model settings, with the run's overrides."""

    @property
    def output_schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema of the object that the agent must return; None: it returns text."""

    @property
    def messages(self) -> Sequence[Message]:
        """The thread up to this run, then the finished turns of the run's earlier executions.

        A call that was begun and has no result stands there with `UNKNOWN_OUTCOME`. One that has
        not begun (see `pending_calls`) has none: make it before the model is called again.
        """

    def file(self, file_id: str) -> bytes:
        """Return the content of a stored image or file that `messages` name.

        Raises:
            LookupError: they do not name it, or it was deleted.
        """

    @property
    def attempt(self) -> int:
        """1, and one more each time that the run was taken over from a lost process."""

    @property
    def checkpoint_data(self) -> Any:
        """The data of the last `checkpoint`; None without one."""

    @property
    def pending_calls(self) -> Sequence[Call]:
        """Calls that an earlier execution began without recording a result.

        Not among them are calls that have not begun: a person was asked to `approve` them, or the
        execution that recorded them ended by `ask`, `approve` or `delegate` before their `step`, or
        by a deploy after another `step`. A step that asked has not begun either. Of an execution
        that was lost, or that had made no `step` at a deploy, all recorded calls count as begun.
        `step` and `tool_result` settle them by their ids. Those that are left when the agent
        finishes another turn are recorded with `UNKNOWN_OUTCOME`.
        """

    # ---- what happens ----

    def text(self, text: str) -> None:
        """Stream a piece of the answer."""

    def thinking(self, text: str) -> None:
        """Stream a piece of the model's reasoning."""

    def tool_call(self, name: str, arguments: Any, *, tool_call_id: str | None = None) -> str:
        """Record that a tool is called, before it is; return the call's id.

        The text streamed before it is finished and belongs to the same turn. A call that is
        recorded already is not recorded again.

        Raises:
            ValueError: the arguments are not JSON, the id has another form, or is that of a call
                with another name or other arguments.
        """

    def tool_result(self, tool_call_id: str, output: str, *, is_error: bool = False) -> None:
        """Record the result of a call; of a call that has one already, nothing is recorded.

        Raises:
            ValueError: there is no such call.
        """

    def step(
        self,
        name: str,
        arguments: Any,
        function: Callable[[], Any],
        *,
        tool_call_id: str,
        idempotent: bool = False,
        timeout_seconds: float | None = None,
    ) -> str:
        """Call the function as the tool call of this id, at most once; return its output as text.

        If a result is recorded under the id, it is returned and nothing is called. If an earlier
        execution was lost during the call, it is repeated if it is `idempotent`; else its result
        is `UNKNOWN_OUTCOME`. An exception's class name is the output of a failed call, the
        whole text that of `ToolFailed`.
        A function that calls `ask`, `approve` or `delegate` is called again from its beginning once
        there is an answer: it has its effect after that. Another step that is in progress then, in
        another thread, is lost: make steps that may ask, and those beside them, one after the
        other.

        With `timeout_seconds` the function runs in a thread of its own, which is abandoned when
        the time is over, and the result says so; and, without a result, when the run has to stop.
        Without it the run's own time is the limit.

        Raises:
            ValueError: the function is a coroutine function, the arguments are not JSON, or the id
                has another form, or is that of a call with another name or other arguments, which a
                person has not edited either.
        """

    def cost(
        self,
        usd: float | None = None,
        *,
        model: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> None:
        """Count a model call, once for each: in the run's usage, in the ledger and in budgets.

        Without `usd` the tokens are priced as those of `model`, by default the run's own. Those of
        the cache are part of the input tokens, and those of reasoning part of the output tokens.

        Raises:
            ValueError: the amount is not between 0 and 1,000,000 USD.
        """

    def reserve(self, usd: float) -> None:
        """Reserve what the next model call may cost at most; waits while other runs hold the rest.

        Without this a budget is enforced after each `cost`, so the last call may exceed it.
        """

    def checkpoint(self, data: Any) -> None:
        """Store where the agent is: at most 1 MiB as JSON, and everything recorded before it.

        The next execution of the run gets it as `checkpoint_data`. Text streamed before it is
        finished; text streamed after the last checkpoint and turn is void if the process is lost.

        Raises:
            ValueError: the data is not JSON, or longer.
        """

    def ask(self, question: str, options: Sequence[str] = (), *, key: str | None = None) -> str:
        """Return a person's answer.

        Without one, this execution ends with `RunStopped`; once there is one, the agent is
        called again from its beginning. A question is recognised by its `key`, else by its text.
        Steps of other threads that are in progress then are lost, as at a deploy.

        Raises:
            ValueError: there is no answer, and the question has not 1 to 8,192 characters, the
                `key` not 1 to 128, or there are more than 20 options, or one that has not 1 to 500
                characters.
        """

    def approve(self, name: str, arguments: Any, *, tool_call_id: str) -> ApprovalReply:
        """Ask a person whether this call may be made, before its `step`; return the reply.

        As `ask`, it ends this execution until there is a reply. The call is recorded before the
        question, as one that has not begun, and the reply is valid for this call alone. A person
        may have given other `arguments` to make it with. If it is not `approved`, its result is
        recorded, and a `step` of this id returns that without a call.

        Raises:
            ValueError: the id is that of a call with another name or other arguments.
        """

    def delegate(self, persona: str, task: str, *, tool_call_id: str) -> SubRunResult:
        """Give a task to a run of another persona, a sub-run, and return its result.

        The persona is one of the `delegates` of the run's own. While the sub-run is active, this
        run waits without a process: this execution ends with `RunStopped`, and the agent is called
        again from its beginning. One id starts one sub-run, whatever is lost. A call of `delegate`
        that is recorded already, as by `approve`, is given out, unless it was denied.

        Raises:
            ValueError: the run's persona has no `delegates`, the id is that of a call with another
                name, persona or task, or the task is empty or too long.
        """

    def delegate_all(self, tasks: Sequence[DelegatedTask]) -> list[SubRunResult]:
        """Give out tasks that are worked on side by side; return the results in their order.

        Otherwise as `delegate`.
        """

    def check(self) -> None:
        """Raise if the run has to stop."""

    def wait(self, seconds: float) -> None:
        """Sleep; raises as soon as the run has to stop."""
