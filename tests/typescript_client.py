"""Programs that use `@arkloop/client` in Node.js: see client_*.mjs in tests/front_ends."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.ai_sdk_pages import MODULES, NODE, PROGRAMS, ROOT

CLIENT = ROOT / "clients" / "typescript"


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


def install(program: Path) -> tuple[int, str]:
    """Build the package for a program in this folder; return what `compiled` does."""
    package = program / "node_modules" / "@arkloop" / "client"
    built = compiled(CLIENT, "--outDir", str(package / "dist"))
    shutil.copy(CLIENT / "package.json", package)
    return built


def compiled(project: Path, *options: str) -> tuple[int, str]:
    """Return the status and the errors of the compiler."""
    checked = subprocess.run(
        [str(MODULES / ".bin" / "tsc"), "-p", str(project), *options],
        env={**os.environ, "PATH": f"{NODE.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    return checked.returncode, checked.stdout
