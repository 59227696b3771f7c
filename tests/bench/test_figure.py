"""The evaluation of numbers: percentiles, targets, ratios, the table."""

from bench.figure import Figure, Limit, percentile
from bench.table import number, table


def a_figure(**values: object) -> Figure:
    return Figure(
        **{
            "name": "create",
            "unit": "ms",
            "numbers": {"p50": 4.0, "p99": 9.0},
            "count": 200,
            **values,
        }
    )


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]

    found = [percentile(values, part) for part in (0.0, 0.5, 0.99, 1.0)]

    assert [1.0, 51.0, 100.0, 100.0] == found


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert [7.0, 7.0] == [percentile([7.0], 0.5), percentile([7.0], 0.99)]


def test_a_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.5) == 0.0


def test_a_target_is_missed_on_its_wrong_side_only() -> None:
    assert [] == a_figure(at_most={"p50": 4.0}, at_least={"p99": 9.0}).missed
    assert ["p99"] == a_figure(at_most={"p50": 4.0, "p99": 8.9}).missed
    assert ["p50"] == a_figure(at_least={"p50": 4.1}).missed


def test_a_ratio_may_have_a_target() -> None:
    limit = Limit(name="bare", of="p50", value=16.0)

    assert a_figure(limit=limit).ratio == 0.25
    assert [] == a_figure(limit=limit, at_least={"ratio": 0.25}).missed
    assert ["ratio"] == a_figure(limit=limit, at_least={"ratio": 0.3}).missed


def test_without_a_limit_there_is_no_ratio() -> None:
    assert a_figure().ratio is None
    assert a_figure(limit=Limit(name="bare", of="p50", value=0.0)).ratio is None


def test_a_row_has_everything() -> None:
    limit = Limit(name="bare", of="p99", value=3.0)
    row = a_figure(limit=limit, scale=("clients", 32.0), at_most={"p99": 5.0}).row()

    assert {"p50": 4.0, "p99": 9.0} == row["numbers"]
    assert ("clients", 32.0) == row["scale"]
    assert {"name": "bare", "of": "p99", "value": 3.0, "ratio": 3.0} == row["limit"]
    assert ["p99"] == row["missed"]


def test_the_table_says_what_was_reached_and_what_was_missed() -> None:
    limit = Limit(name="bare", of="p50", value=2.0)
    figures = [
        a_figure(at_most={"p99": 10.0}, limit=limit),
        a_figure(name="cancel", at_most={"p99": 8.0}, scale=("runs", 6000.0)),
        a_figure(name="no target"),
    ]

    lines = table({"latency": figures}).splitlines()

    assert "latency" in lines
    [create, cancel, other] = lines[-3:]
    assert create.startswith("create ") and "p99 ≤ 10" in create and "reached" in create
    assert "bare: p50 2" in create and create.endswith("2 ×")
    assert cancel.startswith("cancel [6,000 runs] ") and "MISSED p99" in cancel
    assert "reached" not in other and "MISSED" not in other


def test_numbers_have_three_digits_that_count() -> None:
    shown = [number(value) for value in (0, 0.123, 4, 12.34, 123.4, 6000, 51234.5)]

    assert ["0", "0.12", "4", "12.3", "123", "6,000", "51,234"] == shown
