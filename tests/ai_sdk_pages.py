"""Pages of the AI SDK in Node.js that lose their connection: see tests/front_ends/trial.mjs."""

import json
import platform
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
MODULES = ROOT / ".cache" / "front_ends" / "node_modules"
_MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "x64")
NODE = MODULES / f"node-linux-{_MACHINE}" / "bin" / "node"
PROGRAMS = ROOT / "tests" / "front_ends"
TRIAL_SECONDS = 300.0
#: Client, the version that it says it is, and its transport.
KINDS = (
    ("ai7", "7.0.173", "workflow"),
    ("ai7", "7.0.173", "default"),
    ("ai6", "6.0.326", "default"),
)


class Pages:
    """A Node.js with any number of pages, each of which plays a trial: see trial.mjs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(NODE), str(PROGRAMS / "trial.mjs"), str(MODULES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self._results: dict[int, dict[str, Any]] = {}
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._reader.join()
        self._process.communicate()

    def play(self, number: int, **trial: Any) -> dict[str, Any]:
        """Return the result of the trial."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"number": number, **trial}) + "\n")
            self._process.stdin.flush()
        with self._arrived:
            assert self._arrived.wait_for(lambda: number in self._results, TRIAL_SECONDS)
            result = self._results.pop(number)
        return result

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            result = json.loads(line)
            with self._arrived:
                self._results[result["number"]] = result
                self._arrived.notify_all()
