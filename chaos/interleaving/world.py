"""The world of the interleavings: a database of its own, an org with two clients, and a worker."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from sqlalchemy import create_engine, insert, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.accounts import accounts
from arkloop.shared.actors import PERMISSIONS_OF_ROLE
from arkloop.shared.actors import Actor as User
from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.tables.runs import workers
from arkloop.shared.storage.tables.threads import threads
from chaos.interleaving.actor import PATIENT

#: What is lost with the machine may be lost: nothing of it is looked at again.
UNSAFE = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "jit": "off",
    "deadlock_timeout": "200ms",
    # Planning takes longer than executing where each table has some rows.
    "plan_cache_mode": "force_generic_plan",
    "autovacuum": "off",
    "track_counts": "off",
}


@dataclass(frozen=True, slots=True)
class World:
    """The people and processes that every interleaving has."""

    connections: Connections
    org_id: UUID
    users: tuple[User, User]
    worker_id: UUID

    @classmethod
    def make(cls, connections: Connections) -> "World":
        """Make an org in an empty database."""
        with connections.transaction() as tx:
            org_id = accounts.create_org(tx, "interleavings")
            users = []
            for number in (1, 2):
                user_id = accounts.create_user(
                    tx,
                    org_id=org_id,
                    role="owner",
                    login=f"client{number}-{org_id.hex[-6:]}",
                    email=f"client{number}-{org_id.hex[-6:]}@example.com",
                    password_hash="-",
                )
                permissions = PERMISSIONS_OF_ROLE["owner"]
                users.append(
                    User(org_id=org_id, user_id=user_id, role="owner", permissions=permissions)
                )
            worker_id = new_id()
            tx.sql.execute(
                insert(workers).values(
                    id=worker_id,
                    hostname="-",
                    pid=1,
                    lock_key=1,
                    seen_at=text("now() + interval '1 day'"),
                )
            )
        return cls(connections, org_id, (users[0], users[1]), worker_id)

    def catalog(self, connections: Connections) -> Catalog:
        return Catalog(connections, model_routes.load(connections.settings))

    def thread(self) -> UUID:
        """Insert a thread."""
        thread_id = new_id()
        with self.connections.statement() as tx:
            values = {"id": thread_id, "org_id": self.org_id}
            tx.sql.execute(
                insert(threads).values(**values, created_by_user_id=self.users[0].user_id)
            )
        return thread_id

    def empty(self) -> None:
        """Remove all threads, with everything in them."""
        with self.connections.transaction() as tx:
            tx.sql.execute(text(_EMPTY))


#: Events and usage name their runs, but do not go with them.
_EMPTY = "TRUNCATE threads, run_events, run_usage, forgotten_events CASCADE"


@contextmanager
def database() -> Iterator[Connections]:
    """Start a Postgres; no process listens for notifications by Redis."""
    settings = Settings(
        database_url="",
        redis_url="redis://",
        broker_url="redis://",
        jwt_secret="-",
        scripted=True,
        lease_seconds=300,  # in a part of it transactions must end
        database_pool_size=4,
    )
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-interleavings-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", options=UNSAFE) as postgres,
    ):
        engine = create_engine(postgres.url)
        schema.migrate(engine)
        engine.dispose()
        connections = connect(
            replace(settings, database_url=postgres.url),
            application="observer",
            timeouts=PATIENT,
            send=lambda *_: None,
        )
        try:
            yield connections
        finally:
            connections.close()
