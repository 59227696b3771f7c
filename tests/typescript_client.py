"""Programs that use `@arkloop/client` in Node.js: see client_*.mjs in tests/front_ends."""

import json
import subprocess
from typing import Any

from tests.ai_sdk_pages import NODE, PROGRAMS


def called(call: str, *responses: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Make one call, which gets these responses if there are any; return what became of it."""
    given = {"call": call, **options, **({"responses": responses} if responses else {})}
    return dict(run("client_call.mjs", given))


def run(program: str, given: Any) -> Any:
    """Run a program of tests/front_ends with this JSON; return the JSON that it prints."""
    command = [str(NODE), "--disable-warning=ExperimentalWarning", str(PROGRAMS / program)]
    command.append(json.dumps(given))
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)
