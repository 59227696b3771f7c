"""A run that waits, for the tests of streams."""

import pytest

from tests.caller import Caller


@pytest.fixture(scope="module")
def waiting_run(user: Caller) -> str:
    run_id = user.run({"say": "Well."}, {"tool": "ask_user", "args": {"question": "?"}})
    user.until(run_id, "status", "waiting_for_input")
    return run_id
