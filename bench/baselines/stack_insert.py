"""The same INSERT by what the service is built of: Flask, and a transaction of SQLAlchemy.

gunicorn --worker-class gevent "bench.baselines.stack_insert:create_app()"
"""

import os

from flask import Flask, Response, jsonify, request
from sqlalchemy import create_engine, text

from bench.baselines.bare_insert import POOL_SIZE


def create_app() -> Flask:
    """Create an application: 201 with the id of the row that holds the request's body."""
    url = os.environ["BENCH_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=0)
    insert = text("INSERT INTO bench_bare_inserts (body) VALUES (:body) RETURNING id")
    app = Flask("bench-stack", static_folder=None)

    @app.post("/")
    def create() -> tuple[Response, int]:
        with engine.begin() as sql:
            row_id = sql.scalar(insert, {"body": request.get_data()})
        return jsonify({"id": str(row_id)}), 201

    return app
