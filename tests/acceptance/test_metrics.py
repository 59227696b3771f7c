"""Metrics of the real processes, as anybody and as Prometheus reads them."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from arkloop.cli.dev.embedded_server import free_port
from tests.caller import Caller, client
from tests.system import System, running_system
from tests.waiting import eventually
from tests.web_server import ROOT

pytestmark = pytest.mark.processes

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def measured(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory, port: int
) -> Iterator[System]:
    """A web server of two processes and a worker that count."""
    folder = tmp_path_factory.mktemp("measured")
    environ = {
        "ARKLOOP_METRICS_PORT": str(port),
        "ARKLOOP_METRICS_DIR": str(folder / "metrics"),
        "ARKLOOP_API_WORKERS": "2",
    }
    with running_system(new_database, folder, web=1, environ=environ) as system:
        yield system


def samples(port: int) -> Samples:
    """Return what one request to the metrics finds."""
    answer = client(f"http://127.0.0.1:{port}").get("/metrics")
    assert 200 == answer.status_code
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Add up the samples with these labels."""
    return sum(
        amount
        for (of, those), amount in found.items()
        if of == name and {*labels.items()} <= {*those}
    )


def test_any_process_shows_what_all_have_counted(measured: System, port: int) -> None:
    """Web and worker share an address; routes are templates, and each run is counted once."""
    user = measured.caller()
    before = samples(port)
    run_ids = [user.run("one two three") for _ in range(5)]
    failed = user.run({"error": "invalid_request", "times": 9})
    for run_id in [*run_ids, failed]:
        user.ended(run_id)
        user.get_run(run_id)

    def grown(name: str, **labels: str) -> float:
        return value(samples(port), name, **labels) - value(before, name, **labels)

    run = "/v1/runs/<id:run_id>"
    # The end of a run is stored before the worker counts it.
    eventually(lambda: grown("arkloop_runs_ended_total") == 6)
    assert 5 == grown("arkloop_runs_ended_total", outcome="completed")
    assert 6 <= grown("arkloop_http_requests_total", route=run, status="200")
    assert 1 == grown("arkloop_runs_ended_total", code="provider.invalid_request")
    assert 6 == grown("arkloop_run_wait_seconds_count")
    assert 5 == grown("arkloop_run_first_text_seconds_count")
    assert 5 == grown("arkloop_model_calls_total", route="scripted", outcome="ok")
    assert 25 == grown("arkloop_model_tokens_total", route="scripted", kind="output_tokens")
    assert 0 < grown("arkloop_model_cost_usd_total")
    assert 0 < grown("arkloop_events_total")
    assert 0 < grown("arkloop_event_commit_seconds_count")
    # A worker that the machine keeps waiting is not heard for a moment.
    eventually(lambda: value(samples(port), "arkloop_workers_alive") == 1)
    found = samples(port)
    assert 0 < value(found, "arkloop_sweep_seconds_count")
    assert not [labels for _, labels in found if user.org_id in str(labels)]


def test_idle_processes_use_no_connection(measured: System, port: int) -> None:
    """The gauge is back at zero: what was in use while the processes started has been counted."""
    user = measured.caller()
    user.ended(user.run("hello"))

    eventually(lambda: value(samples(port), "arkloop_database_connections_in_use") == 0)


def test_metrics_are_not_on_the_public_port(measured: System, port: int) -> None:
    """There they do not exist; and the other port has nothing else."""
    public = client(measured.web[0].url).get("/metrics")
    assert 404 == public.status_code
    other = client(f"http://127.0.0.1:{port}").get("/v1/me")
    assert 404 == other.status_code


def test_a_killed_process_takes_its_gauges_along(measured: System, port: int) -> None:
    """Its slots are free, what it has counted stays, and the others answer."""
    user = measured.caller()
    run_id = user.run({"hang": 30})
    eventually(lambda: value(samples(port), "arkloop_worker_slots_in_use") >= 1)
    ended = value(samples(port), "arkloop_runs_ended_total")
    with measured.without_worker():
        assert 0 == value(samples(port), "arkloop_worker_slots_in_use")
        assert ended == value(samples(port), "arkloop_runs_ended_total")
    user.cancel(run_id)


def tool(name: str) -> str:
    """Return the path of a program of Prometheus; skips without it, or fails in CI."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"{name} is not installed: run `make test-prometheus`"
        if os.environ.get("NEED_PROMETHEUS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.mark.prometheus
def test_prometheus_scrapes_and_answers_queries(
    measured: System, port: int, tmp_path: Path
) -> None:
    """It reads the configuration and rules of deploy/: targets are up, and rules have values."""
    user = measured.caller()
    user.ended(user.run("hello"), seconds=60)  # its worker may be starting
    own = free_port()
    rules = ROOT / "deploy/prometheus/alerts.yml"
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"""
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: arkloop
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
    )
    command = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/db"]
    with subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{own}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:

            def asked(query: str) -> float | None:
                try:
                    answer = httpx.get(
                        f"http://127.0.0.1:{own}/api/v1/query",
                        params={"query": query},
                        trust_env=False,
                    ).json()
                except (httpx.TransportError, ValueError):
                    return None
                result = answer.get("data", {}).get("result", [])
                return float(result[0]["value"][1]) if result else None

            eventually(lambda: asked('min(up{job="arkloop"})') == 1)
            eventually(lambda: (asked("sum(arkloop_runs_ended_total)") or 0) >= 1)
            eventually(lambda: asked("max(arkloop_workers_alive)") == 1)
            eventually(lambda: asked("arkloop:run_wait_seconds:p95") is not None)
            assert None is asked('ALERTS{alertstate="firing"}')
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.prometheus
def test_the_rules_are_valid_and_do_not_fire_on_deploys() -> None:
    """promtool checks the rules, and plays a deploy, a flood and real troubles against them."""
    folder = ROOT / "deploy/prometheus"
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        ended = subprocess.run(
            [tool("promtool"), *arguments], cwd=folder, capture_output=True, text=True
        )
        assert 0 == ended.returncode, ended.stdout + ended.stderr


@pytest.mark.prometheus
def test_metrics_pass_the_linter(measured: System, port: int) -> None:
    """Promtool finds nothing wrong with names, units and help texts."""
    text = client(f"http://127.0.0.1:{port}").get("/metrics").text
    ended = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (0, "") == (ended.returncode, ended.stdout + ended.stderr)


def test_without_the_setting_nothing_listens(system: System, user: Caller) -> None:
    """No process of the service has another port than that of web."""
    user.run("hi")
    ports = {
        one.laddr.port
        for server in system.web
        for process in psutil.Process(server.pid).children()
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }
    assert ports == {server.settings.port for server in system.web}
