"""The metadata of all tables, and columns that many of them have."""

from sqlalchemy import Column, DateTime, ForeignKey, Index, MetaData, Table, Text, Uuid, func

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def vacuumed(part: float) -> dict[str, float]:
    """Return storage settings that vacuum a table once this part of its rows has changed.

    By default it is a fifth. Lists are read from indexes alone where the visibility map says so,
    and what retention has deleted is used again.
    """
    return {
        "autovacuum_vacuum_scale_factor": part,
        "autovacuum_vacuum_insert_scale_factor": part,
        "autovacuum_analyze_scale_factor": 0.05,
    }


def metadata_pairs(name: str) -> Table:
    """Return a table with the pairs of each row's `metadata` as `key=value`, for filters of lists.

    Triggers of the database keep it as the rows are.
    """
    return Table(
        name,
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("pair", Text(collation="C"), primary_key=True),
        Column("visible_to", Uuid),
        Column("created_at", DateTime(timezone=True), nullable=False),
        Index(f"ix_{name}_visible_to_pair_created_at_id", "visible_to", "pair", "created_at", "id"),
        postgresql_with=vacuumed(0.05),
    )


def id_() -> Column[object]:
    return Column("id", Uuid, primary_key=True)


def time_(name: str, *, required: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not required)


def created_at_() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


def ref_(name: str, target: str, *, required: bool = True) -> Column[object]:
    return Column(name, Uuid, ForeignKey(target, ondelete="CASCADE"), nullable=not required)
