"""A run whose first route may be left for a second one; both are chat completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from arkloop.worker import providers
from arkloop.worker.agent.loop import Answer as Final
from arkloop.worker.agent.route_chain import RouteChain
from tests.worker.agent.looping_models import agent_for, run
from tests.worker.providers.fake_vendor import Answer, delta, openai_stream, raw, route_to, vendor
from tests.worker.recorded_run import RecordedRun

HELLO = raw(openai_stream(delta(content="Hello."), delta(finish="stop")))


@dataclass(frozen=True)
class Outcome:
    """The final answer, what the first route received, and how often each route was called."""

    answer: Final
    context: RecordedRun
    bodies: list[dict[str, Any]]
    calls: tuple[int, int]


def outcome(first: Sequence[Answer], second: Sequence[Answer] = (HELLO,)) -> Outcome:
    """Run the assistant on both routes. Raises: RunFailure"""
    with vendor(*first) as one, vendor(*second) as two:
        routes = [replace(route_to("openai", fake.url), id=fake.url) for fake in (one, two)]
        chain = RouteChain(routes, lambda route: providers.load(route, faults=False))
        context = RecordedRun()
        try:
            answer = run(replace(agent_for("Hi"), chain=chain), context)
        finally:
            chain.close()
        return Outcome(answer, context, one.bodies, (len(one.bodies), len(two.bodies)))
