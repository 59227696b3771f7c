"""Figures as a person reads them: one line each; all of them, beside their targets and limits."""

from collections.abc import Iterable, Mapping, Sequence

from bench.figure import Figure

HEAD = ("figure", "n", "measured", "target", "", "limit of the same run", "ratio")


def line(figure: Figure) -> str:
    """Render one figure, as soon as it is known."""
    name, count, *rest = cells(figure)
    return f"{name:<60} n={count:<8} " + "  ".join(filter(None, [*rest, figure.note]))


def table(groups: Mapping[str, Sequence[Figure]]) -> str:
    """Render every figure below the name of its group; columns are as wide as their content."""
    rows = {name: [cells(figure) for figure in figures] for name, figures in groups.items()}
    widths = [
        max(map(len, column))
        for column in zip(HEAD, *(row for group in rows.values() for row in group), strict=True)
    ]

    def padded(row: Iterable[str]) -> str:
        together = zip(row, widths, strict=True)
        return "  ".join(cell.ljust(width) for cell, width in together).rstrip()

    lines = [padded(HEAD), padded("-" * width for width in widths)]
    for name, group in rows.items():
        lines += ["", name, *map(padded, group)]
    return "\n".join(lines)


def cells(figure: Figure) -> tuple[str, ...]:
    """Return the content of each column."""
    limit, ratio = figure.limit, figure.ratio
    targets = [
        f"{name} {sign} {number(value)}"
        for sign, wanted in (("≤", figure.at_most), ("≥", figure.at_least))
        for name, value in wanted.items()
    ]
    verdict = ("MISSED " + ", ".join(figure.missed) if figure.missed else "reached") * bool(targets)
    scale = f" [{figure.scale[1]:,.0f} {figure.scale[0]}]" if figure.scale else ""
    return (
        figure.name + scale,
        f"{figure.count:,}",
        "  ".join(f"{name} {number(value)}" for name, value in figure.numbers.items())
        + f" {figure.unit}",
        ", ".join(targets),
        verdict,
        f"{limit.name}: {limit.of} {number(limit.value)}" if limit else "",
        "" if ratio is None else f"{number(ratio)} ×",
    )


def number(value: float) -> str:
    """Format three significant digits, or all of an integer."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
