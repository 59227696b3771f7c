"""`/v1/responses` by the unmodified OpenAI Agents SDK: sessions, approvals and handoffs."""

import json
import os
import subprocess
import sys

import pytest

from tests.caller import Caller
from tests.web_server import ROOT

FRAMEWORKS = ROOT / ".cache" / "agents"

pytestmark = [
    pytest.mark.agents,
    pytest.mark.skipif(
        not (FRAMEWORKS / "agents").is_dir() and "NEED_AGENTS" not in os.environ,
        reason="no frameworks: `make test-agents` installs them",
    ),
]


def test_the_agents_sdk_has_personas_as_models(user: Caller) -> None:
    """A session has a call in each turn, an approval is given, and a run keeps its model.

    A persona may declare the tool itself.
    """
    schema = {"type": "object", "properties": {"exact": {"type": "boolean"}}}
    tool = {"name": "locate", "description": "Where the user is.", "parameters": schema}
    fields = {"key": "declares", "client_tools": [{**tool, "client": True}]}
    user.made("/v1/personas", {**fields, "overrides": []})
    environ = {
        **os.environ,
        "TEST_FRAMEWORKS": str(FRAMEWORKS),
        "PYTHONPATH": str(ROOT / "tests" / "examples" / "frameworks"),
    }
    command = [sys.executable, "-m", "responses_client", user.url, user.api_key()[1]]
    made = subprocess.run(command, cwd=ROOT, env=environ, stdout=-1, check=True, timeout=120)

    said, approved, handoffs, done = json.loads(made.stdout)
    assert ["a", "b", "c"] == said
    assert [1, "Done."] == approved
    assert [None, "model"] == handoffs
    assert "Done." == done
