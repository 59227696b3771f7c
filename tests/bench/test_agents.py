"""The verdicts of `python -m bench.agents`: a trial notices what must never happen."""

import json

import pytest

from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME
from bench.agents.trials import STEPS, Trial

RESULTS = {number: [f"done {number}"] for number in range(STEPS)}
EFFECTS = dict.fromkeys(range(STEPS), 1)


def trial(
    status: str = "completed", *, results: dict[int, list[str]], effects: dict[int, int]
) -> Trial:
    results, effects = {**RESULTS, **results}, {**EFFECTS, **effects}
    output = json.dumps([outputs[0] for outputs in results.values() if outputs])
    return Trial(point="p", status=status, output=output, results=results, effects=effects)


@pytest.mark.parametrize(
    ("results", "effects"), [({}, {}), ({0: [UNKNOWN_OUTCOME]}, {0: 0}), ({}, {1: 2})]
)
def test_a_trial_accepts_what_is_promised(
    results: dict[int, list[str]], effects: dict[int, int]
) -> None:
    """An unknown outcome and a repeated idempotent step are truthful."""
    assert [] == trial(results=results, effects=effects).faults


@pytest.mark.parametrize(
    ("results", "effects", "fault"),
    [
        ({}, {0: 2}, "2 effects of step 0"),
        ({}, {1: 0}, "a result of step 1 without an effect"),
        ({1: [UNKNOWN_OUTCOME]}, {}, "step 1 without its result"),
        ({2: ["done 2", "done 2"]}, {}, "2 results of step 2"),
    ],
)
def test_a_trial_notices(
    results: dict[int, list[str]], effects: dict[int, int], fault: str
) -> None:
    """A trial reports doubled and lost steps."""
    [found] = trial(results=results, effects=effects).faults

    assert found.startswith(fault)
