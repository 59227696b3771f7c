"""The verdicts of `python -m bench.agents`: a trial notices what must never happen."""

import json
from dataclasses import replace
from typing import Any

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
    ("changes", "fault"),
    [
        ({"checkpoints": [("from", 0, 1), ("stored", 4, 1), ("from", 2, 2)]}, "continued from 2"),
        ({"sub_runs": 3}, "3 sub-runs"),
        ({"sub_results": ["sub 1", "sub 0"]}, "other results of sub-runs"),
        ({"seqs": [1, 2, 2, 3]}, "the numbers of its events are [1, 2, 2, 3]"),
        ({"seqs": [1, 3]}, "the numbers of its events are [1, 3]"),
        ({"last_type": "message.delta"}, "its last event is message.delta"),
    ],
)
def test_a_trial_notices_what_a_lost_worker_has_done(changes: dict[str, Any], fault: str) -> None:
    """A trial reports a checkpoint that is passed over, and events of two writers."""
    fine: dict[str, Any] = {
        # The last one is that of a frozen worker that has woken.
        "checkpoints": [("from", 0, 1), ("stored", 2, 2), ("from", 2, 2), ("from", 0, 1)],
        "seqs": [1, 2, 3],
    }
    whole = trial(results={}, effects={})

    [found] = replace(whole, **{**fine, **changes}).faults

    assert found.startswith(fault)
    assert [] == replace(whole, **fine).faults


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
