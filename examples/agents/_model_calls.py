"""The model calls of a run, each counted once: by its provider's report, or by its length."""

from typing import Self

from arkloop.agents import AgentRun

#: About as providers count a text.
CHARACTERS_PER_TOKEN = 4


class ModelCalls:
    """The model calls of an execution, of which at most one is in progress.

    As a context manager it also counts a call that breaks off, since its provider bills it.
    """

    def __init__(self, run: AgentRun) -> None:
        self.are_over = False
        self._run = run
        self._sent: int | None = None  # characters of the call in progress
        self._received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.are_over = True
        if self._sent is not None and self._received:  # else it may have cost nothing
            self.end()

    def begin(self, *sent: str) -> None:
        """Begin a call with these texts."""
        self._sent, self._received = sum(map(len, sent)), 0

    def receive(self, text: str) -> None:
        """Count a piece of what the model writes: its text, its thinking or a call's arguments."""
        self._received += len(text)

    def end(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> None:
        """Count the call by the tokens that its provider reports; without any they are estimated.

        The input includes what was read from the cache and written to it, the output reasoning.
        """
        sent, self._sent = self._sent or 0, None
        if not input_tokens and not output_tokens:
            input_tokens = -(-sent // CHARACTERS_PER_TOKEN)
            output_tokens = -(-self._received // CHARACTERS_PER_TOKEN)
        self._run.cost(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            reasoning_tokens=reasoning_tokens,
        )
