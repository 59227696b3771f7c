"""A call of `@arkloop/client` in Node.js: see tests/front_ends/client_call.mjs."""

import json
import subprocess
from typing import Any

from tests.ai_sdk_pages import NODE, PROGRAMS


def called(call: str, *responses: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Make one call, which gets these responses if there are any; return what became of it."""
    given = {"call": call, **options, **({"responses": responses} if responses else {})}
    program = subprocess.run(
        [
            str(NODE),
            "--disable-warning=ExperimentalWarning",
            str(PROGRAMS / "client_call.mjs"),
            json.dumps(given),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert 0 == program.returncode, program.stderr
    return dict(json.loads(program.stdout))
