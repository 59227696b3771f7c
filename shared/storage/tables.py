"""The tables of accounts, threads and runs.

`money_tables.py` and `catalog_tables.py` have the others. `migrations/` makes all of them; a test
holds both against each other.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
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

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _vacuumed(part: float) -> dict[str, float]:
    """Storage settings: a table of millions of rows is tended when such a part of it has changed.

    By default it is a fifth. Lists are read from indexes alone where the visibility map says so,
    and what retention has deleted is used again.
    """
    return {
        "autovacuum_vacuum_scale_factor": part,
        "autovacuum_vacuum_insert_scale_factor": part,
        "autovacuum_analyze_scale_factor": 0.05,
    }


def id_() -> Column[object]:
    return Column("id", Uuid, primary_key=True)


def time_(name: str, *, required: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not required)


def created_at_() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


def ref_(name: str, target: str, *, required: bool = True) -> Column[object]:
    return Column(name, Uuid, ForeignKey(target, ondelete="CASCADE"), nullable=not required)


#: `name` is for display and may be anybody's. Only the operator gives an org a `slug`, by which
#: commands find it.
orgs = Table(
    "orgs",
    metadata,
    id_(),
    Column("name", Text, nullable=False),
    Column("slug", Text),
    created_at_(),
    UniqueConstraint("slug"),
)

users = Table(
    "users",
    metadata,
    id_(),
    Column("login", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    created_at_(),
)
Index("uq_users_login", func.lower(users.c.login), unique=True)
Index("uq_users_email", func.lower(users.c.email), unique=True)

#: A user has one role in one org.
memberships = Table(
    "memberships",
    metadata,
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    ref_("org_id", "orgs.id"),
    Column("role", Text, nullable=False),  # owner | admin | member
    created_at_(),
    Index("ix_memberships_org_id", "org_id"),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    id_(),
    Column("family_id", Uuid, nullable=False),  # all rotations of one login
    ref_("user_id", "users.id"),
    Column("token_hash", Text, nullable=False, unique=True),
    created_at_(),
    time_("expires_at", required=True),
    time_("rotated_at"),
    time_("revoked_at"),
    Index("ix_refresh_tokens_family_id", "family_id"),
    Index("ix_refresh_tokens_user_id", "user_id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("user_id", "users.id"),
    Column("name", Text, nullable=False),
    Column("key_prefix", Text, nullable=False),
    Column("key_hash", Text, nullable=False, unique=True),  # SHA-256, hex
    Column("scopes", ARRAY(Text), nullable=False),
    created_at_(),
    time_("expires_at"),
    time_("revoked_at"),
    time_("last_used_at"),
    Index("ix_api_keys_org_id_created_at_id", "org_id", "created_at", "id"),
)

threads = Table(
    "threads",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("created_by_user_id", "users.id"),
    Column("title", Text),
    Column("is_private", Boolean, nullable=False, server_default=text("false")),
    #: The next free position; messages and runs take theirs from it under the row's lock.
    Column("next_position", BigInteger, nullable=False, server_default=text("1")),
    created_at_(),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    time_("deleted_at"),
    #: Who sees it: the org, by its id, or its creator alone; nobody when it is deleted.
    Column(
        "visible_to",
        Uuid,
        Computed(
            "CASE WHEN deleted_at IS NULL THEN"
            " CASE WHEN is_private THEN created_by_user_id ELSE org_id END END",
            persisted=True,
        ),
    ),
    Index("ix_threads_visible_to_created_at_id", "visible_to", "created_at", "id"),
    postgresql_with=_vacuumed(0.05),
)

messages = Table(
    "messages",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("thread_id", "threads.id"),
    #: Null again when the run is older than the retention; the message stays.
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="SET NULL")),
    ref_("created_by_user_id", "users.id", required=False),
    Column("position", BigInteger, nullable=False),
    Column("role", Text, nullable=False),  # user | assistant
    Column("content", Text, nullable=False),
    Column("partial", Boolean, nullable=False, server_default=text("false")),
    created_at_(),
    time_("superseded_at"),  # a retry made it disappear
    UniqueConstraint("thread_id", "position"),
    Index("ix_messages_run_id", "run_id"),
)

#: A condition on `runs`, without parameters: once Postgres plans a prepared statement for all
#: values of its parameters, it would not find the partial index by them.
IS_ACTIVE = text("state IN ('queued', 'executing', 'waiting')")
#: As `IS_ACTIVE`: runs that are to be cancelled and that no worker holds.
UNHELD_AND_CANCELLED = text("cancel_requested_at IS NOT NULL AND state IN ('queued', 'waiting')")

runs = Table(
    "runs",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("thread_id", "threads.id"),
    ref_("created_by_user_id", "users.id"),
    Column("api_key_id", Uuid),  # the key that created it; null: an access token
    Column("trace_id", Text, nullable=False),
    Column("persona_id", Text, nullable=False),
    Column("route_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    #: Its place in the thread: it sees the messages before, its answer stands here.
    Column("position", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    #: Raised by whoever takes the run; a write that carries an older fence has no effect.
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("owner", Uuid),  # the worker process that holds it while executing, or held it last
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    #: Owners lost since its last finished step.
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("resume_reason", Text),  # worker_lost | deploy | input: why it was queued again
    time_("cancel_requested_at"),
    Column("cancel_requested_by", Uuid),
    Column("pending_input", JSONB),  # the open question while it waits
    time_("input_expires_at"),
    time_("queued_at", required=True),
    time_("waiting_since"),
    Column("waiting_ms", BigInteger, nullable=False, server_default=text("0")),
    created_at_(),
    time_("started_at"),
    time_("ended_at"),
    Column("stop_reason", Text),  # of a completed run: why its model stopped
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
    time_("superseded_at"),  # a retry made its turns disappear from the thread
    #: That of its thread, always: triggers of the database see to it.
    Column("visible_to", Uuid),
    Index("ix_runs_visible_to_created_at_id", "visible_to", "created_at", "id"),
    Index("ix_runs_visible_to_state_created_at_id", "visible_to", "state", "created_at", "id"),
    Index("ix_runs_thread_id_created_at_id", "thread_id", "created_at", "id"),
    Index("ix_runs_thread_id_position", "thread_id", "position"),
    Index(
        "uq_runs_active_thread_id",
        "thread_id",
        unique=True,
        postgresql_where=IS_ACTIVE,
    ),
    Index("ix_runs_owner", "owner", postgresql_where=text("state = 'executing'")),
    Index("ix_runs_queued_at", "queued_at", postgresql_where=text("state = 'queued'")),
    Index(
        "ix_runs_input_expires_at", "input_expires_at", postgresql_where=text("state = 'waiting'")
    ),
    Index("ix_runs_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    Index(
        "ix_runs_cancel_requested_at", "cancel_requested_at", postgresql_where=UNHELD_AND_CANCELLED
    ),
    postgresql_with=_vacuumed(0.05),
)

#: Whoever writes an event holds its run's row lock, so no foreign key has to look for the row
#: once more for each event. When a run is deleted its events stay, unseen, until
#: `retention.py` has collected them.
run_events = Table(
    "run_events",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    #: The event's JSON object, encoded once; every client gets these bytes.
    Column("payload", Text, nullable=False),
    postgresql_with=_vacuumed(0.02),
)

#: Runs that are gone and whose events are not: a trigger writes them here with the deletion.
forgotten_runs = Table(
    "forgotten_runs",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("forgotten_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("ix_forgotten_runs_forgotten_at", "forgotten_at"),
)

#: Calls that have begun: written before the tool runs, so that a crash leaves a trace of it.
#: A call is planned by its `tool.call` event, started by a row here, and done by its
#: `tool.result`; where that must wait for other calls of the turn, the result waits here.
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
    Column("duration_ms", BigInteger),
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
)

#: Its one row names this installation in Redis: see `shared/storage/epoch.py`.
installation = Table(
    "installation",
    metadata,
    Column("is_one", Boolean, primary_key=True, server_default=true()),
    Column("epoch", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    CheckConstraint("is_one", name="ck_installation_is_one"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True),
    Column("actor_id", Uuid, primary_key=True),  # the API key, else the user
    Column("path", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("body", Text, nullable=False),
    created_at_(),
    Index("ix_idempotency_keys_created_at", "created_at"),
)
