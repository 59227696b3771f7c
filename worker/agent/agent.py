"""The agent that an attempt gives the loop: persona, routes, tools and the thread so far."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.security.egress import Policy
from arkloop.worker.agent.conversation import History
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.identity import RunIdentity
from arkloop.worker.contract.messages import Steered, ToolSpec
from arkloop.worker.tools import Tool

#: Of a model's context, what one call of `read_result` may return; and the context where it is not
#: known.
RESULT_PARTS = 16
MAX_WINDOW_TOKENS = 128_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The parts that stay the same through all the steps of a run."""

    identity: RunIdentity
    persona: Persona
    chain: RouteChain
    tools: Mapping[str, Tool]
    #: Those of them that the model is offered only after it has found them.
    searchable: Mapping[str, ToolSpec] = field(default_factory=dict)
    history: History  # the thread up to this run
    position: int  # of this run in the thread
    steered: list[Steered] = field(default_factory=list)  # what has reached the run so far
    output: OutputSchema | None = None
    egress: Policy = field(default_factory=Policy)  # what tools may reach
    draining: threading.Event  # set when the process ends: let go at the next step

    @property
    def may_call_tools(self) -> bool:
        """True if the settings allow calls; the model may make some all the same."""
        own, persona = self.chain.route.model_settings, self.persona.model_settings
        return model_settings.effective(own, persona).get("tool_choice") != "none"

    @property
    def result_tokens(self) -> int:
        """The most that `read_result` returns: a part of what one result may have in a request."""
        window = self.chain.route.context_tokens
        return min(self.persona.max_result_tokens, (window or MAX_WINDOW_TOKENS) // RESULT_PARTS)
