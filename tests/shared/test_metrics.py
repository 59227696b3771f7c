"""Metrics: nothing until they are on, and a bounded number of series then."""

import json
import re
import threading
from pathlib import Path

import pytest
import yaml

from arkloop.shared import metrics
from arkloop.shared.metrics import Cells, Metric

ROOT = Path(__file__).parents[2]


class Counted:
    """The cells of all series of a metric that is on."""

    def __init__(self, metric: Metric) -> None:
        self.cells: dict[tuple[str, ...], list[float]] = {}
        metric.enable(self._room, threading.Lock())

    def _room(self, _name: str, labels: tuple[str, ...], count: int) -> Cells:
        assert labels not in self.cells
        self.cells[labels] = [0.0] * count
        return self.cells[labels], 0


def test_what_is_counted_is_there() -> None:
    """Amounts add up under the values of the labels."""
    metric = Metric("Counter", "things", "Things.", ("kind",))
    metric.add(1, "before")
    counted = Counted(metric)
    metric.add(2, "big")
    metric.add(3, "big")
    assert {("big",): [5]} == counted.cells


def test_a_metric_without_labels_is_zero_from_the_beginning() -> None:
    """A rate needs a number before the first event."""
    assert {(): [0]} == Counted(Metric("Counter", "things", "Things.")).cells


def test_a_bucket_has_what_is_not_more_than_its_bound() -> None:
    """After the sum, a cell for each bucket, and one for what is beyond them."""
    metric = Metric("Histogram", "things_seconds", "Things.", (), (0.5, 1.0))
    counted = Counted(metric)
    for seconds in (0.25, 0.5, 0.75, 1.5, 2.0):
        metric.add(seconds)
    assert {(): [5.0, 2, 1, 2]} == counted.cells


def test_a_gauge_begins_at_zero() -> None:
    """What is open belongs to the process: its cells may be those of one that was killed."""
    cells = [3.0]
    gauge = Metric("Gauge", "open", "Open things.")
    gauge.enable(lambda *_series: (cells, 0), threading.Lock())
    assert [0.0] == cells


def test_threads_lose_no_count() -> None:
    """An addition reads and writes, and threads may take turns in between."""
    metric = Metric("Counter", "things", "Things.")
    counted = Counted(metric)

    def count() -> None:
        for _ in range(10_000):
            metric.add(1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(): [80_000]} == counted.cells


def test_the_number_of_series_is_bounded() -> None:
    """Values of labels beyond the limit are counted together."""
    metric = Metric("Counter", "things", "Things.", ("kind",))
    counted = Counted(metric)
    for number in range(metrics.MAX_SERIES + 50):
        metric.add(1, str(number))
    assert [50] == counted.cells["other",]


def test_a_status_is_counted_however_many_routes_were_asked_for() -> None:
    """A scan of all routes leaves the alert about errors in force."""
    metric = Metric("Counter", "requests", "Requests.", ("method", "route", "status"))
    counted = Counted(metric)
    for number in range(metrics.MAX_SERIES):
        metric.add(1, "GET", f"/{number}", "401")
    metric.add(1, "GET", "/0", "500")
    metric.add(1, "POST", "/1", "500")
    assert [2] == counted.cells["other", "other", "500"]


def test_names_follow_the_conventions() -> None:
    """Units are in the names, and no label can have a value for each org."""
    found = metrics.all_metrics()
    assert len(found) > 15
    assert len(found) == len({metric.name for metric in found})
    for metric in found:
        assert metric.name.startswith("arkloop_")
        assert metric.help.endswith(".")
        assert ("_seconds" in metric.name) == (metric.kind == "Histogram")
        assert {*metric.labels} <= {"method", "route", "status", "kind", "outcome", "code"}


@pytest.mark.parametrize("path", ["grafana/arkloop.json", "prometheus/alerts.yml"])
def test_what_is_shipped_names_metrics_that_exist(path: str) -> None:
    """The dashboard and the rules use no name that nothing counts."""
    text = (ROOT / "deploy" / path).read_text()
    known = {metric.name for metric in metrics.all_metrics()}
    measured = (ROOT / "shared/monitoring/exposition.py").read_text()
    for name in set(re.findall(r"arkloop_[a-z_]+", text)):
        base = re.sub("_(total|bucket|count|sum)$", "", name)
        assert base in known or f'"{base}"' in measured, name


def test_no_installation_hides_another() -> None:
    """Rules, dashboard and autoscaler look at each job and namespace by itself."""
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in groups[0]["rules"]:
        aggregated = re.findall(r"\b(?:max|sum)\b(?! by \(job, namespace\b)", rule["expr"])
        assert [] == aggregated, rule["expr"]
    dashboard = json.loads((ROOT / "deploy/grafana/arkloop.json").read_text())
    chosen = '{job="$job", namespace=~"$namespace"'
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            named = re.findall(r"arkloop_[a-z_]+", target["expr"])
            assert len(named) == target["expr"].count(chosen), target["expr"]
    page = (ROOT / "docs/how-to/kubernetes.md").read_text()
    [adapter] = re.findall(r"^rules:\n  external:\n.+?(?=^```)", page, re.DOTALL | re.MULTILINE)
    [rule] = yaml.safe_load(adapter)["rules"]["external"]
    assert "namespace" in rule["resources"]["overrides"]
    assert "<<.LabelMatchers>>" in rule["metricsQuery"]


def test_every_metric_is_documented_and_on_the_dashboard() -> None:
    """The page for operators says what each means."""
    page = (ROOT / "docs/how-to/observability.md").read_text()
    dashboard = (ROOT / "deploy/grafana/arkloop.json").read_text()
    for metric in metrics.all_metrics():
        assert f"`{metric.name}" in page, metric.name
        assert metric.name in dashboard, metric.name
