"""Secrets of twelve kinds, used as in production, are in nothing that is left behind."""

import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import make_url

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from tests import leaks
from tests.caller import Caller, client, script
from tests.clients import PASSWORD
from tests.system import System
from tests.tool_receiver import Reply, ToolReceiver
from tests.waiting import eventually

pytestmark = pytest.mark.processes


def planted() -> str:
    return f"canary-{secrets.token_hex(12)}"


@pytest.fixture
def receiver() -> Iterator[ToolReceiver]:
    """A server of the org that refuses all that it is asked for."""
    with ToolReceiver(lambda _: Reply({"error": "no"}, status=401)) as made:
        yield made


def used(owner: Caller, receiver: ToolReceiver, system: System) -> dict[str, str]:
    """Use a secret of each kind, where it works and where it does not; returns them by kind."""
    kinds = {name: planted() for name in ("provider key", "MCP header", "tool credentials")}
    provider = {"name": "acme", "kind": "openai", "base_url": f"{receiver.url}/v1"}
    models = [{"model": "gpt-x"}]
    made = owner.made(
        "/v1/llm-providers", {**provider, "api_key": kinds["provider key"], "models": models}
    )
    headers = {"X-Token": kinds["MCP header"]}
    owner.made(
        "/v1/mcp-configs", {"name": "vault", "url": f"{receiver.url}/mcp", "headers": headers}
    )
    tool = {"name": "refund", "description": "Refund.", "url": f"{receiver.url}/refund"}
    tool |= {"headers": {"X-Key": kinds["tool credentials"]}}  # type: ignore[dict-item]  # nested
    kinds["tool's signing secret"] = owner.made("/v1/tools", tool)["signing_secret"]
    owner.made("/v1/personas", {"key": "clerk", "tools": ["refund"]})
    hook = owner.made("/v1/webhook-endpoints", {"url": f"{receiver.url}/hook"})
    kinds["webhook secret"] = hook["signing_secret"]
    failed = owner.run("Hello", route_id=made["models"][0]["route_id"])
    message = script({"tool": "refund", "args": {}}, {"say": "done"})
    ended = owner.made("/v1/runs", {"message": message, "persona_id": "clerk"})["run_id"]
    for run_id in (failed, ended):
        eventually(lambda id_=run_id: owner.get_run(id_)["status"] != "running")

    _, kinds["API key"] = owner.api_key(scopes=["data.runs.read"])
    body = {"end_user_id": "ann", "scopes": ["data.runs.read"]}
    kinds["client token"] = owner.made("/v1/client-tokens", body)["token"]
    kinds["access token (JWT)"] = owner.token
    http = client(owner.url)
    http.post("/v1/auth/login", json={"login": owner.login, "password": PASSWORD})
    kinds["refresh token"] = http.cookies["arkloop_refresh_token"]
    kinds["Authorization header"] = wrong = planted()
    for kind in ("API key", "client token", "access token (JWT)"):
        caller = owner.at(token=kinds[kind])
        for path in ("/v1/me", "/v1/runs?limit=x", f"/v1/runs?ticket={kinds[kind]}", "/nothing"):
            caller.http.get(path)
        caller.http.post("/v1/threads", content=b"{broken")
    for scheme in ("Bearer", "Basic", "Digest"):
        owner.http.get("/v1/me", headers={"Authorization": f"{scheme} {wrong}"})
    kinds["encryption key"] = system.environ["ARKLOOP_ENCRYPTION_KEY"]
    kinds["signing key"] = system.environ["ARKLOOP_JWT_SECRET"]
    kinds["Redis password"] = str(make_url(system.environ["ARKLOOP_REDIS_URL"]).password)
    kinds["database password"] = planted()
    url = make_url(system.environ["ARKLOOP_DATABASE_URL"]).set(password=kinds["database password"])
    of_database = {"ARKLOOP_DATABASE_URL": url.render_as_string(hide_password=False)}
    with system.one_more_web_server(**of_database) as server:
        client(server.url, owner.token).get("/v1/runs")
    return kinds


def shown(owner: Caller) -> bytes:
    """Return what the org sees of what has happened: errors, events, lists, the audit log."""
    paths = ["/v1/runs", "/v1/llm-providers", "/v1/mcp-configs", "/v1/tools", "/v1/api-keys"]
    paths += ["/v1/webhook-endpoints", "/v1/audit-logs", "/v1/threads", "/readyz", "/metrics"]
    runs: list[dict[str, Any]] = owner.http.get("/v1/runs").json()
    for run in runs:
        paths += [f"/v1/runs/{run['run_id']}", f"/v1/threads/{run['thread_id']}/timeline"]
    texts = [owner.http.get(path).text for path in paths]
    for run in runs:
        with suppress(Exception):
            texts.append(str(owner.events(run["run_id"])))
    return "\n".join(texts).encode()


def test_secrets_stay_where_they_were_given(
    system: System, receiver: ToolReceiver, postgres: EmbeddedPostgres
) -> None:
    """Neither responses, events and errors nor logs, Redis and a dump of the database have one."""
    owner = system.caller()
    kinds = used(owner, receiver, system)
    values = [(f"planted {kind}", secret.encode()) for kind, secret in kinds.items()]
    database = make_url(system.environ["ARKLOOP_DATABASE_URL"]).database

    found = leaks.in_bytes(shown(owner), "responses", values)
    found += leaks.in_databases(postgres, values, only=database)
    found += leaks.in_redis(system.environ["ARKLOOP_REDIS_URL"], values)
    found += leaks.in_logs(system.folder, values)

    assert len(kinds) >= 12
    # Other tests use the same service.
    assert [] == sorted({str(leak) for leak in found if leak.kind.startswith("planted")})
    assert receiver.received, "nothing was sent to anybody"
