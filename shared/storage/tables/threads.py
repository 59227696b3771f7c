"""The tables of threads and their messages."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
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

#: A condition on `threads`: that of the partial index.
HAS_EXTERNAL_ID = text("external_id IS NOT NULL")
UNIQUE_EXTERNAL_ID = "uq_threads_visible_to_external_id"

threads = Table(
    "threads",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("created_by_user_id", "users.id"),
    Column("parent_run_id", Uuid),  # of a sub-run's thread: the run that has started that
    #: Of a sub-run's thread: the thread at the top of its tree, which outlives the runs between.
    #: A trigger sets it.
    Column("root_thread_id", Uuid),
    Column("title", Text),
    Column("is_private", Boolean, nullable=False, server_default=text("false")),
    Column("end_user_id", Text),  # that of its runs, unless they have their own
    Column("external_id", Text),  # the client's own, by which it finds the thread
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("on_busy", Text),  # the default of requests that create runs; null: reject
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
    #: Since when the runs up to this position may have another `visible_to` than the thread, for
    #: the sweep to correct; in the future while a request writes them. Null: none has.
    time_("runs_due_at"),
    Column("runs_due_upto", BigInteger),
    #: Of a public thread that is to become private: the creator alone sees the runs from this
    #: position on that had ended.
    Column("runs_hidden_from", BigInteger),
    Index(
        "ix_threads_visible_to_end_user_id_created_at_id",
        *("visible_to", "end_user_id", "created_at", "id"),
        postgresql_where=text("end_user_id IS NOT NULL"),
    ),
    # Without the threads of sub-runs.
    Index(
        "ix_threads_listed_visible_to_created_at_id",
        *("visible_to", "created_at", "id"),
        postgresql_where=text("parent_run_id IS NULL"),
    ),
    Index(
        "ix_threads_parent_run_id_created_at_id",
        *("parent_run_id", "created_at", "id"),
        postgresql_where=text("parent_run_id IS NOT NULL"),
    ),
    Index(
        "ix_threads_root_thread_id",
        "root_thread_id",
        postgresql_where=text("root_thread_id IS NOT NULL"),
    ),
    Index(
        "ix_threads_runs_due_at",
        "runs_due_at",
        postgresql_where=text("runs_due_at IS NOT NULL"),
    ),
    Index(
        UNIQUE_EXTERNAL_ID,
        "visible_to",
        "external_id",
        unique=True,
        postgresql_where=HAS_EXTERNAL_ID,
    ),
    postgresql_with=vacuumed(0.05),
)

#: The truncation point of a thread for models with a context of `window_tokens`; 0: unknown. It
#: is the thread's newest `context.compacted` event for that size.
thread_contexts = Table(
    "thread_contexts",
    metadata,
    Column("thread_id", Uuid, ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True),
    Column("window_tokens", BigInteger, primary_key=True, autoincrement=False),
    Column("upto_position", BigInteger, nullable=False),
    Column("upto_seq", BigInteger, nullable=False),
    Column("dropped_messages", BigInteger, nullable=False),
    Column("result_tokens", BigInteger),
    Column("summary", Text),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

thread_metadata = metadata_pairs("thread_metadata")

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
    #: The content as it was given, where that was a list of parts; `content` then describes them.
    Column("parts", JSONB),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("partial", Boolean, nullable=False, server_default=text("false")),
    created_at_(),
    time_("superseded_at"),  # a retry made it disappear, or its run was cancelled as it waited
    #: The run that has taken it while it was active: it is part of that one's turns.
    Column("steered_into", Uuid, ForeignKey("runs.id", ondelete="SET NULL")),
    #: For whom it was sent, if it has steered a run. Null: for no end user, or by a release that
    #: did not keep it; whose another message is, its run says.
    Column("end_user_id", Text),
    UniqueConstraint("thread_id", "position"),
    Index("ix_messages_run_id", "run_id"),
    Index(
        "ix_messages_steered_into",
        "steered_into",
        postgresql_where=text("steered_into IS NOT NULL"),
    ),
    Index(
        "ix_messages_org_id_end_user_id",
        *("org_id", "end_user_id"),
        postgresql_where=text("end_user_id IS NOT NULL"),
    ),
)
