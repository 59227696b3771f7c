"""Runs of the service as their events were stored, and the goldens that projections make of them.

`recorded/<name>.jsonl` are runs of the scripted model. `UPDATE_GOLDENS=1` writes the goldens anew.
"""

import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID

FOLDER = Path(__file__).parent
NAMES = sorted(file.stem for file in (FOLDER / "recorded").glob("*.jsonl"))
RUN_ID = UUID("01a20e81-4d93-779b-b068-b0852a03871d")


def events_of(name: str) -> list[dict[str, Any]]:
    """Return the events of a recorded run."""
    text = (FOLDER / "recorded" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def check_golden(version: str, name: str, found: bytes) -> None:
    """Compare the frames of a recorded run with those that this version of a protocol has."""
    golden = FOLDER / "goldens" / version / f"{name}.sse"
    if os.environ.get("UPDATE_GOLDENS"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_bytes(found)
    assert golden.read_text().split("\n\n") == found.decode().split("\n\n")
