"""The verdicts of `python -m bench.client_tools`: a trial notices what must never happen."""

from pathlib import Path
from typing import Any

import pytest

from bench.client_tools.__main__ import ENVIRON
from bench.client_tools.trials import UNKNOWN, WEB_POINTS, Bench, Trial
from bench.service import Service
from tests.waiting import eventually

CALLS = [f"call_{turn}_{call}" for turn in (1, 2) for call in (1, 2, 3)]
RESULTS = tuple((id_, "appended" if id_.endswith("_2") else f"of {id_}") for id_ in CALLS)
ACCEPTED = {id_: f"of {id_}" for id_ in CALLS if not id_.endswith("_2")}


def _trial(**changes: Any) -> Trial:
    right = {"accepted": ACCEPTED, "results": RESULTS, "effects": {"1": 1, "2": 1}}
    return Trial(point="p", **{"status": "completed", **right, **changes})


def _with(output: str) -> dict[str, Any]:
    return {"results": tuple((i, output if i == "call_1_2" else o) for i, o in RESULTS)}


def test_a_trial_accepts_what_is_promised() -> None:
    """All results, and unknown outcomes of the server's own calls, with or without an effect."""
    unknown = _with(f"{UNKNOWN}: …")

    assert [] == _trial().faults
    assert [] == _trial(**unknown).faults
    assert [] == _trial(**unknown, effects={"2": 1}).faults


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"status": "waiting_for_input"}, "the run is waiting_for_input"),
        ({"results": RESULTS[::-1]}, "the results are those of"),
        ({"accepted": {"call_1_1": "another"}}, "an accepted result of call_1_1 is lost"),
        ({"effects": {"1": 2, "2": 1}}, "2 effects of call_1_2"),
        ({"effects": {"2": 1}}, "call_1_2 has a result without an effect"),
        (_with("failed"), "the model does not know of the effect of call_1_2"),
    ],
)
def test_a_trial_notices(changes: dict[str, Any], fault: str) -> None:
    """A trial reports lost results, doubled effects and runs that were left waiting."""
    [found] = _trial(**changes).faults

    assert found.startswith(fault)


@pytest.mark.processes
@pytest.mark.parametrize("point", WEB_POINTS)
def test_the_web_server_dies_at_its_point(point: str, tmp_path: Path) -> None:
    """It is not killed before it has come there."""
    with Service(environ=ENVIRON) as service:
        trials = Bench(service, tmp_path).round(point, 1)
        # What gunicorn's master says of a process that it has not ended itself, by a thread that
        # writes its lines.
        eventually(lambda: "was sent SIGKILL" in service.log("web"), seconds=10)

    assert [] == [fault for trial in trials for fault in trial.faults]
