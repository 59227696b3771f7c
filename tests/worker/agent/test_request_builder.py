"""Requests that a vendor refuses as too large: they are made smaller until they fit."""

from dataclasses import replace
from typing import Any

import pytest

from shared.events.types import ContextTruncated, MessageReset, RunFallback, Usage
from tests.worker.agent.test_loop import Model, agent_for, run
from tests.worker.recorded_run import ROUTE, RecordedRun, chain_of
from worker.agent.agent import Agent
from worker.agent.conversation import Counted
from worker.agent.retry import MAX_SHRINKS, MAX_TRIES
from worker.agent.route_chain import RouteChain
from worker.contract.context import ToolContext
from worker.contract.messages import AssistantMessage, Message, ModelRequest, TurnEnd, UserMessage
from worker.contract.outcomes import ProviderError, TooLarge
from worker.contract.stop_signal import StopSignal
from worker.providers import size_errors, token_counts
from worker.tools import tool

LIMIT = 8_000
ANTHROPIC = "prompt is too long: {sent} tokens > {limit} maximum"
OPENAI = (
    "This model's maximum context length is {limit} tokens. However, your messages resulted in"
    " {sent} tokens. Please reduce the length of the messages."
)
KIMI = "Invalid request: Your request exceeded model token limit: {limit}"
WORDS = "Your input exceeds the context window of this model."
WORDINGS = pytest.mark.parametrize("words", [ANTHROPIC, OPENAI, KIMI, WORDS])


class StrictModel(Model):
    """Takes `LIMIT` tokens, of `characters` each, and refuses more in these words."""

    def __init__(self, words: str, characters: float = 1.0) -> None:
        super().__init__()
        self.words = words
        self.characters = characters
        self.refused: list[int] = []
        self.taken: list[int] = []

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        sent = self.count(request)
        if sent > LIMIT:
            self.refused.append(sent)
            why = self.words.format(sent=sent, limit=LIMIT)
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
    agent = replace(agent, history=[*talk(40, text), *agent.history])
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
        # With both numbers one more request is enough; half of the context is for the answer.
        assert 1 >= len(model.refused)
        assert LIMIT / 3 < model.taken[0]


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

    assert "characters; the rest does not fit in the context]" in model.saw()[-1].content
    assert (0, 1) == (
        truncations(context)[-1].dropped_messages,
        truncations(context)[-1].shortened_results,
    )


def test_a_question_that_is_too_long_fails_and_the_next_one_is_answered() -> None:
    """The question is the run's own fault; the thread is not lost."""
    model = StrictModel(ANTHROPIC)
    question = [UserMessage("7" * 20_000)]
    agent = with_model(agent_for({"say": "ok"}, system_prompt="Be brief."), model)

    with pytest.raises(ProviderError) as failed:
        run(replace(agent, history=question), RecordedRun())
    answer = run(replace(agent, history=[*question, *agent.history]), RecordedRun())

    assert "provider.invalid_request" == failed.value.code
    assert "ok" == answer.content


@WORDINGS
def test_each_smaller_request_is_reserved_anew(words: str) -> None:
    """Money is held for the worst case of exactly what is sent."""
    model = StrictModel(words)
    agent = agent_for({"say": "ok"}, system_prompt="Be brief.", max_output_tokens=100)
    agent = with_model(replace(agent, history=[*talk(40, "7" * 900), *agent.history]), model)
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
    history = [*talk(200, "word " * 100), *agent.history]
    agent = with_model(replace(agent, history=history), model, context_tokens=LIMIT)

    run(replace(agent, tools=tools), RecordedRun())

    assert len(model.refused) <= 1
    assert 4 == len(model.taken)
    assert all(0.75 * LIMIT < sent <= LIMIT for sent in model.taken[1:]), model.taken


@pytest.mark.parametrize("dropped", [0, 60])
@pytest.mark.parametrize("characters", [1.0, 5.0])
def test_the_count_of_an_earlier_run_is_gone_by(characters: float, dropped: int) -> None:
    """The first request of a run uses the context as well, also after a truncated one."""
    model = StrictModel(ANTHROPIC, characters)
    history = talk(200, "word " * 100)
    agent = agent_for({"say": "ok"}, system_prompt="Be brief.", max_output_tokens=500)
    seen = sum(len(m.content) for m in history[dropped:])
    agent = replace(
        agent,
        history=[*history, *agent.history],
        counted=Counted(round(seen / characters), 3 + dropped),
        counted_messages=len(history),
        unread=3,
    )

    run(with_model(agent, model, context_tokens=LIMIT), RecordedRun())

    assert [] == model.refused
    assert 0.75 * LIMIT < model.taken[0] <= LIMIT


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
    agent = with_model(replace(agent, history=[*talk(2, "x" * 600), *agent.history]), model)
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
    agent = with_model(replace(agent, history=[*talk(40, "7" * 900), *agent.history]), *models)
    context = RecordedRun()

    assert "ok" == run(agent, context).content

    fallbacks = [event for event in context.events if isinstance(event, RunFallback)]
    assert (has_next, not has_next) == (bool(fallbacks), bool(truncations(context)))


def test_a_vendor_that_refuses_everything_is_not_asked_for_ever() -> None:
    """The run ends, or goes to the next route, after a bounded number of requests."""
    refused = ProviderError("invalid_request", "too long", too_large=TooLarge())
    asked: list[ModelRequest] = []

    class Never(Model):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
            asked.append(request)
            raise refused

    agent = replace(agent_for({"say": "ok"}), chain=chain_of(Never(), Model()))
    agent = replace(agent, history=[*talk(4_000, "word " * 20), *agent.history])

    assert "ok" == run(agent, RecordedRun()).content
    assert MAX_TRIES < len(asked) <= MAX_SHRINKS + 1
