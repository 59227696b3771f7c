"""The table of the keys of orgs."""

from sqlalchemy import Column, ForeignKey, LargeBinary, Table, Uuid

from arkloop.shared.storage.tables.columns import created_at_, metadata

#: The key that an org's secrets are encrypted with. Without the row they cannot be decrypted.
org_keys = Table(
    "org_keys",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),  # encrypted with ARKLOOP_ENCRYPTION_KEY
    created_at_(),
)
