"""The least that creating a run can be: gunicorn with gevent, one INSERT and a commit a request.

    gunicorn --worker-class gevent "bench.baselines.bare_insert:create_app()"

`BENCH_DATABASE_URL` names the Postgres, in which the starter of this makes the table.
"""

import os
import queue
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

#: Connections of a process: the service's default.
POOL_SIZE = 10
TABLE = """
CREATE TABLE IF NOT EXISTS bench_bare_inserts (
    id uuid PRIMARY KEY DEFAULT uuidv7(), body bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def create_app() -> Application:
    """Create a WSGI application: 201 with the id of the row that holds the request's body."""
    url = os.environ["BENCH_DATABASE_URL"]
    pool: queue.LifoQueue[psycopg.Connection[Any] | None] = queue.LifoQueue()
    for _ in range(POOL_SIZE):
        pool.put(None)  # opened when it is needed

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        sql = pool.get()
        try:
            if sql is None:
                sql = psycopg.connect(url, autocommit=True)
            row = sql.execute(
                "INSERT INTO bench_bare_inserts (body) VALUES (%s) RETURNING id", [body]
            ).fetchone()
        finally:
            pool.put(sql)
        assert row is not None
        answer = b'{"id":"%s"}' % str(row[0]).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]
        start_response("201 Created", headers)
        return [answer]

    return app
