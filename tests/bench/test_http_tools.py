"""The verdicts of `python -m bench.http_tools`: a trial notices what must never happen."""

import pytest

from bench.http_tools.trials import MAY_BE_DONE, UNKNOWN, Trial

DONE = {"path": "/once", "status": "completed", "outputs": ("done 3",), "effects": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outputs": (f"{UNKNOWN}: …",)},
        {"outputs": (f"{UNKNOWN}: …",), "effects": 0},
        {"outputs": (f"The server closed the connection. {MAY_BE_DONE}",), "effects": 0},
        {"outputs": ("Not called: The server is unreachable.",), "effects": 0},
        {"path": "/idempotent"},
    ],
)
def test_a_trial_accepts_what_is_promised(changes: dict[str, object]) -> None:
    """A result, an unknown outcome, and a call that was not made are all truthful."""
    assert [] == _trial(changes).faults


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"status": "failed"}, "the run is failed"),
        ({"outputs": ("done 3", "done 3")}, "2 results of one call"),
        ({"effects": 2}, "2 effects under one key"),
        ({"effects": 0}, "a result without an effect"),
        ({"outputs": ("Not called: …",)}, "an effect that the model does not know of"),
        ({"path": "/idempotent", "outputs": (UNKNOWN,)}, "an idempotent call without its result"),
    ],
)
def test_a_trial_notices(changes: dict[str, object], fault: str) -> None:
    """A trial reports doubled, lost and concealed effects."""
    [found] = _trial(changes).faults

    assert found.startswith(fault)


def _trial(changes: dict[str, object]) -> Trial:
    return Trial(point="p", number=3, **{**DONE, **changes})  # type: ignore[arg-type]  # by name
