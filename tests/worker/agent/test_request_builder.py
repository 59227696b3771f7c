"""Requests that a vendor refuses as too large: they are made smaller until they fit."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.events.types import (
    ContextCompacted,
    ContextTruncated,
    MessageReset,
    RunFallback,
)
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Counted, Turn
from arkloop.worker.agent.request_builder import RequestBuilder
from arkloop.worker.agent.retry import MAX_SHRINKS, MAX_TRIES
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError, TooLarge
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import size_errors, token_counts
from arkloop.worker.tools import tool
from tests.worker.agent.looping_models import Model, after, agent_for, run
from tests.worker.recorded_run import ROUTE, RecordedRun, chain_of, history_of

LIMIT = 8_000
ANTHROPIC = "prompt is too long: {sent} tokens > {limit} maximum"
OPENAI = (
    "This model's maximum context length is {limit} tokens. However, your messages resulted in"
    " {sent} tokens. Please reduce the length of the messages."
)
KIMI = "Invalid request: Your request exceeded model token limit: {limit}"
WORDS = "Your input exceeds the context window of this model."
CALLED = AssistantMessage("let me see", (ToolCall("c1", "t", {"x": 1}),))
RESULT = ToolMessage("c1", "t", "out " * 50)
WORDINGS = pytest.mark.parametrize("words", [ANTHROPIC, OPENAI, KIMI, WORDS])


class StrictModel(Model):
    """Takes `limit` tokens, of `characters` each, and refuses more in these words."""

    def __init__(self, words: str, characters: float = 1.0, limit: int = LIMIT) -> None:
        super().__init__()
        self.words = words
        self.limit = limit
        self.characters = characters
        self.refused: list[int] = []
        self.taken: list[int] = []

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        sent = self.count(request)
        if sent > self.limit:
            self.refused.append(sent)
            why = self.words.format(sent=sent, limit=self.limit)
            raise ProviderError("invalid_request", why, too_large=size_errors.read(why, None))
        self.taken.append(sent)
        *chunks, end = super().stream(request, stop)
        yield from chunks
        assert isinstance(end, TurnEnd)
        yield replace(end, usage=Usage(input_tokens=sent, output_tokens=1))

    def count(self, request: ModelRequest) -> int:
        return round(sum(map(len, token_counts._texts(request))) / self.characters)

    def worst_case(self, request: ModelRequest) -> Usage:
        return token_counts.worst_case(request)


def with_model(agent: Agent, *models: Model, context_tokens: int | None = None) -> Agent:
    routes = [replace(ROUTE, id=f"r{i}", context_tokens=context_tokens) for i in range(len(models))]
    by_id = dict(zip((route.id for route in routes), models, strict=True))
    return replace(agent, tools={}, chain=RouteChain(routes, lambda route: by_id[route.id]))


def talk(turns: int, text: str) -> list[Message]:
    """Build an earlier conversation."""
    return [m for _ in range(turns) for m in (UserMessage(text), AssistantMessage("Yes."))]


def truncations(context: RecordedRun) -> list[ContextTruncated]:
    return [event for event in context.events if isinstance(event, ContextTruncated)]


@WORDINGS
@pytest.mark.parametrize("context_tokens", [None, LIMIT, 4 * LIMIT])
@pytest.mark.parametrize("text", ["7310945862 " * 90, "deadbeef " * 100, '{"a": [1, 2]},' * 70])
def test_a_thread_that_is_too_long_is_cut_until_it_fits(
    words: str, context_tokens: int | None, text: str
) -> None:
    """The thread is cut until it fits, with and without the vendor's numbers, and with an unknown
    context.
    """
    model = StrictModel(words)
    agent = agent_for({"say": "ok"}, system_prompt="Be brief.")
    agent = after(agent, *talk(40, text))
    agent = with_model(agent, model, context_tokens=context_tokens)
    context = RecordedRun()

    assert "ok" == run(agent, context).content

    assert len(model.refused) <= MAX_SHRINKS
    assert sorted(model.refused, reverse=True) == model.refused
    told = truncations(context)
    assert 81 - len(model.saw()) == told[-1].dropped_messages
    assert sorted(told, key=lambda event: event.dropped_messages) == told
    assert not any(isinstance(event, MessageReset) for event in context.events)
    if words == ANTHROPIC:
        # With both numbers one more request is enough.
        assert 1 >= len(model.refused)
        assert LIMIT / 8 < model.taken[0] <= LIMIT


@WORDINGS
def test_a_result_that_is_larger_than_the_context_does_not_end_the_run(words: str) -> None:
    """The model sees its beginning; what is stored is all of it."""

    @tool(idempotent=True)
    def much(context: ToolContext) -> str:
        """Return a long text."""
        return "0123456789" * 6_000

    model = StrictModel(words)
    agent = agent_for({"tool": "much"}, {"say": "ok"}, system_prompt="Be brief.")
    agent = replace(with_model(agent, model), tools={"much": much})
    context = RecordedRun()

    assert "ok" == run(agent, context).content

    assert 'characters are omitted here; read_result with the id "' in model.saw()[-1].content
    assert [] == truncations(context)


def test_a_question_that_is_too_long_fails_and_the_next_one_is_answered() -> None:
    """The question is the run's own fault; the thread is not lost."""
    model = StrictModel(ANTHROPIC)
    question = [UserMessage("7" * 20_000)]
    agent = with_model(agent_for({"say": "ok"}, system_prompt="Be brief."), model)

    with pytest.raises(ProviderError) as failed:
        run(replace(agent, history=history_of(*question)), RecordedRun())
    answer = run(after(agent, *question), RecordedRun())

    assert "provider.invalid_request" == failed.value.code
    assert "ok" == answer.content


@WORDINGS
def test_each_smaller_request_is_reserved_anew(words: str) -> None:
    """Money is held for the worst case of exactly what is sent."""
    model = StrictModel(words)
    agent = agent_for({"say": "ok"}, system_prompt="Be brief.", max_output_tokens=100)
    agent = with_model(after(agent, *talk(40, "7" * 900)), model)
    context = RecordedRun()
    context.is_limited = True

    run(agent, context)

    held = [usage.input_tokens for _, usage in context.reserved]
    assert len(model.refused) + 1 == len(held)
    for sent, most in zip([*model.refused, *model.taken], held, strict=True):
        assert sent <= most
    assert sorted(held, reverse=True) == held


@pytest.mark.parametrize("characters", [1.0, 6.0])
def test_what_the_vendor_has_counted_is_gone_by(characters: float) -> None:
    """The second request of a run neither exceeds the context nor leaves most of it empty."""
    model = StrictModel(ANTHROPIC, characters)
    steps = [{"tool": "calculator", "args": {"expression": f"{i} + 1"}} for i in range(3)]
    agent = agent_for(*steps, {"say": "ok"}, system_prompt="Be brief.", max_output_tokens=500)
    tools = agent.tools
    agent = after(agent, *talk(200, "word " * 100))
    agent = with_model(agent, model, context_tokens=LIMIT)

    run(replace(agent, tools=tools), RecordedRun())

    assert len(model.refused) <= 1
    assert 4 == len(model.taken)
    assert sorted(model.taken) == model.taken
    assert 0.2 * LIMIT < model.taken[0] < model.taken[-1] <= 0.6 * LIMIT, model.taken


@pytest.mark.parametrize("tokens", [200, 2])
def test_a_request_has_the_vendors_count_of_what_it_repeats(tokens: int) -> None:
    """It bounds what the next request may cost; one that no text can have bounds nothing."""
    usage = {"usage": {"input_tokens": tokens}}
    model = Model()
    agent = agent_for(usage, {"tool": "calculator", "args": {"expression": "1"}}, {"say": "ok"})
    run(with_model(agent, model), RecordedRun())

    first, second = model.requests
    assert (0, 0) == (first.counted_tokens, first.counted_messages)
    expected = (200, len(first.messages)) if tokens == 200 else (0, 0)
    assert expected == (second.counted_tokens, second.counted_messages)


@pytest.mark.parametrize(("characters", "is_too_long"), [(1.0, True), (5.0, False)])
def test_the_count_of_an_earlier_run_is_gone_by(characters: float, is_too_long: bool) -> None:
    """The first request of a run is counted by it, and is neither refused nor cut too early."""
    model = StrictModel(ANTHROPIC, characters)
    agent = agent_for({"say": "ok"}, system_prompt="Be brief.", max_output_tokens=500)
    earlier = talk(20 if is_too_long else 60, "word " * 100)
    agent = after(agent, *earlier)
    seen = sum(len(m.content) for m in earlier[:-1])
    counted = Counted(round(seen / characters), (len(earlier), 1), ("r0", ROUTE.model))
    agent = replace(agent, history=replace(agent.history, counted=counted))
    context = RecordedRun()

    run(with_model(agent, model, context_tokens=LIMIT), context)

    assert [] == model.refused
    assert is_too_long == bool(truncations(context))


def test_a_shorter_answer_may_be_enough() -> None:
    """A conversation is not cut if a shorter output makes the request fit."""

    class Servers(Model):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
            if (request.max_output_tokens or 0) > 3_096:
                why = (
                    "'max_tokens' or 'max_completion_tokens' is too large: 4000. This model's"
                    " maximum context length is 4096 tokens and your request has 1000 input tokens"
                    " (4000 > 4096 - 1000)."
                )
                raise ProviderError("invalid_request", why, too_large=size_errors.read(why, None))
            return super().stream(request, stop)

    model = Servers()
    agent = agent_for({"say": "ok"}, system_prompt="Be brief.", max_output_tokens=4_000)
    agent = with_model(after(agent, *talk(2, "x" * 600)), model)
    context = RecordedRun()

    run(agent, context)

    assert 5 == len(model.saw())
    assert 2_000 <= (model.requests[-1].max_output_tokens or 0) <= 3_096
    assert [] == truncations(context)


@pytest.mark.parametrize("has_next", [True, False])
def test_a_limit_per_minute_is_the_next_routes_chance(has_next: bool) -> None:
    """Another account may allow more; without one the conversation is cut."""

    class Poor(StrictModel):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
            sent = self.count(request) + (request.max_output_tokens or 0)
            if sent > LIMIT:
                why = f"Request too large for m on TPM: Limit {LIMIT}, Requested {sent}."
                raise ProviderError("invalid_request", why, too_large=size_errors.read(why, None))
            return Model.stream(self, request, stop)

    rich = Model()
    models = [Poor(ANTHROPIC), rich] if has_next else [Poor(ANTHROPIC)]
    agent = agent_for({"say": "ok"}, system_prompt="Be brief.", max_output_tokens=100)
    agent = with_model(after(agent, *talk(40, "7" * 900)), *models)
    context = RecordedRun()

    assert "ok" == run(agent, context).content

    fallbacks = [event for event in context.events if isinstance(event, RunFallback)]
    assert (has_next, not has_next) == (bool(fallbacks), bool(truncations(context)))


def refusing(asked: list[ModelRequest], limit: int | None = None) -> Model:
    """Make a model that refuses every request as too large for its context, of this size."""

    class Never(Model):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
            asked.append(request)
            too_large = TooLarge(limit_tokens=limit)
            raise ProviderError("invalid_request", "too long", too_large=too_large)

    return Never()


def test_a_vendor_that_refuses_everything_is_not_asked_for_ever() -> None:
    """The run ends after a bounded number of requests."""
    asked: list[ModelRequest] = []
    agent = replace(agent_for({"say": "ok"}), chain=chain_of(refusing(asked)))

    with pytest.raises(ProviderError):
        run(after(agent, *talk(4_000, "word " * 20)), RecordedRun())

    assert MAX_TRIES < len(asked) <= MAX_SHRINKS + 1


@pytest.mark.parametrize(
    ("sizes", "calls", "taken_by"),
    [
        ((9_000, 5_000, 20_000), 2, "r2"),  # a smaller one is passed over
        ((9_000, None), 2, "r1"),
        ((9_000, 5_000), MAX_SHRINKS, None),  # there is none: as many smaller requests as it takes
    ],
)
def test_after_one_smaller_request_a_larger_context_is_tried(
    sizes: tuple[int | None, ...], calls: int, taken_by: str | None
) -> None:
    """The next route that has a larger context, or whose context is not known."""
    asked: list[ModelRequest] = []
    routes = [replace(ROUTE, id=f"r{i}", context_tokens=size) for i, size in enumerate(sizes)]
    models = [refusing(asked, sizes[0]), *(Model() for _ in routes[1:])]
    by_id = dict(zip((route.id for route in routes), models, strict=True))
    agent = after(agent_for({"say": "ok"}), *talk(400, "word " * 20))
    context = RecordedRun()

    run(replace(agent, chain=RouteChain(routes, lambda route: by_id[route.id])), context)

    fallbacks = [event.to_route_id for event in context.events if isinstance(event, RunFallback)]
    assert (calls if taken_by else len(asked)) == len(asked)
    assert [taken_by or "r1"] == fallbacks


def prefix(before: ModelRequest, request: ModelRequest) -> float:
    """Return the part of `before` with which the later request begins, by its characters."""
    texts = [list(map(repr, one.messages)) for one in (before, request)]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    return sum(len(text) for text, _ in same) / sum(map(len, texts[0]))


@pytest.mark.parametrize("characters", [1.0, 3.0, 4.5])
def test_between_two_truncations_each_request_begins_with_the_one_before_it(
    characters: float,
) -> None:
    """The vendor's prompt cache applies, also to a conversation far beyond the context."""
    limit = 40_000
    model = StrictModel(ANTHROPIC, characters, limit)

    @tool(idempotent=True)
    def page(context: ToolContext, number: int) -> str:
        """Return a page."""
        return f"{number} " + "lorem ipsum " * 250

    steps = [{"tool": "page", "args": {"number": i}} for i in range(100)]
    agent = agent_for(*steps, {"say": "ok"}, max_steps=200, max_output_tokens=500)
    agent = after(agent, *talk(300, "word " * 40))
    agent = with_model(agent, model, context_tokens=limit)
    context = RecordedRun()

    run(replace(agent, tools={"page": page}), context)

    shared = [prefix(*pair) for pair in itertools.pairwise(model.requests)]
    points = [event.upto for event in context.events if isinstance(event, ContextCompacted)]
    assert len(model.refused) <= (characters < 3.0)  # nothing has been counted before the first
    assert 2 <= len(points) <= 100 * 3_000 / characters / (limit / 4)
    assert len(shared) - len(points) <= shared.count(1.0)
    assert limit / 2 < max(model.taken) <= limit - 500
    assert sorted(points) == points


_answers = st.lists(
    st.sampled_from([[AssistantMessage("a")], [CALLED, RESULT], [CALLED, RESULT, CALLED, RESULT]]),
    max_size=3,
)
_threads = st.lists(st.tuples(st.text(max_size=30), _answers), max_size=8)


@given(_threads, st.integers(0, 6), st.integers(200, 2000))
def test_no_result_ever_lacks_its_call(
    said: list[tuple[str, list[list[Message]]]], steps: int, size: int
) -> None:
    """Every result has its call, and the rest is the end of the conversation in its order, with its
    last question, whatever the size of the context.
    """
    history: list[Message] = []
    for text, answers in said:
        history += [UserMessage(text), *(message for answer in answers for message in answer)]
    history.append(UserMessage("question"))
    agent = replace(agent_for(system_prompt=""), history=history_of(*history))
    agent = with_model(agent, Model(), context_tokens=size)
    calls = [Turn(f"m{i}", "", [ToolCall("c1", "t", {})], seq=i + 2) for i in range(steps)]
    for turn in calls:
        turn.results["c1"] = RESULT
    whole = [*agent.history.messages, *(said for turn in calls for said in turn.messages())]

    sent = list(RequestBuilder(agent, RecordedRun(), calls).build(agent.chain.route).messages)

    for before, message in zip([None, *sent], sent, strict=False):
        if isinstance(message, ToolMessage):
            assert isinstance(before, AssistantMessage) and before.tool_calls
    assert sent.count(UserMessage("question")) >= 1
    sent_last = sent[1:] if sent[0] == UserMessage("question") else sent
    assert sent_last == whole[len(whole) - len(sent_last) :] or sent[1:] == whole[1 - len(sent) :]
