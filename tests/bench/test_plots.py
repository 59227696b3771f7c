"""Charts are drawn from what the results hold, and from nothing else."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.figure import Figure, Limit


@pytest.fixture
def plots() -> ModuleType:
    """The module, whose library takes half a second to import: not all processes need it."""
    from bench import plots

    return plots


def a_row(name: str, scale: tuple[str, float], **numbers: float) -> dict[str, Any]:
    """Build a row as it comes back from the file of results."""
    limit = Limit(name="bare", of=next(iter(numbers)), value=1.0)
    figure = Figure(name=name, unit="", numbers=numbers, count=1, scale=scale, limit=limit)
    row: dict[str, Any] = json.loads(json.dumps(figure.row()))
    return row


def test_a_chart_is_drawn_for_what_was_measured(plots: ModuleType, tmp_path: Path) -> None:
    rows = [
        a_row("idle stream: memory of the web process", ("streams", streams), each=19.5)
        for streams in (500, 2000)
    ]

    drawn = plots.draw(rows, tmp_path / "charts")

    assert ["idle-streams.png"] == [path.name for path in drawn]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")


def test_without_figures_there_is_no_chart(plots: ModuleType, tmp_path: Path) -> None:
    assert [] == plots.draw([], tmp_path)
    assert [] == plots.draw([a_row("anything else", ("streams", 1), each=1)], tmp_path)
