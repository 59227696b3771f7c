"""The run as the code of a custom agent sees it."""

import pytest

from arkloop.shared.agents.agent_run import RunStopped


def test_a_stop_is_not_swallowed() -> None:
    """An agent that catches every exception of a step does not catch the end of its run."""

    def step() -> str:
        try:
            raise RunStopped("cancelled")
        except Exception as error:
            return str(error)

    with pytest.raises(RunStopped) as raised:
        step()

    assert "cancelled" == raised.value.reason
