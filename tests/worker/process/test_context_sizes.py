"""The contexts that a worker has asked for or learned."""

from dataclasses import replace

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.storage.connections import Connections
from arkloop.worker.process.context_sizes import ContextSizes

ROUTE = Route(id="r", provider="openai", model="m", base_url="http://127.0.0.1:9/v1")


def never(route: Route) -> int | None:
    raise AssertionError("asked")


def test_a_server_is_asked_once_for_all_workers(connections: Connections) -> None:
    """A route with a size needs no question; an answer that says nothing is kept for a moment."""
    first, second = ContextSizes(connections), ContextSizes(connections)
    silent = replace(ROUTE, id="silent")
    asked: list[str] = []

    def ask(route: Route) -> int | None:
        asked.append(route.id)
        return None if route.id == "silent" else 4_096

    assert 9_000 == first.complete(replace(ROUTE, context_tokens=9_000), never).context_tokens
    first = ContextSizes(connections)
    assert [4_096, 4_096] == [first.complete(ROUTE, ask).context_tokens for _ in range(2)]
    assert 4_096 == second.complete(ROUTE, never).context_tokens
    assert [None, None] == [first.complete(silent, ask).context_tokens for _ in range(2)]
    assert ["r", "silent"] == asked


def test_what_was_learned_is_for_the_same_model_at_the_same_server(
    connections: Connections,
) -> None:
    """It applies where it is less than what the route says; another model is asked for anew."""
    configured = replace(ROUTE, context_tokens=9_000)
    ContextSizes(connections).learn(configured, 8_000)
    sizes = ContextSizes(connections)
    other = replace(ROUTE, model="n")

    assert 8_000 == sizes.complete(configured, never).context_tokens
    assert 7_000 == sizes.complete(other, lambda _route: 7_000).context_tokens
    assert 6_000 == sizes.complete(replace(ROUTE, context_tokens=6_000), never).context_tokens


def test_a_new_setting_counts_at_once(connections: Connections) -> None:
    """A size that was asked for, or learned under another setting, does not apply to it."""
    sizes, route = ContextSizes(connections), replace(ROUTE, id="set")
    configured = replace(route, context_tokens=32_768)
    assert 4_096 == sizes.complete(route, lambda _route: 4_096).context_tokens

    assert 32_768 == sizes.complete(configured, never).context_tokens
    assert 32_768 == ContextSizes(connections).complete(configured, never).context_tokens
    sizes.learn(configured, 16_384)
    again = replace(configured, context_tokens=32_000)
    assert 32_000 == sizes.complete(again, never).context_tokens


def test_a_run_learns_again_what_it_has_learned_before(connections: Connections) -> None:
    """The size is kept for the route as it is configured, and not as the run had completed it."""
    sizes, configured = ContextSizes(connections), replace(ROUTE, id="again", context_tokens=9_000)
    sizes.learn(configured, 8_000)
    learn = sizes.learner([configured])

    learn(sizes.complete(configured, never), 7_000)

    assert 7_000 == ContextSizes(connections).complete(configured, never).context_tokens


def test_the_server_of_a_route_whose_key_is_lost_is_not_asked(connections: Connections) -> None:
    """Its size is open afterwards, not taken for unknown: the key may be stored again."""
    sizes = ContextSizes(connections)

    lost = sizes.complete(replace(ROUTE, has_lost_key=True), never)

    assert lost.context_tokens is None
    assert 4_096 == sizes.complete(ROUTE, lambda _route: 4_096).context_tokens
