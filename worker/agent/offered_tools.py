"""The tools that a model is offered: of those to be searched, the ones that the run has found."""

from collections.abc import Mapping, Sequence

from arkloop.worker.agent import context_window
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.tools import search_tools

#: Characters; the schema of a shorter tool takes less than two milliseconds.
_LONG = 4_000


class OfferedTools:
    """The tools of an agent, in their portable form and the order in which its requests have them.

    What is added to a request comes last, so that the beginning of the list stays the same. It
    follows from the run's `turns` alone: a resumed run is offered the same tools.
    """

    def __init__(self, agent: Agent, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self._searchable: Mapping[str, ToolSpec] = agent.searchable
        left_out = {context_window.READ_RESULT, *agent.searchable}
        if not agent.searchable:
            left_out.add(search_tools.NAME)
        specs = {name: tool.spec for name, tool in agent.tools.items()}
        self._always = [_portable(spec) for name, spec in specs.items() if name not in left_out]
        reader = specs.get(context_window.READ_RESULT)
        self._reader = [] if reader is None else [reader.portable]
        self._always_tokens = context_window.tokens_of_frame("", self._always)
        self.reader_tokens = context_window.tokens_of_frame("", self._reader)

    @property
    def tokens(self) -> int:
        """The estimated tokens of all but the tool that reads results."""
        return self._always_tokens + context_window.tokens_of_frame("", self._found())

    def specs(self, *, is_any_cut: bool) -> list[ToolSpec]:
        """Return the tools; with a cut result also the one that reads results."""
        reader = self._reader if is_any_cut else []
        return [*self._always, *reader, *self._found()]

    def _found(self) -> list[ToolSpec]:
        """Return the tools that the run has found so far, or has called without a search."""
        if not self._searchable:
            return []
        names: dict[str, None] = {}
        for turn in self._turns:
            for call in turn.calls:
                result = turn.results.get(call.id)
                if call.name == search_tools.NAME and result is not None:
                    names |= dict.fromkeys(search_tools.found_names(result.content))
                elif call.name in self._searchable:
                    names[call.name] = None
        return [_portable(self._searchable[name]) for name in names if name in self._searchable]


def _portable(spec: ToolSpec) -> ToolSpec:
    """Return the portable form; other runs proceed in between where many schemas are long."""
    if len(spec.text) < _LONG:
        return spec.portable
    with cpu_slice():
        return spec.portable
