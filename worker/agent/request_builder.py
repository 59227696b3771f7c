"""The request that a run's model gets: everything, or what fits into the context of its route.

How many tokens a text has is not known before a model has counted it. So our own count is scaled
by what the vendor reported last, and a request that is refused as too large is made smaller.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.catalog import model_settings
from shared.catalog.model_routes import Route
from shared.events import types
from shared.events.types import Usage
from worker.agent import context_window
from worker.agent.agent import Agent
from worker.agent.context_window import Fitted
from worker.agent.conversation import Turn
from worker.contract.context import Transcript
from worker.contract.messages import ModelRequest, without_state
from worker.contract.outcomes import TooLarge

#: Of a model's context, where nothing says how long its answer may get.
ANSWER_TOKENS = 4096
#: A vendor's count is of an earlier request; what came since may be denser.
SCALE_MARGIN = 1.05
#: What is beyond these is a mistake of the vendor's: half of our count would be six bytes a token.
LEAST_SCALE, MOST_SCALE = 0.5, 4.0
#: Of a smaller request most may be what the vendor adds of its own.
LEAST_COUNTED_TOKENS = 500
#: How the event names an `extra_body` that a route of the server does not send.
PERSONA_EXTRA_BODY = "persona.extra_body"
#: The part of a refused request that the next one may have: where the vendor gave numbers, and
#: where it gave none.
SMALLER, MUCH_SMALLER = 0.9, 0.5


@dataclass(slots=True)
class _Window:
    """The knowledge of a route's context.

    `tokens`: input and output together; None: nobody knows. `scale`: the vendor's tokens for each
    of our count. `max_count`: of our count, since more was refused.
    """

    tokens: int | None
    scale: float = 1.0
    max_count: float | None = None


class RequestBuilder:
    """The request builder of an attempt; `turns` are the run's own, which the loop appends to."""

    def __init__(self, agent: Agent, context: Transcript, turns: Sequence[Turn]) -> None:
        self._agent = agent
        self._context = context
        self._turns = turns
        self._windows: dict[str, _Window] = {}
        self._dropped = self._shortened = 0  # what was said last

    def build(self, route: Route) -> ModelRequest:
        """Build the next request; emits an event if it omits more of the conversation."""
        request, fitted = self._request(route)
        if fitted.dropped > self._dropped or fitted.shortened > self._shortened:
            self._context.emit(types.ContextTruncated(fitted.dropped, fitted.shortened))
        self._dropped, self._shortened = fitted.dropped, fitted.shortened
        return request

    def lost(self, route: Route) -> ModelRequest:
        """Build the request of a call that was lost, as far as it can be made again."""
        return self._request(route)[0]

    def shrink(
        self, route: Route, refused: ModelRequest, too_large: TooLarge
    ) -> ModelRequest | None:
        """Build a smaller request than the refused one; None if there is none."""
        window, count = self._window(route), context_window.tokens_of_request(refused)
        limit, sent = too_large.limit_tokens, too_large.sent_tokens
        if sent is not None and too_large.is_per_minute:
            sent = max(1, sent - (refused.max_output_tokens or 0))
        if limit is not None:
            window.tokens = min(limit, window.tokens or limit)
        if sent is not None:
            window.scale = max(window.scale, _scale(sent, count))
        factors = [MUCH_SMALLER] if sent is None or limit is None else [SMALLER, MUCH_SMALLER]
        if sent is not None and limit is not None and sent < limit * SMALLER:
            factors.insert(0, 1.0)  # perhaps the answer alone may be too long
        for factor in factors:
            window.max_count = count * factor
            if _is_smaller(self._request(route)[0], refused):
                return self.build(route)
        return None

    def measured(self, route: Route, request: ModelRequest, usage: Usage) -> None:
        """Adjust the scale to what the vendor has counted for this request."""
        window = self._window(route)
        if window.tokens is not None and usage.source == "reported":
            count = context_window.tokens_of_request(request)
            if usage.input_tokens and count >= LEAST_COUNTED_TOKENS:
                window.scale = _scale(usage.input_tokens, count)

    def _window(self, route: Route) -> _Window:
        if (window := self._windows.get(route.id)) is None:
            window = self._windows[route.id] = _Window(route.context_tokens)
            if window.tokens is not None:
                window.scale = self._scale_of_history()
        return window

    def _scale_of_history(self) -> float:
        """Return the scale that a vendor's count of an earlier run's messages implies."""
        agent, counted = self._agent, self._agent.counted
        if counted is None:
            return 1.0
        left_out = max(0, counted.dropped_messages - agent.unread)
        sent = agent.history[left_out : agent.counted_messages]
        count = self._frame() + sum(map(context_window.tokens_of, sent))
        return _scale(counted.input_tokens, count) if count >= LEAST_COUNTED_TOKENS else 1.0

    def _frame(self) -> int:
        specs = [tool.spec for tool in self._agent.tools.values()]
        return context_window.tokens_of_frame(self._agent.persona.system_prompt, specs)

    def _request(self, route: Route) -> tuple[ModelRequest, Fitted]:
        agent, window = self._agent, self._window(route)
        specs = [tool.spec for tool in agent.tools.values()]
        prompt = agent.persona.system_prompt
        most = agent.persona.max_output_tokens or route.max_output_tokens
        history = without_state(agent.history, but_of=route)
        own = [without_state(turn.messages(), but_of=route) for turn in self._turns]
        frame = self._frame()
        room, answer, input_room = None, 0, float("inf")
        if window.tokens is not None:
            answer = min(most or ANSWER_TOKENS, window.tokens // 2)
            input_room = (window.tokens - answer) / window.scale - frame
        if window.max_count is not None:
            input_room = min(input_room, window.max_count - frame)
        if input_room == float("inf"):
            fitted = Fitted([*history, *itertools.chain(*own)])
        else:
            fitted = context_window.fit(history, own, input_room)
        if window.tokens is not None:
            count = frame + sum(map(context_window.tokens_of, fitted.messages))
            room = round(window.tokens - count * window.scale)
            most = most and min(most, max(room, answer))
        request = ModelRequest(
            model=route.model,
            system_prompt=prompt,
            messages=fitted.messages,
            tools=specs,
            max_output_tokens=most,
            room_tokens=room,
            settings=self._settings(route),
            turn=len(self._turns),
            taken_call_ids=frozenset(call.id for turn in self._turns for call in turn.calls),
            stream_arguments=agent.persona.stream_tool_arguments,
            attempt=self._context.attempt,
        )
        return request, replace(fitted, dropped=agent.unread + fitted.dropped)

    def _settings(self, route: Route) -> dict[str, Any]:
        """Return the settings of the next call; only the first one is forced to call a tool.

        Otherwise the model could never give its answer.
        """
        own, persona = route.model_settings, self._agent.persona.model_settings
        if not route.is_of_org and "extra_body" in persona:
            # It could buy what the server's prices do not cover, such as faster processing.
            persona = model_settings.without(persona, ["extra_body"])
            if new := self._agent.chain.drop_settings([PERSONA_EXTRA_BODY]):
                self._context.emit(types.RunSettingsDropped(route.id, new))
        settings = model_settings.effective(own, persona)
        if self._turns and settings.get("tool_choice") != "none":
            settings.pop("tool_choice", None)
        return settings


def _is_smaller(request: ModelRequest, refused: ModelRequest) -> bool:
    most, most_before = request.max_output_tokens, refused.max_output_tokens
    if most is not None and most_before is not None and most < most_before:
        return True
    counts = (context_window.tokens_of_request(one) for one in (request, refused))
    return next(counts) < next(counts)


def _scale(tokens: int, count: int) -> float:
    return min(max(tokens / max(count, 1) * SCALE_MARGIN, LEAST_SCALE), MOST_SCALE)
