"""The warm-up of a process: what its first requests would be slower by than its thousandth.

The first execution of a statement compiles it, and lets the backend in Postgres read its catalog.
From the fourth on it is prepared, and five later Postgres keeps a plan for all values. All of it
happens here, with ids that do not exist: nothing is found, and nothing is written.
"""

import logging
import time
from contextlib import ExitStack, suppress
from uuid import UUID

from flask import Flask

from arkloop.api.auth.bearer import Authenticator
from arkloop.api.streaming import stream_pages
from arkloop.api.streaming.run_heads import RunHeads
from arkloop.shared.accounts import api_keys
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.errors import RunNotFound, Unavailable
from arkloop.shared.ids import new_trace_id
from arkloop.shared.runs import queries
from arkloop.shared.runs.new_runs import NewRun, create_within_limits
from arkloop.shared.storage import postgres
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

#: The id of no user, org, thread or run.
NOBODY = UUID(int=0)
_ACTOR = Actor(
    org_id=NOBODY, user_id=NOBODY, role="member", permissions=PERMISSIONS_OF_ROLE["member"]
)
#: Of the pool of the process; the next ones are opened when requests need them.
CONNECTIONS = 2
#: PostgreSQL's manual, "PREPARE": the first five executions have plans of their own.
EXECUTIONS = postgres.PREPARED_AFTER + 1 + 5
#: After it the process serves, warm or not: of a slow Postgres its requests know what to say.
SECONDS = 2.0


def warm_up(app: Flask) -> None:
    """Execute what a client's first requests do: check a key, create a run, read and follow it.

    It takes `SECONDS` at most, and longer only by a statement that has begun. Where it fails the
    process serves all the same, and its requests say why they fail.
    """
    connections: Connections = app.extensions["arkloop"]
    ends_at = time.monotonic() + SECONDS
    try:
        with connections.reading() as sql:
            api_keys.find_by_id(sql, NOBODY)
            # Held meanwhile, a connection through a pooler would keep one of the server's busy.
            most = 1 if postgres.is_pooled(sql) else CONNECTIONS
        new = _new_run(app)
        with ExitStack() as held:
            for _ in range(min(most, connections.settings.database_pool_size)):
                _execute(connections, new, ends_at)
                held.enter_context(connections.reading())  # the pool lends the last one used
    except Unavailable:
        pass  # Postgres is out of reach, or not migrated: `/readyz` says so
    except Exception:
        log.warning("the first requests will be slow: the warm-up failed", exc_info=True)


def _new_run(app: Flask) -> NewRun:
    """Read what each request reads before it creates a run, and return a run of nobody's."""
    authenticator: Authenticator = app.extensions["arkloop.auth"]
    catalog: Catalog = app.extensions["arkloop.catalog"]
    return NewRun(
        actor=authenticator.with_limits(_ACTOR),
        thread_id=NOBODY,
        persona=catalog.persona(NOBODY, None),
        route=Route(id="none", provider="scripted", model="none"),
        trace_id=new_trace_id(),
    )


def _execute(connections: Connections, new: NewRun, ends_at: float) -> None:
    heads = RunHeads(connections)
    for _ in range(EXECUTIONS):
        if time.monotonic() > ends_at:
            return
        with connections.of(NOBODY).statement() as tx:
            create_within_limits(tx, [new])
        heads.read([NOBODY])
        with connections.reading() as sql:
            stream_pages.from_table(sql, NOBODY, 0, 1, named=False)
            with suppress(RunNotFound):
                queries.get(sql, new.actor, NOBODY)
