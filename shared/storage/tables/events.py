"""The table of events."""

from sqlalchemy import BigInteger, Column, LargeBinary, Table, Text, Uuid

from arkloop.shared.storage.tables.columns import metadata

#: The writer of an event holds its run's row lock, so no foreign key has to look for the row
#: once more for each event. When a run is deleted its events stay, unseen, until
#: `retention.py` has dropped their partition or collected them.
run_events = Table(
    "run_events",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    #: The event's JSON object, encoded once; every client gets these bytes.
    Column("payload", Text, nullable=False),
    #: What vendors received since the event before; see `shared/events/prompts.py`.
    Column("prompts", LargeBinary),
    # Storage settings are those of the partitions: see `shared/events/partitions.py`.
    postgresql_partition_by="RANGE (run_id)",
)
