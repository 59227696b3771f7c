"""The verdicts of `python -m bench.mcp_losses`: a trial notices what must never happen."""

import pytest

from bench.mcp_losses.trials import Trial

ECHO, LOST = "Echo: x", "The connection to the server was lost."
MAYBE = f"{LOST} The call may have taken effect."


def trial(output: str, effects: int, status: str = "completed") -> Trial:
    return Trial(point="p", status=status, outputs={"a": [output]}, effects={"a": effects}, calls=1)


@pytest.mark.parametrize(("output", "effects"), [(ECHO, 1), (MAYBE, 1), (MAYBE, 0), (LOST, 0)])
def test_a_trial_accepts_what_is_promised(output: str, effects: int) -> None:
    """A result, an unknown outcome and a call that was not made are truthful."""
    assert [] == trial(output, effects).faults


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (trial(ECHO, 2), "2 effects under one key"),
        (trial(ECHO, 0), "a result without an effect"),
        (trial(LOST, 1), "an effect that the model does not know of"),
        (trial(ECHO, 1, "failed"), "the run is failed"),
    ],
)
def test_a_trial_notices(found: Trial, fault: str) -> None:
    """A trial reports doubled and concealed effects."""
    [said] = found.faults

    assert said.startswith(fault)
