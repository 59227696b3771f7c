"""The modules that a process loads at its start, which cost memory and time."""

import gc
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import text

from arkloop import agents, providers, testing, tools
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.worker import providers as worker_providers
from tests.clients import User
from tests.waiting import eventually

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
ENVIRON = {
    "ARKLOOP_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    "ARKLOOP_REDIS_URL": "redis://127.0.0.1:1",
    "ARKLOOP_JWT_SECRET": "0" * 64,
    "ARKLOOP_SCRIPTED": "1",
}
#: For the command line and migrations alone; rich and mako load pygments too.
ELSEWHERE = {"alembic", "mako", "pygments", "rich", "arkloop.cli", "arkloop.migrations"}
SDK = {"openai", "pydantic", "httpx2"}
STORES = {"psycopg", "sqlalchemy", "redis", "celery", "kombu"}
HTTP = {"flask", "werkzeug", "marshmallow", "jwt", "argon2"}


@pytest.mark.parametrize(
    ("module", "needless"),
    [
        # The event types of AG-UI are Pydantic's.
        ("arkloop.api.app", ELSEWHERE | SDK - {"pydantic"} | {"arkloop.worker"}),
        # All tools are checked at the start: Pydantic makes their schemas, and one of them fetches.
        ("arkloop.worker.app", ELSEWHERE | SDK - {"httpx2", "pydantic"} | HTTP | {"arkloop.api"}),
        # Gunicorn's master: psycopg must not be loaded before gevent has patched what it forks.
        (
            "arkloop.api.gunicorn_conf",
            ELSEWHERE | SDK | STORES | HTTP | {"arkloop.api.app", "gevent", "yaml"},
        ),
        # It runs on machines that have neither store.
        ("arkloop.cli.serve.agents", STORES | HTTP | {"gevent", "alembic", "openai", "mcp"}),
        ("arkloop.cli.serve.tools", STORES | HTTP | {"gevent", "alembic", "openai", "mcp"}),
    ],
)
def test_a_process_starts_without_what_it_does_not_need(module: str, needless: set[str]) -> None:
    """Each of these costs some to dozens of MiB, and up to a third of a second."""
    assert set() == needless & _loaded(module)


def test_a_worker_has_loaded_its_providers_before_the_first_run() -> None:
    """A run that had to import the SDK would hold up every other run of the process meanwhile."""
    assert SDK <= _loaded("arkloop.worker.app", OPENAI_API_KEY="none")


def test_a_worker_loads_the_providers_that_orgs_have(
    settings: Settings, connections: Connections, alice: User
) -> None:
    """An SDK that no org needs would take a second of each start, and dozens of MiB.

    A kind that only a newer version knows keeps none of the others from being loaded.
    """
    body = {"kind": "openai", "api_key": "secret", "models": [{"model": "m"}]}
    for name in ("p", "newer"):
        assert 201 == alice.post("/v1/llm-providers", {"name": name, **body}).status_code
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE llm_providers SET kind = 'a_newer_one' WHERE name = 'newer'"))
    stores = {
        "ARKLOOP_DATABASE_URL": settings.database_url,
        "ARKLOOP_REDIS_URL": settings.redis_url,
        "ARKLOOP_ENCRYPTION_KEY": "0" * 64,
    }
    loaded = _loaded("arkloop.worker.app", "arkloop.worker.app._wait_for_schema()", **stores)

    assert {"openai"} == {"openai", "anthropic"} & loaded


def test_a_provider_of_a_later_org_is_loaded_by_its_first_run() -> None:
    """The SDK's objects are left out of every later garbage collection, as those of the start."""
    code = (
        "import gc, weakref; from arkloop.worker import providers;"
        "from arkloop.shared.catalog.model_routes import Route;"
        "route = Route(id='r', provider='openai', model='m', base_url='http://127.0.0.1:1');"
        "garbage = type('Garbage', (), {})(); garbage.itself = garbage;"
        "is_there = weakref.ref(garbage); del garbage;"
        "providers.load(route, faults=False).close(); gc.collect();"
        "print(gc.isenabled(), gc.get_freeze_count() > 50_000, is_there())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert "True True None\n" == done.stdout, done.stderr


def test_other_runs_continue_while_the_first_of_a_later_org_loads_its_provider() -> None:
    """An import that held them up would hold up the renewal of the lease on them, too."""
    code = (
        "from gevent import monkey; monkey.patch_all(); import gevent, sys, time;"
        "from arkloop.worker import providers;"
        "from arkloop.shared.catalog.model_routes import Route;"
        "route = Route(id='r', provider='openai', model='m', base_url='http://127.0.0.1:1');"
        "loading = gevent.spawn(providers.load, route, faults=False);"
        "steps = 0\n"
        "while not loading.dead: time.sleep(0.001); steps += 'openai' in sys.modules\n"
        "loading.get().close(); print(steps > 5)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert "True\n" == done.stdout, done.stderr


def test_runs_that_begin_together_wait_for_their_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second does not get the module that the first is still importing."""
    (tmp_path / "slow_provider.py").write_text(
        "import time; time.sleep(0.5)\ndef build(*args, **options): return 'built'"
    )
    monkeypatch.setattr(worker_providers, "__path__", [*worker_providers.__path__, str(tmp_path)])
    monkeypatch.setattr(gc, "freeze", lambda: None)  # of this process, which has other tests
    route = Route(id="r", provider="slow", model="m")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(worker_providers.load, route, faults=False)
        eventually(lambda: "arkloop.worker.providers.slow_provider" in sys.modules)
        second = pool.submit(worker_providers.load, route, faults=False)

    assert ["built", "built"] == [first.result(), second.result()]


def test_a_worker_with_a_broken_tool_does_not_start() -> None:
    """It says which, instead of failing every run of a persona that has it."""
    code = (
        "from arkloop.shared.catalog import personas; personas.BUILTIN_TOOLS += ('nonsense',);"
        "import arkloop.worker.app"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRON, capture_output=True, text=True
    )

    assert 1 == done.returncode
    assert "A tool or plugin cannot be used:\nUnknown tool 'nonsense'; available:" in done.stderr


def test_a_worker_with_a_broken_plugin_does_not_start(tmp_path: Path) -> None:
    """It names the file and the reason, whatever kind of plugin it is."""
    file = tmp_path / "agents" / "clerk.py"
    file.parent.mkdir()
    file.write_text("import no_such_module")
    done = subprocess.run(
        [sys.executable, "-c", "import arkloop.worker.app"],
        cwd=ROOT,
        env={**ENVIRON, "ARKLOOP_PLUGINS": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert 1 == done.returncode
    assert f"{file}: ModuleNotFoundError: No module named 'no_such_module'" in done.stderr


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (tools, "CallInfo Tool ToolContext ToolFailed ToolOutput cpu_slice tool"),
        (testing, "PlayedRun Result call play play_agent"),
        (agents, "UNKNOWN_OUTCOME AgentRun Call Message RunStopped"),
        (
            providers,
            "AbortableClient AssistantMessage CallDelta Chunk Message ModelRequest OutputMode"
            " Policy Provider ProviderError Route StopSignal TextDelta ThinkingDelta ToolCall"
            " ToolMessage TurnEnd Usage UsageUpdate UserMessage clean http_errors plain"
            " token_counts",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_names_that_authors_import_stay(module: ModuleType, names: str) -> None:
    """Plugins of others import them: names are added, and never removed."""
    assert set() == {*names.split()} - {*module.__all__}
    assert all(hasattr(module, name) for name in module.__all__)


def test_guides_import_only_the_names_that_stay() -> None:
    """A program that follows a guide works with later versions, too."""
    internal = re.compile(
        r"^ *(?:from|import) arkloop\.(?:api|cli|shared|worker)\b.*", re.MULTILINE
    )
    found = {
        page.name: internal.findall(page.read_text())
        for folder in ("how-to", "tutorial")
        for page in (ROOT / "docs" / folder).glob("*.md")
    }

    assert {} == {name: lines for name, lines in found.items() if lines}


def _loaded(module: str, then: str = "", **environ: str) -> set[str]:
    code = f"import sys, {module}; {then or 'pass'}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**ENVIRON, **environ},
        capture_output=True,
        check=True,
        text=True,
    )
    return set(done.stdout.split())
