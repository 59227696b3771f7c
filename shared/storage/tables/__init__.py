"""All tables: a foreign key is resolved only when the modules of both tables are loaded.

`migrations/` creates them; a test compares both.
"""

from arkloop.shared.storage.tables import (
    accounts,
    audit,
    billing,
    catalog,
    delivery,
    events,
    files,
    monitoring,
    runs,
    sealing,
    storage,
    threads,
)
from arkloop.shared.storage.tables.columns import metadata

__all__ = [
    "accounts",
    "audit",
    "billing",
    "catalog",
    "delivery",
    "events",
    "files",
    "metadata",
    "monitoring",
    "runs",
    "sealing",
    "storage",
    "threads",
]
