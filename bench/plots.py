"""Charts of how cost grows: `python -m bench.plots RESULTS.json FOLDER`."""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

#: For people who cannot tell red from green.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
TARGET_COLOUR = "#888888"
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A number of the figures whose name the pattern matches, by their scale."""

    label: str
    figure: str  # a pattern for the whole name
    number: str


@dataclass(frozen=True, slots=True)
class Chart:
    file: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    target: tuple[str, float] | None = None  # how it is called, where it is
    limit: bool = False  # draw the limits of the figures, too


_LISTS = {
    "runs, first page": r"GET /v1/runs\?limit=50, owner",
    "runs, page 100 and on": r"GET /v1/runs, page 100 and on, owner",
    "failed runs": r"GET /v1/runs\?status=failed, owner",
    "threads": r"GET /v1/threads, owner",
    "messages of the largest thread": r"GET /v1/threads/\{id\}/messages, the largest thread",
    "one run": r"GET /v1/runs/\{id\}",
}

CHARTS = (
    Chart(
        "create-latency",
        "Creating runs, 2 web processes: latency by clients",
        "clients, each with one request at a time",
        "POST → 201, ms",
        tuple(Line(part, r"POST …/runs by number of clients", part) for part in ("p50", "p99")),
        target=("target of p99 at 32 clients: 100 ms", 100),
    ),
    Chart(
        "bursts",
        "Runs of 100 deltas × 20 ms, begun at once: time to their ends",
        "runs, each followed by a client",
        "POST → last event at the client, s",
        tuple(
            Line(label, r"burst of runs: POST → .*", number)
            for label, number in (("p50", "p50"), ("p99", "p99"), ("first POST → last end", "all"))
        ),
        target=("the model alone: 2 s", 2),
    ),
    Chart(
        "idle-streams",
        "Memory of one web process for each idle stream",
        "open streams",
        "KB for each stream",
        (Line("web process", r"idle stream: memory of the web process", "each"),),
        target=("target from 2,000 streams: 14 KB", 14),
        limit=True,
    ),
    Chart(
        "replay",
        "Replay of a finished run to one client, by its events",
        "events of the run",
        "events/s",
        (
            Line("10,000 runs stored", r"replay of a run's events, 10,000 runs stored", "median"),
            Line("100,000 runs stored", r"replay of a run's events, 100,000 runs stored", "median"),
            Line("1 M runs stored", r"replay of a run's events, 1,000,000 runs stored", "median"),
        ),
        target=("target at 100,000 events: 50,000 events/s", 50_000),
    ),
    Chart(
        "lists",
        "Pages of lists over HTTP, by what is stored",
        "stored runs, with ten times as many events",
        "p99, ms",
        tuple(Line(label, pattern, "p99") for label, pattern in _LISTS.items()),
        target=("target: 20 ms", 20),
    ),
)


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw one PNG for each chart for which there are figures. `rows` as `Figure.row` makes
    them.
    """
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for chart in CHARTS:
        picture = Picture(figsize=(7.2, 4.4), dpi=150, layout="constrained")
        axes = picture.add_subplot()
        if _draw_lines(axes, chart, rows):
            # Below the axes: inside it may lie on a line.
            columns = 4 if len(axes.lines) <= 4 else 3
            picture.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
            drawn.append(folder / f"{chart.file}.png")
            picture.savefig(drawn[-1])
    picture = Picture(figsize=(7.2, 3.6), dpi=150, layout="constrained")
    if _draw_processes(picture, rows):
        drawn.append(folder / "processes.png")
        picture.savefig(drawn[-1])
    return drawn


def _draw_lines(axes: Axes, chart: Chart, rows: Sequence[Row]) -> bool:
    ticks: set[float] = set()
    highest = 0.0
    for line, colour in zip(chart.lines, COLOURS, strict=False):
        points = _points(rows, line)
        if not points:
            continue
        x, y = zip(*points, strict=True)
        ticks.update(x)
        highest = max(highest, *y)
        axes.plot(x, y, "o-", label=line.label, color=colour)
        limits = _limits(rows, line) if chart.limit else []
        if len(chart.lines) == 1:
            _name_points(axes, points, dict(point for _, point in limits))
        if limits:
            x, y = zip(*[point for _, point in limits], strict=True)
            axes.plot(x, y, "s--", label=limits[0][0], color=COLOURS[-1], markersize=4)
    if not ticks:
        return False
    if chart.target is not None:
        axes.axhline(chart.target[1], color=TARGET_COLOUR, linestyle=":", label=chart.target[0])
        highest = max(highest, chart.target[1])
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.margins(x=0.08)
    axes.set_ylim(0, highest * 1.15)
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    _tidy(axes)
    return True


def _draw_processes(picture: Picture, rows: Sequence[Row]) -> bool:
    """Draw one web process and worker next to two of each: three numbers with axes of their own."""
    bars = (
        Line("runs created/s", r"web processes and workers that give way: create runs, .*", "rate"),
        Line(
            "runs finished/s",
            r"web processes and workers that give way: first POST → last end",
            "finished",
        ),
        Line(
            "burst: POST → end, p99, s",
            r"web processes and workers that give way: burst .*: POST → .*",
            "p99",
        ),
    )
    if not any(_points(rows, line) for line in bars):
        return False
    picture.suptitle("One web process and one worker, and two of each, on one machine")
    for number, (line, colour) in enumerate(zip(bars, COLOURS, strict=False), start=1):
        axes = picture.add_subplot(1, len(bars), number)
        points = _points(rows, line)
        names = [f"{x:.0f} + {x:.0f}" for x, _ in points]
        drawn = axes.bar(names, [y for _, y in points], color=colour, width=0.55)
        axes.bar_label(drawn, fmt=_number)
        axes.set_title(line.label, fontsize=9)
        axes.set_xlabel("web + worker processes", fontsize=8)
        axes.margins(x=0.2, y=0.15)
        _tidy(axes)
    return True


def _points(rows: Iterable[Row], line: Line) -> list[tuple[float, float]]:
    return sorted((row["scale"][1], row["numbers"][line.number]) for row in _of(rows, line))


def _limits(rows: Iterable[Row], line: Line) -> list[tuple[str, tuple[float, float]]]:
    found = [row for row in _of(rows, line) if row["limit"]]
    return sorted((r["limit"]["name"], (r["scale"][1], r["limit"]["value"])) for r in found)


def _of(rows: Iterable[Row], line: Line) -> list[Row]:
    return [row for row in rows if row["scale"] and re.fullmatch(line.figure, row["figure"])]


def _name_points(
    axes: Axes, points: Iterable[tuple[float, float]], limits: dict[float, float]
) -> None:
    """Write each number at its point, away from the limit at the same `x`."""
    for x, y in points:
        offset = 8 if y > limits.get(x, y) else -16
        axes.annotate(_number(y), (x, y), (0, offset), textcoords="offset points", ha="center")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for path in draw(json.loads(options.results.read_text())["rows"], options.folder):
        print(path)


if __name__ == "__main__":
    main()
