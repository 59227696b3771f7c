"""Alembic's entry point; `arkloop migrate` passes the connection in."""

from alembic import context

from arkloop.shared.storage.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with: arkloop migrate")
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
