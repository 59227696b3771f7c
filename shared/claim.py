"""The right to execute a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

#: A longer question is read in a turn of its own: see `worker.process.history_loader`.
QUESTION_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The exclusive right to execute a run, for as long as `fence` is the row's."""

    run_id: UUID
    org_id: UUID
    thread_id: UUID
    persona_id: str
    route_id: str
    model: str
    trace_id: str
    options: Mapping[str, Any] | None = None  # what the run overrides of its persona
    end_user_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)  # as it was then
    position: int
    fence: int
    attempt: int  # 1, and one more for each time it was taken over from a lost worker
    last_seq: int
    queued_at: datetime
    claimed_at: datetime  # by Postgres' clock, as all times of a run
    used_seconds: float  # since its first claim, without the time it waited for people
    is_suspect: bool  # one more lost owner within this step gives it up
    server: datetime | None = None  # when the Postgres server that made it was started
    api_key_id: UUID | None = None  # the key that created it
    parent_run_id: UUID | None = None  # of a sub-run: the run that has started it
    is_resumed: bool = False  # a worker had it before
    has_offered: bool = False  # messages wait for its next step
    #: The `content` and `parts` of the message that the first run of a thread answers, if short.
    question: Mapping[str, Any] | None = None
    is_limited: bool = False  # by its org or API key, by credits, or it holds money already
