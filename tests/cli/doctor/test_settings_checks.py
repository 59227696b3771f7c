"""Findings of `arkloop doctor` in settings alone."""

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
