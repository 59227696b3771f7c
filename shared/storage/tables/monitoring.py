"""The table of measurements."""

from sqlalchemy import Boolean, CheckConstraint, Column, DateTime, Table, true
from sqlalchemy.dialects.postgresql import JSON

from arkloop.shared.storage.tables.columns import metadata

#: Its one row has what was measured last; see `shared/monitoring/measurements.py`.
measurements = Table(
    "measurements",
    metadata,
    Column("is_one", Boolean, primary_key=True, server_default=true()),
    Column("taken_at", DateTime(timezone=True), nullable=False),
    Column("data", JSON, nullable=False),
    CheckConstraint("is_one", name="ck_measurements_is_one"),
)
