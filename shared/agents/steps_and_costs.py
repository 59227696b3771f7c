"""The methods of `AgentRun` that are the same wherever its agent runs."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from arkloop.shared.agents.agent_run import DelegatedTask, SubRunResult
from arkloop.shared.events.usage import Usage

log = logging.getLogger(__name__)


class StepsAndCosts(ABC):
    """Steps, sub-runs and model calls of a run, for a class that records them."""

    @abstractmethod
    def _begin_step(
        self, name: str, arguments: Any, tool_call_id: str, *, is_idempotent: bool
    ) -> str | None:
        """Record that the tool is called; return its output if it must not be."""

    @abstractmethod
    def tool_result(self, tool_call_id: str, output: str, *, is_error: bool = False) -> None:
        """Record the result of a call."""

    @abstractmethod
    def _add_cost(self, usd: float | None, model: str | None, usage: Usage) -> None:
        """Count a model call; without `usd` its tokens are priced."""

    @abstractmethod
    def delegate_all(self, tasks: Sequence[DelegatedTask]) -> list[SubRunResult]:
        """Give out tasks; return the results in their order."""

    def delegate(self, persona: str, task: str, *, tool_call_id: str) -> SubRunResult:
        """Give a task to a run of another persona, and return its result."""
        given = DelegatedTask(persona=persona, task=task, tool_call_id=tool_call_id)
        [result] = self.delegate_all([given])
        return result

    def step(
        self,
        name: str,
        arguments: Any,
        function: Callable[[], Any],
        *,
        tool_call_id: str,
        idempotent: bool = False,
    ) -> str:
        """Call the function as the tool call of this id, at most once."""
        known = self._begin_step(name, arguments, tool_call_id, is_idempotent=idempotent)
        if known is not None:
            return known
        is_error = False
        try:
            output = str(function())
        except Exception as error:
            # Its text may hold secrets, such as the URL of a database: it goes to the log alone.
            log.exception("tool %s raised in call %s", name, tool_call_id)
            output, is_error = f"The tool failed: {type(error).__name__}.", True
        self.tool_result(tool_call_id, output, is_error=is_error)
        return output

    def cost(
        self,
        usd: float | None = None,
        *,
        model: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> None:
        """Count a model call."""
        usage = Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            reasoning_tokens=reasoning_tokens,
        )
        self._add_cost(usd, model, usage)
