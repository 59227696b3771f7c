"""The tables of runs, their tool calls and inputs, and the workers that execute them."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from arkloop.shared.storage.tables.columns import (
    created_at_,
    id_,
    metadata,
    metadata_pairs,
    ref_,
    time_,
    vacuumed,
)

#: A condition on `runs`, without parameters: once Postgres plans a prepared statement for all
#: values of its parameters, it would not find the partial index by them.
IS_ACTIVE = text("state IN ('queued', 'executing', 'waiting', 'suspended')")
#: All positions from here on are those of runs that wait for their thread, and of their messages.
FIRST_WAITING = 2**51
#: As `IS_ACTIVE`: runs that wait for their thread. Not by their states: a list of the runs in one
#: of these, of whatever thread, would be read from the index on this, and be sorted.
WAITS_FOR_THREAD = text(f"position >= {FIRST_WAITING} AND ended_at IS NULL")
IS_PENDING = text(f"state = 'pending' AND {WAITS_FOR_THREAD}")
HAS_TIME = text(f"not_before IS NOT NULL AND {WAITS_FOR_THREAD}")
#: Scheduled runs without those that are to be cancelled. These are ended, not started, and may be
#: many: after the loss of a key.
IS_SCHEDULED = text(f"state = 'scheduled' AND {HAS_TIME} AND cancel_requested_at IS NULL")
#: As `IS_ACTIVE`: runs that are to be cancelled and that no worker holds.
UNHELD_AND_CANCELLED = text(
    "cancel_requested_at IS NOT NULL"
    " AND state IN ('queued', 'waiting', 'suspended', 'pending', 'scheduled')"
)
#: As `IS_ACTIVE`: sub-runs that have not ended.
IS_ACTIVE_SUB_RUN = text(
    "parent_run_id IS NOT NULL AND state IN ('queued', 'executing', 'waiting', 'suspended')"
)

runs = Table(
    "runs",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("thread_id", "threads.id"),
    Column("parent_run_id", Uuid),  # of a sub-run: the run that has started it
    ref_("created_by_user_id", "users.id"),
    Column("api_key_id", Uuid),  # the key that created it; null: an access token
    Column("trace_id", Text, nullable=False),
    Column("persona_id", Text, nullable=False),
    Column("route_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    #: What it overrides of its persona; see `shared/runs/overrides.py`. Null: nothing.
    Column("options", JSONB),
    Column("end_user_id", Text),  # the customer's customer on whose behalf it runs
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    #: Its place in the thread: it sees the messages before, its answer stands here.
    Column("position", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    time_("not_before"),  # of a run that was created for later
    #: Of an active run: something may wait for its thread, so that its end has to look.
    Column("has_followers", Boolean, nullable=False, server_default=text("false")),
    #: Of an active run: messages may be offered to it, for its next step.
    Column("has_offered", Boolean, nullable=False, server_default=text("false")),
    Column("superseded_by", Uuid),  # the run for which this one was cancelled
    #: The agent whose workers execute it, in the customer's hands; null: the service's own workers.
    Column("agent", Text),
    #: Raised by each claim; a write that carries an older fence has no effect.
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("owner", Uuid),  # the worker process that holds it while executing, or held it last
    #: 0 before the first claim, then 1, and one more for each takeover from a lost worker.
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    #: Owners lost since its last finished step.
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("resume_reason", Text),  # worker_lost | deploy | input: why it was queued again
    time_("cancel_requested_at"),
    Column("cancel_requested_by", Uuid),
    Column("cancel_reason", Text),  # org_suspended; null: somebody wanted it
    Column("pending_input", JSONB),  # the open question while it waits
    time_("input_expires_at"),
    time_("queued_at", required=True),
    time_("waiting_since"),
    Column("waiting_ms", BigInteger, nullable=False, server_default=text("0")),
    created_at_(),
    time_("started_at"),
    time_("ended_at"),
    Column("stop_reason", Text),  # of a completed run: why its model stopped
    Column("output_is_json", Boolean),  # of an ended run: its message is an object's JSON
    #: Finished model turns; null in runs of releases that did not count them.
    Column("steps", Integer, server_default=text("0")),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("error_retryable", Boolean),
    Column("input_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("cache_read_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("cache_write_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("usage_source", Text, nullable=False, server_default=text("'reported'")),
    Column("cost_usd", Numeric(18, 8), nullable=False, server_default=text("0")),
    time_("superseded_at"),  # a retry or a rollback made its turns disappear from the thread
    #: That of its thread: triggers of the database see to it, and `visible_runs.py` where the
    #: thread has very many runs.
    Column("visible_to", Uuid),
    Index("ix_runs_visible_to_created_at_id", "visible_to", "created_at", "id"),
    Index("ix_runs_visible_to_state_created_at_id", "visible_to", "state", "created_at", "id"),
    # Of these rows alone, and failed runs alone: others cost nothing.
    Index(
        "ix_runs_visible_to_end_user_id_created_at_id",
        *("visible_to", "end_user_id", "created_at", "id"),
        postgresql_where=text("end_user_id IS NOT NULL"),
    ),
    Index(
        "ix_runs_visible_to_error_code_created_at_id",
        *("visible_to", "error_code", "created_at", "id"),
        postgresql_where=text("error_code IS NOT NULL"),
    ),
    Index("ix_runs_thread_id_created_at_id", "thread_id", "created_at", "id"),
    Index("ix_runs_thread_id_position", "thread_id", "position"),
    Index(
        "uq_runs_unended_thread_id",
        "thread_id",
        unique=True,
        postgresql_where=IS_ACTIVE,
    ),
    Index("ix_runs_owner", "owner", postgresql_where=text("state = 'executing'")),
    Index("ix_runs_queued_at", "queued_at", postgresql_where=text("state = 'queued'")),
    Index(
        "ix_runs_org_id_agent_queued_at",
        *("org_id", "agent", "queued_at"),
        postgresql_where=text("state = 'queued' AND agent IS NOT NULL"),
    ),
    Index(
        "ix_runs_input_expires_at", "input_expires_at", postgresql_where=text("state = 'waiting'")
    ),
    Index(
        "ix_runs_waiting_thread_id_position",
        *("thread_id", "position"),
        postgresql_where=WAITS_FOR_THREAD,
    ),
    Index(
        "ix_runs_unended_org_id_state",
        *("org_id", "state"),
        # The second condition, which is always true, is for queries by the org alone.
        postgresql_where=text("ended_at IS NULL AND org_id IS NOT NULL"),
    ),
    Index(
        "ix_runs_queued_org_id_end_user_id_queued_at",
        *("org_id", text("coalesce(end_user_id, '')"), "queued_at"),
        postgresql_where=text("state = 'queued' AND agent IS NULL"),
    ),
    Index("ix_runs_not_before", "not_before", postgresql_where=HAS_TIME),
    Index(
        "ix_runs_scheduled_org_id_not_before",
        *("org_id", "not_before"),
        # As above: looks at all that is due, in the order of its time, must not read this one.
        postgresql_where=text(f"{IS_SCHEDULED} AND org_id IS NOT NULL"),
    ),
    Index("ix_runs_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    Index(
        "ix_runs_unended_cancel_requested_at",
        "cancel_requested_at",
        postgresql_where=UNHELD_AND_CANCELLED,
    ),
    Index(
        "ix_runs_parent_run_id_created_at_id",
        *("parent_run_id", "created_at", "id"),
        postgresql_where=text("parent_run_id IS NOT NULL"),
    ),
    Index("ix_runs_active_parent_run_id", "parent_run_id", postgresql_where=IS_ACTIVE_SUB_RUN),
    postgresql_with=vacuumed(0.05),
)

run_metadata = metadata_pairs("run_metadata")

#: Messages that wait for the next step of an active run, each with what it needs to become a run.
offered_messages = Table(
    "offered_messages",
    metadata,
    Column("run_id", Uuid, primary_key=True),  # which it becomes if the active run ends first
    Column(
        "active_run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column(
        "message_id",
        Uuid,
        ForeignKey("messages.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("org_id", Uuid, nullable=False, index=True),
    Column("thread_id", Uuid, nullable=False, index=True),
    Column("created_by_user_id", Uuid, nullable=False),
    Column("api_key_id", Uuid),
    *(Column(name, Text, nullable=False) for name in ("trace_id", "persona_id", "route_id")),
    Column("model", Text, nullable=False),
    Column("agent", Text),
    Column("options", JSONB),
    Column("end_user_id", Text),
    Column("metadata", JSONB, nullable=False),
    Column("position", BigInteger, nullable=False),
    created_at_(),
)

#: Runs that are gone and whose events are not: written here with the deletion, by a trigger if by
#: nothing else. Before `collect_at` their events are left to the drop of their partition.
forgotten_events = Table(
    "forgotten_events",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("forgotten_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("collect_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("ix_forgotten_events_collect_at", "collect_at"),
)

#: Always empty. The previous release collects the events of runs that it finds here, by a statement
#: that would take others along.
forgotten_runs = Table(
    "forgotten_runs",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("forgotten_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("false", name="ck_forgotten_runs_is_empty"),
    Index("ix_forgotten_runs_forgotten_at", "forgotten_at"),
)

#: Calls that have begun: written before the tool runs, so that a crash leaves a trace of it.
#: A call is planned by its `tool.call` event, started by a row here, and done by its
#: `tool.result`; where that must wait for other calls of the turn, the result waits here. Output
#: that is too long for the event stays here for as long as the run.
tool_calls = Table(
    "tool_calls",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("tool_call_id", Text, primary_key=True),
    Column("fence", BigInteger, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    time_("done_at"),
    Column("output", Text),
    Column("is_error", Boolean),
    Column("files", JSONB),
    Column("duration_ms", BigInteger),
    Column("whole_output", Text),  # null: `output` is all of it
    Column("result_from", Text),  # client | http | run; null: the worker that makes the call
    time_("accepted_at"),  # of a call that was accepted elsewhere: its result comes from there
    Column("input_request", Text),  # JSON; of a call that is made again with people's replies
)

#: The last checkpoint of a run that a custom agent carries out.
agent_checkpoints = Table(
    "agent_checkpoints",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("fence", BigInteger, nullable=False),
    Column("data", Text, nullable=False),  # JSON
    Column("stored_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

#: Tool calls that workers of the customer make; see `shared/runs/worker_calls.py`.
worker_calls = Table(
    "worker_calls",
    metadata,
    id_(),
    ref_("run_id", "runs.id"),
    Column("tool_call_id", Text, nullable=False),
    Column("org_id", Uuid, nullable=False),
    Column("pool", Text, nullable=False),
    Column("tool", Text, nullable=False),
    Column("request", Text, nullable=False),  # JSON: arguments, and on whose behalf
    Column("idempotent", Boolean, nullable=False),
    Column("timeout_seconds", Double, nullable=False),
    Column("owner", Uuid, nullable=False),  # the worker process whose run waits for it
    Column("state", Text, nullable=False, server_default=text("'queued'")),
    #: Raised each time it is handed out; a result with an older one has no effect.
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("worker_id", Text),  # the customer's worker that has it, or had it last
    time_("heard_at"),  # its last heartbeat for this call; null: none yet
    time_("lease_expires_at"),
    #: Until when it has to be fetched; once it is, until when it has to be completed.
    time_("deadline", required=True),
    time_("cancel_requested_at"),
    Column("output", Text),
    Column("is_error", Boolean),
    Column("images", JSONB),
    created_at_(),
    time_("ended_at"),
    UniqueConstraint("run_id", "tool_call_id"),
    Index(
        "ix_worker_calls_org_id_pool_id",
        *("org_id", "pool", "id"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_worker_calls_org_id_pool_worker_id",
        *("org_id", "pool", "worker_id"),
        postgresql_where=text("state = 'leased'"),
    ),
)

#: The place of a sub-run in the tree of its root, and the tool call that its end answers.
sub_runs = Table(
    "sub_runs",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("parent_run_id", Uuid, nullable=False),
    Column("parent_call_id", Text, nullable=False),
    Column("root_run_id", Uuid, nullable=False),
    Column("depth", Integer, nullable=False),  # that of the root's own sub-runs is 1
    Column("levels_left", Integer, nullable=False),  # how many there may be below it
    UniqueConstraint("parent_run_id", "parent_call_id"),
)

inputs = Table(
    "inputs",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("request_id", Uuid, primary_key=True),
    Column("content", Text, nullable=False),
    ref_("created_by_user_id", "users.id", required=False),  # null: nobody answered in time
    created_at_(),
    time_("consumed_at"),
    Column("results", JSONB(none_as_null=True)),  # of calls that the run makes after the reply
)

#: Active runs that an agent worker has had since their last wait, when their time is over, and if
#: they land then.
agent_runs = Table(
    "agent_runs",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("deadline_at", DateTime(timezone=True), nullable=False),
    Column("lands", Boolean, nullable=False, server_default=text("false")),
)

#: One row per worker process: its lease on all the runs that it holds.
workers = Table(
    "workers",
    metadata,
    id_(),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("lock_key", BigInteger, nullable=False),  # its session advisory lock
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    #: When it was heard again after its last silence of more than a heartbeat.
    time_("back_at"),
    #: Of an agent worker, which is a process of the customer's; null: one of the service.
    Column("org_id", Uuid),
)

#: Its one row has the time of the last sweep, and when a process last began to tidy up: null if
#: that has left something to do.
sweep_turn = Table(
    "sweep_turn",
    metadata,
    Column("is_one", Boolean, primary_key=True, server_default=true()),
    Column("swept_at", DateTime(timezone=True)),
    Column("tidied_at", DateTime(timezone=True)),
    CheckConstraint("is_one", name="ck_sweep_turn_is_one"),
)
