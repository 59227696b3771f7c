"""The search visits every state, and returns the shortest way to what is wrong."""

from collections.abc import Iterator

import pytest

from chaos.model.explorer import HOPELESS, STUCK, Search, TooManyStates

Jugs = tuple[int, int]


def pour(jugs: Jugs) -> Iterator[tuple[str, Jugs]]:
    """Yield what can be done with jugs of three and of five litres."""
    three, five = jugs
    yield "fill three", (3, five)
    yield "fill five", (three, 5)
    yield "empty three", (0, five)
    yield "empty five", (three, 0)
    into_five = min(three, 5 - five)
    yield "three into five", (three - into_five, five + into_five)
    into_three = min(five, 3 - three)
    yield "five into three", (three + into_three, five - into_three)


def _search(**changes: object) -> Search[Jugs]:
    how = {"of_states": {}, "of_moves": {}, "is_done": lambda _jugs: True, **changes}
    return Search((0, 0), pour, **how)  # type: ignore[arg-type]  # fields by name


def test_every_state_is_visited_once() -> None:
    """All ways to fill the jugs are found, each with its six moves."""
    result = _search().run()

    assert (16, 16 * 6, 0) == (result.states, result.moves, result.ends)
    assert result.found is None


def test_a_counterexample_is_a_shortest_path() -> None:
    """Four litres take six moves; no other way is shorter."""
    found = (
        _search(of_states={"no four": lambda jugs: "four" if jugs[1] == 4 else None}).run().found
    )

    assert found is not None
    assert ("no four", 6) == (found.invariant, len(found.path))
    assert (3, 4) == found.path[-1][1]
    assert "   1 fill five" in str(found)


def test_a_move_that_breaks_an_invariant_is_the_last_of_the_path() -> None:
    """What is checked are the states before and after a move, and its label."""
    spilt = {"no spill": lambda before, label, _after: before[0] == 3 and label == "empty three"}

    found = _search(of_moves=spilt).run().found

    assert found is not None
    assert ["fill three", "empty three"] == [label for label, _ in found.path]


@pytest.mark.parametrize(
    ("is_request", "invariant"),
    [(False, None), (True, HOPELESS)],
)
def test_nobody_has_to_make_a_request(is_request: bool, invariant: str | None) -> None:
    """An end that only a request leads to is not reached for certain."""
    search = Search(
        0,
        lambda state: [("on", state + 1)] if state < 2 else [],
        of_states={},
        of_moves={},
        is_done=lambda state: state == 2,
        is_request=lambda _label: is_request,
    )
    found = search.run().found

    assert invariant == (found and found.invariant)


def test_a_dead_end_is_found() -> None:
    """A state without a move must be one that is done."""
    search = Search(
        0,
        lambda state: [("on", 1)] if state == 0 else [],
        of_states={},
        of_moves={},
        is_done=lambda state: state == 0,
    )
    found = search.run().found

    assert found is not None
    assert STUCK == found.invariant


def test_a_model_that_is_too_large_says_so() -> None:
    """A search that was cut short must not look like a proof."""
    with pytest.raises(TooManyStates):
        _search(max_states=10).run()
