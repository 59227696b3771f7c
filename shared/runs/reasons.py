"""The reasons why a run is where it is, as stable codes, and the explanation that names one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """The code of what a run waits for, does, or has come to."""

    NOT_BEFORE = "not_before"
    THREAD_BUSY = "thread.busy"
    THREAD_FREE = "thread.free"
    QUEUE_NEXT = "queue.next"
    QUEUE_BEHIND_OTHERS = "queue.behind_others"
    QUEUE_ORG_SUSPENDED = "queue.org_suspended"
    QUEUE_NO_WORKER = "queue.no_worker"
    QUEUE_NO_AGENT_WORKER = "queue.no_agent_worker"
    QUEUE_AGENT_WORKER = "queue.agent_worker"
    QUEUE_BROKER_REFUSED = "queue.broker_refused"
    QUEUE_SLOTS_FULL = "queue.slots_full"
    RESUME_WORKER_LOST = "resume.worker_lost"
    RESUME_DEPLOY = "resume.deploy"
    RESUME_INPUT = "resume.input"
    RESUME_SUB_RUNS = "resume.sub_runs"
    WAITING_ANSWER = "waiting.answer"
    WAITING_APPROVAL = "waiting.approval"
    WAITING_FORM = "waiting.form"
    WAITING_AUTHORIZATION = "waiting.authorization"
    WAITING_CLIENT_TOOLS = "waiting.client_tools"
    WAITING_HTTP_TOOLS = "waiting.http_tools"
    WAITING_SUB_RUNS = "waiting.sub_runs"
    WAITING_TURN = "waiting.turn"
    STARTING = "starting"
    MODEL_CALLING = "model.calling"
    MODEL_STREAMING = "model.streaming"
    MODEL_RETRYING = "model.retrying"
    MODEL_LAST_CALL = "model.last_call"
    THROTTLED_REQUESTS = "throttled.requests"
    THROTTLED_TOKENS = "throttled.tokens"
    THROTTLED_PROVIDER = "throttled.provider"
    THROTTLED_BUDGET = "throttled.budget"
    THROTTLED_MEMORY = "throttled.memory"
    TOOLS_RUNNING = "tools.running"
    TOOLS_NO_WORKER = "tools.no_worker"
    AGENT_EXECUTING = "agent.executing"
    WORKER_SILENT = "worker.silent"
    CANCELLING = "cancelling"
    ENDED_COMPLETED = "ended.completed"
    ENDED_AT_LIMIT = "ended.at_limit"
    ENDED_FAILED = "ended.failed"
    ENDED_CANCELLED = "ended.cancelled"
    ENDED_SUPERSEDED = "ended.superseded"


class Action(StrEnum):
    """The code of what happens to a run next."""

    START = "start"  # a worker claims it
    QUEUE = "queue"  # it becomes one that workers claim
    EXPIRE = "expire"  # it continues without the input, or fails
    CONTINUE = "continue"  # its worker does, without anybody's help
    RETRY = "retry"  # its worker makes the model call, or asks for the permission to, again
    TAKE_OVER = "take_over"  # another worker resumes it
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The reason, since when it holds, and what happens next, and when at the latest.

    `action` is None for a run that has ended; `at` where no time is known. `details` has the ids,
    numbers and times that the sentence is about.
    """

    reason: Reason
    sentence: str
    since: datetime | None
    action: Action | None = None
    at: datetime | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def shown(moment: datetime) -> str:
    """Format a time for a sentence."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def counted(number: int, noun: str) -> str:
    """Return the number with the noun, in the plural where it is not 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
