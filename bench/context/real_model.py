"""A conversation of dense texts with the real local model, whose tokens nobody here counts."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from arkloop.cli.dev import local_model
from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from arkloop.worker.contract.messages import Chunk, ModelRequest, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import Provider
from arkloop.worker.providers.output_modes import OutputMode
from bench.context.talk import Talk

_ANSWER_TOKENS = 40


@dataclass
class RealVendor:
    """The provider of a real server; keeps what its calls reported and how often it refused."""

    provider: Provider
    usages: list[Usage] = field(default_factory=list)
    refused: int = 0

    @property
    def settings(self) -> Collection[str]:
        """The model settings that it supports."""
        return self.provider.settings

    def output_mode(self, schema: Mapping[str, Any], *, has_tools: bool) -> OutputMode:
        return self.provider.output_mode(schema, has_tools=has_tools)

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        try:
            for chunk in self.provider.stream(request, stop):
                if isinstance(chunk, TurnEnd) and chunk.usage is not None:
                    self.usages.append(chunk.usage)
                yield chunk
        except ProviderError as error:
            self.refused += error.too_large is not None
            raise

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        return self.provider.estimate(request, output)

    def worst_case(self, request: ModelRequest) -> Usage:
        return self.provider.worst_case(request)

    def close(self) -> None:
        self.provider.close()


def dense_thread(
    url: str, text: Callable[[random.Random], str], turns: int
) -> tuple[int, int, int]:
    """Hold a conversation of such texts; return answers, refusals and the most input tokens.

    The route says nothing of the model's size.
    """
    random_ = random.Random(1)
    route = Route(
        id="real",
        provider="openai",
        model=local_model.MODEL,
        base_url=f"{url}/v1",
        api_key="none",
        prices=Prices(),
    )
    vendor = RealVendor(providers.load(route, faults=False))
    persona = Persona(
        key="t", version="1", system_prompt="Note it.", max_output_tokens=_ANSWER_TOKENS
    )
    talk = Talk(vendor, {}, persona)
    answers = sum(bool(talk.ask(text(random_))) for _ in range(turns))
    vendor.close()
    return answers, vendor.refused, max(usage.input_tokens for usage in vendor.usages)


@contextmanager
def served() -> Iterator[str]:
    """Serve the local model, as `arkloop dev` does; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "arkloop.cli.dev.local_model", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while not _is_ready(url):
                if server.poll() is not None:
                    raise SystemExit("The local model did not start.")
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", trust_env=False).is_success
    except httpx2.HTTPError:
        return False
