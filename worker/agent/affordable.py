"""Reserving the cost of model calls, and requests that cost less where little money is left.

A step may have less output and give up the vendor's cache. The last call may also have less of the
conversation: first the results that came last are cut, then the oldest messages are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import chain

from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.context import Admission, Plan
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.contract.outcomes import LimitExceeded
from arkloop.worker.providers import Provider

#: The most that a request can cost, in USD.
Cost = Callable[[ModelRequest], Decimal]

#: The run's last call instead of a step.
LastCall = Callable[[ModelRequest], ModelRequest]

#: How much more a call may take than is estimated, before that is at the expense of the last call.
EXPECTED_MARGIN = 1.1
#: Less output is hardly enough for a tool call with its arguments.
LEAST_STEP_TOKENS = 512
#: The last call has as much, unless even the shortest conversation is too expensive.
LEAST_ANSWER_TOKENS = (512, 64, 1)
#: The bytes that are left of each result that came last.
RESULT_BYTES = (4096, 1024, 256)


def reserve(
    chain: RouteChain, request: ModelRequest, admission: Admission, last_call: LastCall | None
) -> ModelRequest:
    """Reserve the cost of the request, or of a smaller one that the budget can pay.

    Raises:
        LimitExceeded: it can pay none.
    """
    route, provider = chain.route, chain.provider

    def cost(request: ModelRequest) -> Decimal:
        return route.prices.at_most(provider.worst_case(request)) if route.prices else Decimal(0)

    while True:
        try:
            plan = last_call and _plan(provider, request, last_call(request))
            admission.reserve(route, provider.worst_case(request), plan)
            return request
        except LimitExceeded as refused:
            if (most_usd := refused.affordable_usd) is None:
                raise
            if (smaller := affordable(request, cost, most_usd)) is None:
                admission.note_exhausted()
                raise
            request = smaller


def _plan(provider: Provider, request: ModelRequest, last: ModelRequest) -> Plan:
    """Estimate what the call takes, with all its output, and the last call after it."""

    def expected(request: ModelRequest) -> Usage:
        most = provider.worst_case(request)
        tokens = round(provider.estimate(request, "").input_tokens * EXPECTED_MARGIN)
        return replace(most, input_tokens=min(tokens, most.input_tokens))

    last = replace(last, max_output_tokens=request.max_output_tokens)
    shortest = shortest_of(last)
    whole = replace(last, max_output_tokens=shortest.max_output_tokens)
    return Plan(call=expected(request), shortest=expected(shortest), whole=expected(whole))


def affordable(request: ModelRequest, cost: Cost, most_usd: Decimal) -> ModelRequest | None:
    """Return the largest request that costs at most this; None if there is none.

    `request` has a limit of its output.
    """
    if not request.answer_only or request.is_summary:
        candidates = [request, replace(request, may_cache=False)]
        return _first(candidates, cost, most_usd, LEAST_STEP_TOKENS)
    for least in LEAST_ANSWER_TOKENS:
        if found := _first(_shorter(request, cost, most_usd, least), cost, most_usd, least):
            return found
    return None


def shortest_of(request: ModelRequest) -> ModelRequest:
    """Return the least that can be left of a last call, without the turn before it."""
    [*conversation, instruction] = request.messages
    question = _question(conversation, request.turn)
    messages = [*conversation[question : question + 1], instruction]
    most = min(request.max_output_tokens or 1, LEAST_ANSWER_TOKENS[0])
    return replace(request, messages=messages, counted_messages=0, max_output_tokens=most)


def _first(
    candidates: Sequence[ModelRequest] | Iterator[ModelRequest],
    cost: Cost,
    most_usd: Decimal,
    least: int,
) -> ModelRequest | None:
    for candidate in candidates:
        if cost(_with_output(candidate, least)) <= most_usd:
            return _with_affordable_output(candidate, cost, most_usd, least)
    return None


def _with_output(request: ModelRequest, tokens: int) -> ModelRequest:
    return replace(request, max_output_tokens=min(tokens, request.max_output_tokens or tokens))


def _with_affordable_output(
    request: ModelRequest, cost: Cost, most_usd: Decimal, least: int
) -> ModelRequest:
    """Give the request as much output as the money pays; each token of it costs the same."""
    whole, short = cost(request), cost(_with_output(request, least))
    if whole <= most_usd or request.max_output_tokens is None:
        return request
    more = (most_usd - short) * (request.max_output_tokens - least) / (whole - short)
    return _with_output(request, least + max(0, int(more) - 1))


def _shorter(
    request: ModelRequest, cost: Cost, most_usd: Decimal, least: int
) -> Iterator[ModelRequest]:
    """Yield the last call with less and less of the conversation."""
    yield request
    [*conversation, instruction] = request.messages
    turns = [i for i, message in enumerate(conversation) if isinstance(message, AssistantMessage)]
    start = max(request.counted_messages, *turns[-1:], 0)
    for size in RESULT_BYTES:
        cut = [*conversation[:start], *(_cut(message, size) for message in conversation[start:])]
        yield replace(request, messages=[*cut, instruction])
    yield from _without_oldest(replace(request, messages=cut), instruction, cost, most_usd, least)


def _cut(message: Message, size: int) -> Message:
    encoded = message.content.encode("utf-8", "surrogatepass")
    if not isinstance(message, ToolMessage) or len(encoded) <= size:
        return message
    head = encoded[:size].decode(errors="ignore")
    return replace(message, content=f"{head}\n[The rest is omitted: it cannot be paid any more.]")


def _without_oldest(
    request: ModelRequest, instruction: Message, cost: Cost, most_usd: Decimal, least: int
) -> Iterator[ModelRequest]:
    """Yield the request that leaves out the fewest of the oldest messages, and costs at most this.

    The last question stays, and the last turn with the messages behind it.
    """
    messages = request.messages
    question = _question(messages, request.turn)
    units = _units(messages[:question], UserMessage)
    earlier = len(units)
    units += _units(messages[question + 1 :], AssistantMessage)

    def without(count: int) -> ModelRequest:
        before = chain(*units[count:earlier], messages[question : question + 1])
        kept = [*before, *chain(*units[max(count, earlier) :]), instruction]
        return replace(request, messages=kept, counted_messages=0)

    low, high = 1, len(units) - (earlier < len(units))
    while low < high:
        middle = (low + high) // 2
        if cost(_with_output(without(middle), least)) <= most_usd:
            high = middle
        else:
            low = middle + 1
    if high >= 1:
        yield without(high)


def _question(messages: Sequence[Message], turns: int) -> int:
    """Return the index of the last message of a user; the number of messages without one.

    If the run has turns, it is the last one that they answer: what steers the run behind them is
    no question without these.
    """
    found = [i for i, message in enumerate(messages) if isinstance(message, UserMessage)]
    answers = [i for i, message in enumerate(messages) if isinstance(message, AssistantMessage)]
    answered = [i for i in found if turns and answers and i < answers[-1]]
    return (answered or found or [len(messages)])[-1]


def _units(messages: Sequence[Message], first: type[Message]) -> list[list[Message]]:
    """Group messages, each group from one of this type on: no result is parted from its call."""
    units: list[list[Message]] = []
    for message in messages:
        if isinstance(message, first) or not units:
            units.append([])
        units[-1].append(message)
    return units
