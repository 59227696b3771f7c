"""The table of files; their bytes are in the storage of `shared/files`."""

from sqlalchemy import BigInteger, Column, Index, Table, Text, text

from arkloop.shared.storage.tables.columns import created_at_, id_, metadata, ref_, time_

files = Table(
    "files",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("created_by_user_id", "users.id"),
    Column("end_user_id", Text),  # who may read it as an end user of the org
    Column("name", Text, nullable=False),
    # Null until all its bytes are stored.
    Column("media_type", Text),
    Column("size", BigInteger),  # bytes
    Column("sha256", Text),
    time_("stored_at"),
    created_at_(),
    #: When it goes, bytes and row: an upload that never finished, a deleted file, a tool's result.
    time_("expires_at"),
    Index("ix_files_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)
