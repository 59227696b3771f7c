"""The wheel in a product's own environment: no checkout, and packages with the same names."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from arkloop.cli.dev.dev import read_procfile
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_server import free_port
from tests.caller import Caller
from tests.system import register
from tests.waiting import eventually
from tests.web_server import answers

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/plugins.md"
PACKAGES = ("api", "arkloop", "cli", "migrations", "shared", "worker")
FILES = {
    "api/__init__.py": "",
    "api/models.py": "PRICES = {'tea': '3 EUR'}\n",
    "shared/__init__.py": "raise RuntimeError('this belongs to the product')\n",
    "plugins/tools/price.py": (
        '"""Prices."""\n'
        "from api.models import PRICES\n"
        "from arkloop.tools import CallInfo, ToolContext, tool\n"
        "@tool(idempotent=True)\n"
        "def price(context: ToolContext, sku: str, info: CallInfo) -> str:\n"
        '    "Look up the price of an article."\n'
        "    return f'{PRICES[sku]} for {info.end_user_id}'\n"
    ),
    "plugins/providers/parrot.py": (
        '"""A model that repeats the last message."""\n'
        "from arkloop.worker.providers.scripted_provider import ScriptedProvider\n"
        "def build(route, *, faults, egress):\n"
        "    return ScriptedProvider()\n"
    ),
    "plugins/agents/clerk.py": (
        "def clerk(run):\n    return f'You said: {run.messages[-1][\"content\"]}'\n"
    ),
    "plugins/personas/shop@1.yaml": "route_id: parrot\ntools: [price]\n",
    "plugins/personas/clerk@1.yaml": "agent: clerk\n",
    "routes.yaml": (
        "routes: [{id: parrot, provider: parrot, model: p-1, prices: {input: 0, output: 0}}]\n"
    ),
}
#: A program with tools, an agent and their tests, for a checker of types.
TYPED = '''
from arkloop.agents import AgentRun
from arkloop.providers import Provider
from arkloop.testing import call, play, play_agent
from arkloop.tools import ToolContext, tool

@tool(idempotent=True)
def price(context: ToolContext, sku: str) -> str:
    """Look up the price of an article."""
    return sku

@tool(idempotent=False)
async def ship(context: ToolContext, sku: str) -> str:
    """Ship an article."""
    return sku

def clerk(run: AgentRun) -> str:
    return run.run_id

def test_all(provider: Provider) -> None:
    output: str = call(price, {"sku": "tea"}).output
    status: str = play("Hi.", tools=[price, ship], provider=provider).status
    assert output == status == play_agent(clerk, "Hi.").status
    call(price, 1)
'''


@dataclass(frozen=True)
class Product:
    """A product's folder, and the variables with which its environment's commands are found."""

    folder: Path
    environ: dict[str, str]

    def execute(self, *argv: str) -> str:
        done = subprocess.run(
            argv, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=150
        )
        assert 0 == done.returncode, f"{done.stderr}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def running(self, line: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a line of the Procfile, as a supervisor does."""
        log = self.folder / "log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", line],
                cwd=self.folder,
                env=self.environ,
                stdout=output,
                stderr=output,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The wheel, built from a copy: builds leave files in their source."""
    folder = tmp_path / "wheel"
    for name in PACKAGES:
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=no_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE", "Procfile"):
        shutil.copy(ROOT / name, folder / "source")
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    argv += ["--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(argv, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture
def product(wheel: Path, postgres: EmbeddedPostgres, redis_url: str, tmp_path: Path) -> Product:
    """A clean environment with the wheel alone; its dependencies are those of this one."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = tmp_path / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    site.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib"))
    argv = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    argv += ["--no-index", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run(argv, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    gunicorn = python.with_name("gunicorn")
    gunicorn.write_text(f'#!/bin/sh\nexec {python} -m gunicorn "$@"\n')
    gunicorn.chmod(0o755)
    folder = tmp_path / "product"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    database = f"product_{secrets.token_hex(6)}"
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        sql.execute(text(f"CREATE DATABASE {database} TEMPLATE template0"))
    engine.dispose()
    environ = {
        "PATH": f"{python.parent}{os.pathsep}{os.defpath}",
        "ARKLOOP_DATABASE_URL": postgres.url_of(database),
        "ARKLOOP_REDIS_URL": redis_url,
        "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
        "ARKLOOP_PORT": str(free_port()),
        "ARKLOOP_API_WORKERS": "1",
        "ARKLOOP_WORKER_CONCURRENCY": "10",
        "ARKLOOP_ROUTES": "routes.yaml",
        "ARKLOOP_REGISTRATION": "open",
        "ARKLOOP_NEW_ORG_CREDITS": "1000",
        "ARKLOOP_PLUGINS": "plugins",
    }
    return Product(folder, environ)


def test_a_product_runs_the_service_from_the_wheel(product: Product) -> None:
    """The lines of the guide start in the product's folder, next to its own packages, and runs
    use a tool that imports them, a provider and an agent.
    """
    [lines] = re.findall(r"```text\n(release: .*?)```", PAGE.read_text(), re.DOTALL)
    product.folder.joinpath("Procfile").write_text(lines)
    release, processes = read_procfile(product.folder / "Procfile")
    assert lines == (ROOT / "Procfile").read_text()
    where = "import arkloop.shared.config as c; print(c.__file__)"
    assert "/venv/" in product.execute("python", "-c", where)
    assert version("arkloop-runs") in product.execute("arkloop", "--version")
    in_wheel = "from arkloop.cli.dev.dev import PROCFILE; print(PROCFILE.read_text(), end='')"
    assert lines == product.execute("python", "-c", in_wheel), "arkloop dev reads it"
    assert release is not None
    product.execute("/bin/sh", "-c", release)

    url = f"http://127.0.0.1:{product.environ['ARKLOOP_PORT']}"
    with ExitStack() as stack:
        started = [stack.enter_context(product.running(line)) for line in processes.values()]
        log = product.folder / "log"
        eventually(lambda: answers(url) or any(p.poll() is not None for p in started), seconds=200)
        assert [None, None] == [process.poll() for process in started], log.read_text()
        user = register(url)
        call = '{"script": [{"tool": "price", "args": {"sku": "tea"}}]}'
        ended = [
            ended_run(user, message, persona_id)
            for message, persona_id in ((call, "shop"), ("Hello.", "clerk"))
        ]
        events = user.http.get(f"/v1/runs/{ended[0]['run_id']}/events?follow=false").text

    assert ["completed", "completed"] == [run["status"] for run in ended], log.read_text()
    assert '"output":"3 EUR for anna"' in events
    assert ["parrot", "You said: Hello."] == [ended[0]["route_id"], ended[1]["output"]]


def test_a_product_is_checked_against_the_types_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """mypy --strict finds the types of each module for authors, and what does not fit them."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "program.py").write_text(TYPED)
    argv = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]

    checked = subprocess.run(
        [*argv, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=300,
    )

    [error] = checked.stdout.splitlines()
    assert 'Argument 2 to "call" has incompatible type "int"' in error, checked.stderr


def ended_run(user: Caller, message: str, persona_id: str) -> dict[str, Any]:
    """Make a run and return it when it has ended."""
    body = {"message": message, "persona_id": persona_id, "end_user_id": "anna"}
    run_id = user.made("/v1/runs", body)["run_id"]
    return user.until(run_id, "status", "completed", "failed", seconds=200)
