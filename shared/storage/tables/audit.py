"""The tables of the audit log: the entries of each org, and the head of its chain."""

from sqlalchemy import BigInteger, Column, DateTime, Index, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from arkloop.shared.storage.tables.columns import metadata

#: The newest entry of an org. Each append locks its row.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
)

#: Triggers refuse every change of an entry. No foreign keys: the log outlives what it names.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("seq", BigInteger, primary_key=True),  # 1, 2, 3, … in each org
    Column("created_at", DateTime(timezone=True), nullable=False),  # whole milliseconds
    Column("action", Text, nullable=False),
    Column("actor_type", Text, nullable=False),
    Column("actor_user_id", Uuid),
    Column("actor_api_key_id", Uuid),
    Column("actor_end_user_id", Text),
    Column("target_type", Text),
    Column("target_id", Text),
    Column("details", JSONB, nullable=False),
    Column("ip", Text),
    Column("user_agent", Text),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index("ix_audit_entries_org_id_action_seq", "org_id", "action", "seq"),
    Index("ix_audit_entries_org_id_actor_user_id_seq", "org_id", "actor_user_id", "seq"),
)
