"""Metrics: nothing until they are on, and a bounded number of series then."""

import re
import subprocess
import sys
from pathlib import Path

import prometheus_client
import pytest

from arkloop.shared import metrics
from arkloop.shared.metrics import Metric

ROOT = Path(__file__).parents[2]


class Library:
    """The library with a registry of the test's own."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()

    def Counter(self, *args: object, **options: object) -> object:
        return prometheus_client.Counter(*args, registry=self.registry, **options)


def test_the_library_is_not_loaded_before_metrics_are_on() -> None:
    """A process without metrics starts as fast as before."""
    program = (
        "import sys; import arkloop.shared.metrics as m; m.STREAMS.add(1);"
        "print('prometheus_client' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "False\n" == ended.stdout


def test_what_is_counted_is_there() -> None:
    """Amounts add up under the values of the labels."""
    library = Library()
    metric = Metric("Counter", "things", "Things.", ("kind",))
    metric.add(1, "before")
    metric.enable(library)
    metric.add(2, "big")
    metric.add(3, "big")
    assert 5 == library.registry.get_sample_value("things_total", {"kind": "big"})
    assert None is library.registry.get_sample_value("things_total", {"kind": "before"})


def test_the_number_of_series_is_bounded() -> None:
    """Values of labels beyond the limit are counted together."""
    library = Library()
    metric = Metric("Counter", "things", "Things.", ("kind",))
    metric.enable(library)
    for number in range(metrics.MAX_SERIES + 50):
        metric.add(1, str(number))
    assert 50 == library.registry.get_sample_value("things_total", {"kind": "other"})


def test_a_status_is_counted_however_many_routes_were_asked_for() -> None:
    """A scan of all routes leaves the alert about errors in force."""
    library = Library()
    metric = Metric("Counter", "requests", "Requests.", ("method", "route", "status"))
    metric.enable(library)
    for number in range(metrics.MAX_SERIES):
        metric.add(1, "GET", f"/{number}", "401")
    metric.add(1, "GET", "/0", "500")
    metric.add(1, "POST", "/1", "500")
    labels = {"method": "other", "route": "other", "status": "500"}
    assert 2 == library.registry.get_sample_value("requests_total", labels)


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


def test_every_metric_is_documented_and_on_the_dashboard() -> None:
    """The page for operators says what each means."""
    page = (ROOT / "docs/how-to/observability.md").read_text()
    dashboard = (ROOT / "deploy/grafana/arkloop.json").read_text()
    for metric in metrics.all_metrics():
        assert f"`{metric.name}" in page, metric.name
        assert metric.name in dashboard, metric.name
