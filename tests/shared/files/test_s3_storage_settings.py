"""Settings with which AWS's SDK makes no client."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from arkloop.shared.config import Settings
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.files.storage import Storage, UnusableStorage
from tests.blank_settings import BLANK

#: No server listens there.
CONTAINER = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1"}


@pytest.fixture(autouse=True)
def without_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has read the environment


def use(url: str | None = None, region: str | None = None) -> Storage:
    return storage_of(replace(BLANK, s3_bucket="files", s3_endpoint_url=url, s3_region=region))


@pytest.mark.parametrize("url", ["http://minio_1:9000", "http://a..b", "http://bücher.example"])
def test_a_host_that_the_sdk_refuses_is_reported(url: str) -> None:
    """Container names may contain underscores; the SDK rejects them."""
    with pytest.raises(UnusableStorage) as raised:
        use(url)

    assert (
        f"ARKLOOP_S3_ENDPOINT_URL: AWS's SDK refuses {url!r}: its host must consist of"
        " letters, digits, hyphens and dots" == str(raised.value)
    )


@pytest.mark.parametrize("host", ["minio_1:9000", "127.0.0.1:1"])
def test_a_password_in_the_url_is_not_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """S3 knows none: the SDK signs requests with its keys."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    shown = ""
    try:
        assert use(f"http://minio:S3CRET@{host}").check() is not None
    except UnusableStorage as error:
        shown = str(error)

    assert f"http://{host}" in shown + caplog.text
    assert "S3CRET" not in shown + caplog.text


def test_a_region_that_the_sdk_refuses_is_reported() -> None:
    """The region's format is checked for every server."""
    with pytest.raises(UnusableStorage, match="^ARKLOOP_S3_REGION: .*'eu west'"):
        use(region="eu west")


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("AWS_PROFILE", "nope", "The config profile (nope) could not be found"),
        ("AWS_CONFIG_FILE", __file__, "Unable to parse config file"),
        ("AWS_ENDPOINT_URL_S3", "http://a..b", "Invalid endpoint: http://a..b"),
        ("AWS_ACCESS_KEY_ID", "key", "missing: AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_what_the_sdk_reads_itself_is_reported(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    """The SDK says what it cannot use, and the problem says whose variables it has read."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(UnusableStorage) as raised:
        use()

    assert str(raised.value).startswith("ARKLOOP_S3_BUCKET: AWS's SDK cannot use its own settings")
    assert problem in str(raised.value)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("credential_process = /nowhere/program", "'/nowhere/program'"),
        ("s3 = path", "'str' object has no attribute"),
    ],
)
def test_what_the_file_of_the_sdk_cannot_have_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, problem: str
) -> None:
    """The SDK starts the program, and expects settings under `s3`."""
    (tmp_path / "config").write_text(f"[default]\n{line}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    with pytest.raises(UnusableStorage, match="AWS's SDK cannot use its own settings.*") as raised:
        use()

    assert problem in str(raised.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ROLE_ARN": "arn:aws:iam::1:role/a", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token"},
        {**CONTAINER, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/nowhere/token"},
    ],
)
def test_a_missing_token_is_reported(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """The SDK reads one of them for the client, and one for the first request."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(UnusableStorage, match="^ARKLOOP_S3_BUCKET: .*'/nowhere/token'"):
        use().check()


def test_credentials_that_no_server_issues_are_no_fault_of_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server of a container's credentials may be down for a moment."""
    for name, value in CONTAINER.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(UnusableStorage, match="^ARKLOOP_S3_BUCKET: Error when retrieving cred"):
        use()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("from arkloop.worker import app; app._wait_for_schema()", 1),
        ("from arkloop.api.app import create_app; create_app()", 3),
    ],
)
def test_a_process_with_such_a_setting_does_not_start(
    settings: Settings, start: str, status: int
) -> None:
    """It ends with a line that names the setting."""
    environ = {
        "PATH": os.environ["PATH"],
        "ARKLOOP_DATABASE_URL": settings.database_url,
        "ARKLOOP_REDIS_URL": settings.redis_url,
        "ARKLOOP_JWT_SECRET": settings.jwt_secret,
        "ARKLOOP_S3_BUCKET": "files",
        "ARKLOOP_S3_ENDPOINT_URL": "http://minio_1:9000",
    }
    done = subprocess.run(
        [sys.executable, "-c", start], env=environ, capture_output=True, text=True
    )

    assert status == done.returncode, done.stderr
    assert "ARKLOOP_S3_ENDPOINT_URL: AWS's SDK refuses 'http://minio_1:9000'" in done.stderr
    assert "Traceback" not in done.stderr
