"""Findings of `arkloop doctor` in settings alone."""

import socket
from pathlib import Path

import pytest

from tests.cli.doctor.examined import Examine, configure, examine, own_redis

pytestmark = pytest.mark.processes

__all__ = ["configure", "examine", "own_redis"]  # fixtures


@pytest.mark.parametrize(
    ("name", "value"),
    [("ARKLOOP_S3_ENDPOINT_URL", "http://minio_1:9000"), ("ARKLOOP_S3_REGION", "eu west")],
)
def test_a_setting_that_the_sdk_of_s3_refuses_fails(
    examine: Examine, name: str, value: str
) -> None:
    """All else is looked at nevertheless."""
    report = examine(ARKLOOP_S3_BUCKET="files", **{name: value})

    assert ["files"] == report.failed()
    assert report.of("files")[0][1].startswith(f"{name}: ")
    assert "ok" in [level for level, _ in report.of("postgres")]


@pytest.mark.parametrize("host", ["metrics.invalid", "192.0.2.1", "a..b", "ü..b"])
def test_an_address_of_metrics_that_cannot_be_used_fails(
    examine: Examine, tmp_path: Path, host: str
) -> None:
    """It matters where metrics are counted."""
    assert [] == examine(ARKLOOP_METRICS_HOST=host).failed()

    report = examine(
        ARKLOOP_METRICS_HOST=host, ARKLOOP_METRICS_PORT="9464", ARKLOOP_METRICS_DIR=str(tmp_path)
    )

    assert ["metrics"] == report.failed()
    [(_, why)] = report.of("metrics")
    assert why.startswith(f"no process can listen on {host} port 9464: ")


@pytest.mark.parametrize(("is_ours", "levels"), [(True, []), (False, ["warn"])])
def test_a_port_of_metrics_that_is_in_use_does_not_fail(
    examine: Examine, tmp_path: Path, is_ours: bool, levels: list[str]
) -> None:
    """Processes of the service share the port, and are no finding."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=is_ours) as listening:
        port = listening.getsockname()[1]
        report = examine(ARKLOOP_METRICS_PORT=str(port), ARKLOOP_METRICS_DIR=str(tmp_path))

    assert [] == report.failed()
    assert levels == [level for level, _ in report.of("metrics")]


def test_the_port_of_web_is_no_port_of_metrics(examine: Examine, tmp_path: Path) -> None:
    """At another address of the host it may be one."""
    metrics = {"ARKLOOP_METRICS_PORT": "8080", "ARKLOOP_METRICS_DIR": str(tmp_path)}
    report = examine(**metrics)

    assert ["metrics"] == report.failed()
    [(_, why)] = report.of("metrics")
    assert "web listens on port 8080, too: it does not start with these settings" == why
    assert [] == examine(ARKLOOP_METRICS_HOST="127.0.0.2", **metrics).failed()
