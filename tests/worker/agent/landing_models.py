"""Models that bring a run to its limits."""

from collections.abc import Iterator

from arkloop.worker.contract.messages import Chunk, ModelRequest
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.agent.looping_models import Model


class LastWords(Model):
    """The scripted model, which answers its last call with these chunks, or fails it."""

    def __init__(self, *chunks: Chunk | ProviderError) -> None:
        super().__init__()
        self._chunks = chunks

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        if not request.answer_only:
            yield from super().stream(request, stop)
            return
        self.requests.append(request)
        for chunk in self._chunks:
            if isinstance(chunk, ProviderError):
                raise chunk
            yield chunk
