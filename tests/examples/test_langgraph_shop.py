"""The adapter for LangGraph in a worker that has no other framework."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench.frameworks.chat_server import ChatServer
from tests.examples.test_agents import FRAMEWORKS, TURNS, pytestmark  # noqa: F401 the mark and skip
from tests.system import running_system
from tests.web_server import ROOT

OTHERS = ("agents", "openai_agents-*", "pydantic_ai*")


def test_the_folder_of_the_guide_needs_no_other_framework(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    """It has the files that docs/how-to/agents.md copies, and its agent carries out a run."""
    page = (ROOT / "docs" / "how-to" / "agents.md").read_text()
    [block] = re.findall(r"^```sh\n([^`]*ARKLOOP_PLUGINS=[^`]*)^```", page, re.MULTILINE)
    copying, folder = re.split("^ARKLOOP_PLUGINS=", block, flags=re.MULTILINE)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run(["sh", "-ec", copying], cwd=tmp_path, check=True)
    frameworks = tmp_path / "frameworks"
    frameworks.mkdir()
    others = {path for name in OTHERS for path in FRAMEWORKS.glob(name)}
    for path in set(FRAMEWORKS.iterdir()) - others:
        (frameworks / path.name).symlink_to(path)
    with ChatServer() as model:
        environ = {
            "ARKLOOP_PLUGINS": str(tmp_path / folder.split()[0]),
            "TEST_FRAMEWORKS": str(frameworks),
            "PYTHONPATH": str(ROOT / "tests" / "examples" / "frameworks"),
            "OPENAI_BASE_URL": model.url,
            "OPENAI_API_KEY": "sk-of-nobody",
            "SHOP_CANCELLED": str(tmp_path / "cancelled"),
        }
        with running_system(new_database, tmp_path, web=1, environ=environ) as system:
            user = system.caller()
            user.made("/v1/personas", {"key": "shop", "agent": "langgraph_shop"})
            run = user.ended(user.run("Cancel order A1.", persona_id="shop"))

    assert ("completed", TURNS[-1]) == (run["status"], run["output"])
