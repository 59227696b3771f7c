"""A model call to a server, as a run makes it, and its result."""

from dataclasses import dataclass

from arkloop.shared.catalog.model_routes import IDLE_SECONDS, Route
from arkloop.shared.catalog.prices import Prices
from arkloop.worker import providers
from arkloop.worker.agent.model_call import Reply, call_model
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import (
    Chunk,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import load
from tests.worker.recorded_run import RecordedRun

TOOLS = [tool.spec for tool in load(["calculator", "current_time"]).values()]


@dataclass(frozen=True, slots=True)
class Server:
    """The server at which a provider finds its vendor."""

    provider: str
    url: str | None
    model: str = "m"
    max_output_tokens: int = 256
    api: str | None = None
    idle_seconds: float = IDLE_SECONDS

    @property
    def route(self) -> Route:
        return Route(
            id=f"{self.provider}-route",
            provider=self.provider,
            model=self.model,
            base_url=self.url,
            api=self.api,
            idle_seconds=self.idle_seconds,
            api_key="test-key",
            prices=Prices(),
            max_output_tokens=self.max_output_tokens,
        )

    def request(self, *messages: str | Message, tools: bool = False, turn: int = 0) -> ModelRequest:
        """Build a request; plain text is the user's."""
        return ModelRequest(
            model=self.model,
            system_prompt="Be brief.",
            messages=[UserMessage(m) if isinstance(m, str) else m for m in messages],
            tools=TOOLS if tools else (),
            max_output_tokens=self.max_output_tokens,
            turn=turn,
        )

    def one_try(self, request: ModelRequest) -> list[Chunk]:
        """Make one try. Raises: ProviderError."""
        provider = providers.load(self.route, faults=False)
        try:
            return list(provider.stream(request, StopSignal()))
        finally:
            provider.close()

    def call(self, request: ModelRequest) -> tuple[Reply, "PatientRun"]:
        """Call with the retries of a run.

        Raises:
            ProviderError: of the last try.
        """
        run = PatientRun()
        chain = RouteChain([self.route], lambda route: providers.load(route, faults=False))
        try:
            return call_model(chain, lambda route: request, run, run.stop), run
        finally:
            chain.close()


class PatientRun(RecordedRun):
    """Its pauses take time: the server measures them, from when it has noted its response."""

    def wait(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.stop.wait(seconds + 0.3)  # the response may come that much before it is noted


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta))


def thinking_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, ThinkingDelta))


def end_of(chunks: list[Chunk]) -> TurnEnd:
    end = chunks[-1]
    assert isinstance(end, TurnEnd)
    return end
