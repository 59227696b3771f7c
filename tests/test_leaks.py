"""The search for secrets finds each kind wherever it may be left: so its silence says something."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.events.prompts import Encoder
from tests import leaks

#: A secret of each form, put together here: this file is no leak.
PLANTED = {
    "API key": "al_" + "a1B2c3D4e5F6" * 3,
    "client token": "alc_" + "eyJhbGciOiJIUzI1NiIsInR5cCI6ImN0In0",
    "JWT": ".".join(
        ("eyJhbGciOiJIUzI1NiIsInR5cCI6", "eyJzdWIiOiIwMWEyMGU1YS0y", "c2lnbmF0dXJlLW9m")
    ),
    "Authorization header": "'Authorization': 'Bearer " + "c2VjcmV0LW9m'",
    "webhook secret": "whsec_" + "A" * 43 + "=",
    "invitation": "ali_" + "b" * 43,
    "reset of a password": "alr_" + "c" * 43,
    "password in a URL": "postgresql://arkloop:" + "hunter22@db:5432/arkloop",
    "secret of a test": "canary-" + "5f1b0c",
}


@pytest.mark.parametrize("kind", leaks.FORMS)
def test_each_form_is_found(kind: str) -> None:
    """A secret in a line of a log is found; a word beside it is not."""
    line = f'{{"message": "asking with {PLANTED[kind]}", "level": "INFO"}}'.encode()

    assert kind in {leak.kind for leak in leaks.in_bytes(line, "log")}
    assert [] == leaks.in_bytes(
        b"al_ alc_ whsec_ Authorization: Bearer <token>, postgresql://db/a", "log"
    )


@pytest.mark.parametrize("kind", leaks.FORMS)
def test_a_secret_in_a_table_is_found(
    postgres: EmbeddedPostgres, new_database: Callable[[], str], kind: str
) -> None:
    """Its place is named; in the text of a user it is no leak, unless it is known by value."""
    name = make_url(new_database()).database or ""
    with psycopg.connect(leaks.plain(postgres.url_of(name))) as opened:
        opened.execute(
            "INSERT INTO orgs (id, name) VALUES (gen_random_uuid(), %s)", [PLANTED[kind]]
        )
    found = leaks.in_databases(postgres, only=name)

    assert (kind, f"{name}.orgs") in {(leak.kind, leak.where) for leak in found}
    with psycopg.connect(leaks.plain(postgres.url_of(name))) as opened:
        opened.execute("DELETE FROM orgs")
    assert [] == leaks.in_databases(postgres, only=name)


def test_a_secret_in_a_prompt_is_found(
    postgres: EmbeddedPostgres, new_database: Callable[[], str]
) -> None:
    """Where it is compressed, and where only the prompt before it has it: by value alone."""
    name = make_url(new_database()).database or ""
    encoder = Encoder()
    bodies = [b"Be brief. " * 9, b"Be brief. " * 9 + PLANTED["API key"].encode()]
    stored = b"".join(encoder.encode({}, body) for body in bodies)
    with psycopg.connect(leaks.plain(postgres.url_of(name))) as opened:
        opened.execute(
            "INSERT INTO run_events (run_id, seq, type, payload, prompts)"
            " VALUES (gen_random_uuid(), 1, 'x', '{}', %s)",
            [stored],
        )
    known = [("key", PLANTED["API key"].encode())]

    assert [] == leaks.in_databases(postgres, only=name)
    assert [f"key in {name}.run_events"] == list(
        map(str, leaks.in_databases(postgres, known, only=name))
    )


def test_a_secret_in_redis_is_found(redis_url: str) -> None:
    """It is found in a key, a value and a field; in a stream, which has the text of users, by value
    alone.
    """
    store = redis.Redis.from_url(redis_url)
    secret = PLANTED["API key"]
    store.set("leak:value", secret)
    store.hset("leak:hash", "field", secret)
    store.rpush("leak:list", secret)
    store.xadd("leak:stream", {"data": secret})
    store.set(f"leak:{secret}", "x")
    try:
        forms = {leak.where.partition("leak:")[2] for leak in leaks.in_redis(redis_url)}
        values = {leak.where for leak in leaks.in_redis(redis_url, [("key", secret.encode())])}
    finally:
        store.delete("leak:value", "leak:hash", "leak:list", "leak:stream", f"leak:{secret}")
        store.close()

    assert {"value", "hash", "list", secret} <= forms
    assert "stream" not in forms and "Redis, leak:stream" in values


def test_a_secret_in_a_log_is_found(tmp_path: Path) -> None:
    """Logs of all processes below the folder are searched, for forms and for values."""
    (tmp_path / "web").mkdir()
    log = tmp_path / "web" / "stderr.log"
    log.write_text(f"GET /v1/me?key={PLANTED['API key']} p4ssw0rd")
    found = leaks.in_logs(tmp_path, [("password", b"p4ssw0rd")])
    log.unlink()  # or it would be found at the end, with `--leaks`

    by_form, by_value = sorted(map(str, found))
    assert "API key in web/stderr.log, after 'GET /v1/me?key='" == by_form
    assert "password in web/stderr.log" == by_value
    assert PLANTED["API key"] not in by_form
