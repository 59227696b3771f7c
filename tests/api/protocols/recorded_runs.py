"""Runs of the service as their events were stored, and the goldens that projections make of them.

`recorded/<name>.jsonl` are runs of the scripted model. `UPDATE_GOLDENS=1` writes the goldens anew.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from arkloop.api.protocols.projection import Projection
from arkloop.shared.events.types import TERMINAL_TYPES

FOLDER = Path(__file__).parent
NAMES = sorted(file.stem for file in (FOLDER / "recorded").glob("*.jsonl"))
RUN_ID = UUID("01a20e81-4d93-779b-b068-b0852a03871d")


def events_of(name: str) -> list[dict[str, Any]]:
    """Return the events of a recorded run."""
    text = (FOLDER / "recorded" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def project_all(events: Iterable[Mapping[str, Any]], projection: Projection) -> list[bytes]:
    """Return the frames of stored events; with the closing ones if the stream ends with them."""
    frames: list[bytes] = []
    ended = False
    for event in events:
        frames += projection.frames(event)
        ended = event["type"] in TERMINAL_TYPES
        if projection.is_over:
            break
    return [*frames, *projection.closing()] if ended or projection.is_over else frames


def check_golden(version: str, name: str, found: bytes) -> None:
    """Compare the frames of a recorded run with those that this version of a protocol has."""
    golden = FOLDER / "goldens" / version / f"{name}.sse"
    if os.environ.get("UPDATE_GOLDENS"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_bytes(found)
    assert golden.read_text().split("\n\n") == found.decode().split("\n\n")
