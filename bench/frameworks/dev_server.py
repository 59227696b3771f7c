"""LangGraph's own development server (`langgraph dev`), as a process of its own."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from arkloop.cli.dev.die_with_parent import dying_with_parent
from bench.service import ROOT

READY_SECONDS = 120.0
LANGGRAPH_SERVER = ROOT / ".cache" / "langgraph_server"


def is_installed() -> bool:
    """Return whether `scripts/install-langgraph-server` has installed it."""
    return (LANGGRAPH_SERVER / ".installed").exists()


def start(
    folder: Path, port: int, graphs: Mapping[str, str], environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own, and wait until it serves these graphs.

    `graphs` are the attributes of files by name, as in `langgraph.json`; its log and its state are
    in the folder.

    Raises:
        TimeoutError: with the end of its log.
    """
    config = {"dependencies": ["."], "graphs": {**graphs}}
    (folder / "langgraph.json").write_text(json.dumps(config))
    command = [str(LANGGRAPH_SERVER / "bin" / "langgraph"), "dev", "--no-browser"]
    options = ["--no-reload", "--allow-blocking", "--port", str(port)]
    variables = {
        "PATH": f"{LANGGRAPH_SERVER}/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "true",
        **environ,
    }
    with (folder / "langgraph.log").open("ab") as log:
        process = subprocess.Popen(
            dying_with_parent([*command, *options]),
            cwd=folder,
            env=variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/ok", trust_env=False).is_success:
                return process
        time.sleep(0.1)
    end(process)
    raise TimeoutError((folder / "langgraph.log").read_text()[-4000:])


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, as a fault would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
