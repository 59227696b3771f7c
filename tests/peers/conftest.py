"""Servers that others wrote, started where a test asks for them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import httpx2
import pytest

from arkloop.cli.dev import local_model
from arkloop.cli.dev.embedded_server import free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".cache" / "peers" / "node_modules"
FIXTURES = Path(__file__).with_name("aimock_fixtures.json")


def installed(name: str) -> Path:
    """Return a program of `tests/peers/package.json`; skips the test without it, or fails in CI."""
    program = INSTALLED / ".bin" / name
    if program.exists() and shutil.which("node"):
        return program
    missing(name)


def missing(name: str) -> NoReturn:
    """Skip the test that needs a program, or fail it in CI."""
    reason = f"{name} is not installed: run `make test-peers`"
    if os.environ.get("NEED_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def aimock() -> Iterator[str]:
    """The address of aimock, a mock of the vendors' APIs that plays `aimock_fixtures.json`."""
    port = free_port()
    command = ["node", installed("llmock"), "-p", str(port), "-f", FIXTURES, "--strict"]
    yield from serving([str(part) for part in command], f"http://127.0.0.1:{port}")


@pytest.fixture(scope="session")
def real_model() -> Iterator[str]:
    """The address of the local model, started as `arkloop dev` does."""
    if not local_model.installed():
        pytest.skip("no wheel of the local model for this machine")
    port = free_port()
    command = [sys.executable, "-m", "arkloop.cli.dev.local_model", "--port", str(port)]
    yield from serving(command, f"http://127.0.0.1:{port}", "/health")


def serving(
    command: list[str], url: str, ready: str = "/", environ: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server and yield its address; ends it afterwards."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, stdout=silent, stderr=silent, env=environ)
    try:
        eventually(lambda: _answers(url + ready), seconds=150)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code < 500
    except httpx2.HTTPError:
        return False
