"""The figures of context handling, each in a small version of its scenario."""

import pytest

from bench.context import scenarios


def test_a_run_of_many_steps_pays_a_tenth_for_what_it_sent_before() -> None:
    """Between two truncations each request begins with the one before it, and is in the cache."""
    found = scenarios.many_steps(steps=90, context_tokens=40_000)

    assert found.truncations >= 4
    assert 1.0 == found.shared_between_truncations
    assert found.usd < found.usd_without_cache / 3
    assert 0 == found.refused


def test_200_steps_at_128k_cost_less_than_the_target() -> None:
    """The prices are those that the library has for a model of this context."""
    found = scenarios.many_steps()

    assert found.usd <= 3.5
    assert found.shared_between_truncations >= 0.95


@pytest.mark.parametrize("text", scenarios.TEXTS)
@pytest.mark.parametrize("context_tokens", [None, 4_096, 128_000])
def test_every_run_of_a_dense_thread_completes(text: str, context_tokens: int | None) -> None:
    """A model of 4,096 tokens that counts more than we estimate, whatever its route says of it."""
    answers, refused = scenarios.dense_thread(scenarios.TEXTS[text], 40, context_tokens)

    assert 40 == answers
    assert refused <= (context_tokens != 4_096)


@pytest.mark.parametrize(("results", "context_tokens"), [(10, 128_000), (1, 15_000), (3, 15_000)])
def test_what_is_in_the_middle_of_long_results_is_found(results: int, context_tokens: int) -> None:
    """The model reads it by `read_result`, which is offered as soon as a result is cut."""
    found = scenarios.long_results(results, 60_000, context_tokens)

    assert results == len(found.answer.split())
    assert results == found.reads
    assert 0 == found.refused


def test_a_fact_outlives_many_summaries() -> None:
    """The last turn knows what the first one said; the summaries cost little."""
    is_found, summaries, part = scenarios.remembered(200)

    assert is_found
    assert 3 <= summaries <= 20
    assert part < 0.1
