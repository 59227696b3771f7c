"""The requests that a run's model gets: all of the conversation, or what fits into its context.

A request has the tokens that the vendor counted for the last one, and an estimate of what was added
since. Where that exceeds the context, or the vendor says so, the thread's truncation point moves so
far that half of the context is free again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events import types
from arkloop.shared.events.types import ContextCompacted, Event
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent import context_window, summaries
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Entry, Turn, entries_of
from arkloop.worker.agent.offered_tools import OfferedTools
from arkloop.worker.agent.vendor_count import VendorCount
from arkloop.worker.contract.context import RunContext
from arkloop.worker.contract.cpu_slices import breathe, portions
from arkloop.worker.contract.messages import Message, ModelRequest, has_state, strip_provider_state
from arkloop.worker.contract.outcomes import TooLarge
from arkloop.worker.contract.stop_signal import StopSignal

#: Of a model's context, where nothing says how long its answer may get.
ANSWER_TOKENS = 4096
#: The part of a refused request that its model may take, if the vendor has not said how much.
REFUSED_PART = 0.75
#: How many entries are shown to a model at a time, which takes about a millisecond.
PORTION = 200
#: How the event names an `extra_body` that a route of the server does not send.
PERSONA_EXTRA_BODY = "persona.extra_body"


@dataclass(frozen=True, slots=True)
class _Shown:
    """An entry as the model of a route sees it, with our count of its tokens."""

    messages: list[Message]
    tokens: int
    is_cut: bool  # a result of it


class RequestBuilder:
    """The request builder of an attempt; `turns` are the run's own, which the loop appends to."""

    def __init__(
        self,
        agent: Agent,
        context: RunContext,
        turns: Sequence[Turn],
        stop: StopSignal | None = None,
    ) -> None:
        """`stop` ends the calls for summaries."""
        self._agent = agent
        self._run = context
        self._stop = stop
        self._turns = turns
        self._contexts = dict(agent.history.contexts)
        self._counts: dict[str, VendorCount] = {}
        self._built: dict[str, ModelRequest] = {}  # the last request of each route
        self._shown: dict[tuple[object, ...], _Shown] = {}
        self._stateless: dict[str, tuple[int, int]] = {}  # by route: up to which entry
        self._offered = OfferedTools(agent, turns)
        self._summarizes = agent.persona.compaction == "summary"
        # The schema of the output is counted as a tool, however it is sent.
        output = [agent.output.tool] if agent.output else []
        self._prompt_tokens = context_window.tokens_of_frame(agent.persona.system_prompt, output)

    def build(self, route: Route) -> ModelRequest:
        """Build the next request; moves the truncation point if the conversation is too long."""
        if self._is_unread(route) or self._is_too_long(route):
            self._compact(route, context_window.kept_of(self._input_tokens(route)))
        request = self.lost(route)
        breathe(request.messages)  # its provider will pass over them, too
        return request

    def lost(self, route: Route) -> ModelRequest:
        """Build the request of a call that was lost, without moving the truncation point."""
        persona, remaining = self._agent.persona, None
        most = persona.max_output_tokens or route.max_output_tokens
        if route.context_tokens is not None:
            remaining = route.context_tokens - self._tokens(route)
            most = most and min(most, max(remaining, self._answer_tokens(route)))
        kept = self._kept(route)
        request = ModelRequest(
            model=route.model,
            system_prompt=persona.system_prompt,
            messages=[m for shown in kept for m in shown.messages],
            tools=self._offered.specs(is_any_cut=_is_any_cut(kept)),
            max_output_tokens=most,
            remaining_tokens=remaining,
            settings=self._settings(route),
            turn=len(self._turns),
            taken_call_ids=frozenset(call.id for turn in self._turns for call in turn.calls),
            stream_arguments=persona.stream_tool_arguments,
            attempt=self._run.attempt,
        )
        output = self._agent.output
        if output is not None:
            request = output.requested(request, self._agent.chain)
        self._built[route.id] = request
        count = self._last_count(route)
        return request if count is None else count.bounding(request, self._context(route))

    def truncate_only(self) -> None:
        """Make no more calls for summaries: time and money are for the answer."""
        self._summarizes = False

    def measured(self, route: Route, sent: ModelRequest, usage: Usage) -> None:
        """Take over what the vendor has counted for the request that was built last.

        If provider state was taken out of it, the turns up to here are sent without it from now on.
        """
        if has_state(self._built[route.id].messages) and not has_state(sent.messages):
            self._stateless[route.id] = self._entries()[-1].place
            for key in [k for k, shown in self._shown.items() if has_state(shown.messages)]:
                del self._shown[key]
        if usage.source == "reported" and usage.input_tokens:
            messages = sum(len(shown.messages) for shown in self._kept(route))
            self._count(route, usage.input_tokens, messages)

    def shrink(
        self, route: Route, refused: ModelRequest, too_large: TooLarge
    ) -> ModelRequest | None:
        """Build a smaller request than the refused one; None if there is none."""
        limit, sent = too_large.limit_tokens, too_large.sent_tokens
        if sent is not None and too_large.is_per_minute:
            sent = max(1, sent - (refused.max_output_tokens or 0))
        tokens = sent or max(self._tokens(route), limit or 0)
        self._count(route, tokens)
        # Without a number it is a guess, which must not replace what somebody knows.
        may_guess = not (too_large.is_unclear or route.context_tokens)
        is_of_model = not too_large.is_per_minute and bool(limit or may_guess)
        route = self._agent.chain.learn(
            limit or round(tokens * REFUSED_PART), is_of_model=is_of_model
        )
        request = self.build(route)
        if not _is_smaller(request, refused):
            target = context_window.kept_of(min(self._tokens(route), self._input_tokens(route)))
            self._compact(route, target, is_refused=True)
            request = self.lost(route)
        return request if _is_smaller(request, refused) else None

    # ---- the truncation point ----

    def _context(self, route: Route) -> ContextCompacted:
        return context_window.in_force(self._contexts, route.context_tokens or 0)

    def _is_unread(self, route: Route) -> bool:
        """Return whether messages after the truncation point were too many to be read."""
        history = self._agent.history
        if not history.is_cut or not history.entries:
            return False
        return self._context(route).upto < _before(history.entries[0])

    def _compact(self, route: Route, target: float, *, is_refused: bool = False) -> None:
        """Move the truncation point so far that at most `target` tokens are left, if possible.

        The last question and the last turn always stay.
        """
        entries, before = self._entries(), self._context(route)
        results = before.result_tokens
        if target < float("inf"):
            most = context_window.results_of(route.context_tokens)
            together = target if is_refused else most
            results = int(together / max(self._density(route), 1.0))
        start = self._new_start(route, entries, replace(before, result_tokens=results), target)
        if self._summarizes:
            self._summarize(route, entries, start, results)
        moved = max(self._context(route).upto, _before(entries[start]))
        if moved != self._context(route).upto or (is_refused and results != before.result_tokens):
            self._move(route, entries, moved, results, self._context(route).summary)

    def _new_start(
        self, route: Route, entries: Sequence[Entry], context: ContextCompacted, target: float
    ) -> int:
        """Find the first entry of those that have at most `target` tokens together."""
        density = self._density(route)
        sizes = [shown.tokens for shown in self._show(route, entries, context)]
        start = context_window.start_of(entries, context)
        if self._is_unread(route):
            start = len(self._agent.history.entries) // 2
        question = next((sizes[i] for i in reversed(range(start)) if entries[i].is_of_user), 0)
        left = sum(sizes[start:]) + self._frame
        if self._summarizes:
            left += self._summary_tokens(route)
        while start < len(entries) - 1:
            asked = 0 if entries[start].is_of_user else question
            if (left + asked) * density <= target:
                break
            if entries[start].is_of_user:
                question = sizes[start]
            left -= sizes[start]
            start += 1
        return start

    def _move(
        self,
        route: Route,
        entries: Sequence[Entry],
        upto: tuple[int, int],
        result_tokens: int | None,
        summary: str | None,
        *events: Event,
    ) -> None:
        """Move the truncation point, with the events that have led to it."""
        before = self._context(route)
        after = replace(
            before,
            upto_position=upto[0],
            upto_seq=upto[1],
            result_tokens=result_tokens,
            summary=summary,
        )
        kept = context_window.entries_from(entries, context_window.start_of(entries, after))
        dropped = self._agent.history.unread + _messages_in(entries) - _messages_in(kept)
        after = replace(after, dropped_messages=dropped)
        self._contexts[after.window_tokens] = after
        truncated = [] if events else [types.ContextTruncated(dropped)]
        self._run.compact(after, *events, *truncated)

    def _summarize(
        self, route: Route, entries: Sequence[Entry], start: int, result_tokens: int | None
    ) -> None:
        """Move the point up to `start` by summaries of what comes before, while they succeed."""
        tokens = self._summary_tokens(route)
        for _ in range(summaries.MAX_CALLS):
            context = self._context(route)
            begin = context_window.start_of(entries, context)
            if begin >= start:
                return
            end, messages = self._to_summarize(route, entries, begin, start)
            request = summaries.request_for(self.lost(route), messages, tokens, route)
            found = summaries.summarize(
                self._agent.chain, request, tokens, self._run, self._stop or StopSignal()
            )
            if found is None:
                return
            summary, cost = found
            self._move(route, entries, _before(entries[end]), result_tokens, summary, cost)

    def _to_summarize(
        self, route: Route, entries: Sequence[Entry], begin: int, start: int
    ) -> tuple[int, list[Message]]:
        """Return the messages of as many entries as fit into one request, and the next entry."""
        context = self._context(route)
        messages = _summary_of(context)
        others = sum(shown.tokens for shown in self._kept(route)[1:])
        remaining = self._input_tokens(route) / self._density(route) - summaries.INSTRUCTION_TOKENS
        remaining -= self._estimate(route) - others  # the prompt, tools and the last summary
        omitted = context_window.entries_from(entries[:start], begin)
        # All at once: `_kept` has shown them, and to look each up alone takes ten times as long.
        for end, shown in enumerate(self._show(route, omitted, context), start - len(omitted)):
            remaining -= shown.tokens
            if remaining < 0 and end > begin:
                return end, messages
            messages += shown.messages
        return start, messages

    def _summary_tokens(self, route: Route) -> int:
        return int(min(summaries.SUMMARY_TOKENS, self._input_tokens(route) / 8))

    # ---- what is sent, and how much that is ----

    @property
    def _frame(self) -> int:
        """The estimated tokens before the messages."""
        return self._prompt_tokens + self._offered.tokens

    def _entries(self) -> list[Entry]:
        agent = self._agent
        own = entries_of(agent.position, self._turns, agent.steered)
        return [*agent.history.entries, *own]

    def _kept(self, route: Route) -> list[_Shown]:
        entries, context = self._entries(), self._context(route)
        start = context_window.start_of(entries, context)
        kept = context_window.entries_from(entries, start)
        summary = _summary_of(context)
        first = [_Shown(summary, sum(map(context_window.tokens_of, summary)), is_cut=False)]
        return [*first, *self._show(route, kept, context)]

    def _show(
        self, route: Route, entries: Sequence[Entry], context: ContextCompacted
    ) -> list[_Shown]:
        """Show the entries to the model; while many are new, other runs get on."""
        together = context.result_tokens or context_window.results_of(route.context_tokens)
        each = self._agent.persona.max_result_tokens
        keys = [(route.id, entry.place, together) for entry in entries]
        new = [(key, e) for key, e in zip(keys, entries, strict=True) if key not in self._shown]
        for some in portions(new, PORTION):
            for key, entry in some:
                cut = context_window.cut_results(entry, each, together)
                is_refused = entry.place <= self._stateless.get(route.id, (-1, 0))
                messages = strip_provider_state(cut, keep_for=None if is_refused else route)
                tokens = sum(map(context_window.tokens_of, messages))
                self._shown[key] = _Shown(messages, tokens, cut != list(entry.messages))
        return [self._shown[key] for key in keys]

    def _answer_tokens(self, route: Route) -> int:
        most = self._agent.persona.max_output_tokens or route.max_output_tokens or ANSWER_TOKENS
        allowed = self._agent.chain.output_limit(most) or most
        return min(allowed, (route.context_tokens or 0) // 2)

    def _input_tokens(self, route: Route) -> float:
        if route.context_tokens is None:
            return float("inf")
        return route.context_tokens - self._answer_tokens(route)

    def _estimate(self, route: Route) -> int:
        kept = self._kept(route)
        reader = self._offered.reader_tokens if _is_any_cut(kept) else 0
        return self._frame + reader + sum(shown.tokens for shown in kept)

    def _tokens(self, route: Route) -> int:
        """Count the tokens of the next request: by the vendor's count of the last, if possible."""
        estimate, count = self._estimate(route), self._last_count(route)
        if count is None:
            return estimate
        if count.context != self._context(route):
            return round(estimate * count.density)
        return count.tokens + round((estimate - count.estimate) * max(count.density, 1.0))

    def _is_too_long(self, route: Route) -> bool:
        most = self._input_tokens(route)
        return most < float("inf") and self._tokens(route) > most

    def _density(self, route: Route) -> float:
        count = self._last_count(route)
        return count.density if count else 1.0

    def _count(self, route: Route, tokens: int, messages: int = 0) -> None:
        context, estimate = self._context(route), self._estimate(route)
        built = self._built.get(route.id)
        self._counts[route.id] = VendorCount(context, estimate, tokens, messages, built)

    def _last_count(self, route: Route) -> VendorCount | None:
        """Return the vendor's last count, of this attempt or an earlier one or an earlier run."""
        counted, called = self._agent.history.counted, (route.id, route.model)
        # Another model under the route's id may count the same differently, images above all.
        if route.id not in self._counts and counted and counted.route == called:
            entries, context = self._entries(), self._context(route)
            kept = context_window.entries_from(entries, context_window.start_of(entries, context))
            sent = [e for e in kept if e.place < counted.place]
            shown = self._show(route, sent, context)
            summary = _summary_of(context)
            least = sum(map(context_window.tokens_of, summary)) + sum(one.tokens for one in shown)
            messages = len(summary) + sum(len(one.messages) for one in shown)
            # The earlier run may have had other instructions or tools, so that its frame is
            # unknown, and a smaller context: then there was less in its messages than there is now.
            self._counts[route.id] = VendorCount(
                context, self._frame + least, counted.input_tokens, messages, least=least
            )
        return self._counts.get(route.id)

    def _settings(self, route: Route) -> dict[str, Any]:
        """Return the settings of the next call; only the first one is forced to call a tool.

        Otherwise the model could never give its answer.
        """
        own, persona = route.model_settings, self._agent.persona.model_settings
        if not route.is_of_org and "extra_body" in persona:
            # It could order what costs more than is counted: a route's `prices` apply at any speed,
            # and the price library does not have every speed.
            persona = model_settings.without(persona, ["extra_body"])
            if new := self._agent.chain.drop_settings([PERSONA_EXTRA_BODY]):
                self._run.emit(types.RunSettingsDropped(route.id, new))
        settings = model_settings.effective(own, persona)
        if self._turns and settings.get("tool_choice") != "none":
            settings.pop("tool_choice", None)
        return settings


def _summary_of(context: ContextCompacted) -> list[Message]:
    return [] if context.summary is None else [summaries.as_message(context.summary)]


def _is_any_cut(kept: Sequence[_Shown]) -> bool:
    return any(shown.is_cut for shown in kept)


def _before(entry: Entry) -> tuple[int, int]:
    """Return the truncation point after which the entry is the first."""
    return entry.position, entry.seq - 1


def _messages_in(entries: Sequence[Entry]) -> int:
    return sum(len(entry.messages) for entry in entries)


def _is_smaller(request: ModelRequest, refused: ModelRequest) -> bool:
    most, most_before = request.max_output_tokens, refused.max_output_tokens
    if most is not None and most_before is not None and most < most_before:
        return True
    counts = (sum(map(context_window.tokens_of, one.messages)) for one in (request, refused))
    return next(counts) < next(counts)
