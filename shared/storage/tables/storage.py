"""The tables of the installation and of stored responses."""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    func,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from arkloop.shared.storage.tables.columns import created_at_, metadata

#: Its one row names this installation in Redis (see `shared/storage/epoch.py`). Nothing may update
#: it but to begin an epoch: the name has the transaction that wrote the row last.
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
