"""OpenTelemetry's variables, as `Settings` reads them."""

import os
import secrets
from pathlib import Path
from typing import Any

import pytest
import trustme

from arkloop.shared.config import InvalidSettings, Settings

COLLECTOR = "http://collector:4318"
TLS = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318"}


def settings(**variables: str) -> Settings:
    return Settings.from_env(
        {
            "ARKLOOP_DATABASE_URL": "postgresql://host/db",
            "ARKLOOP_REDIS_URL": "redis://host",
            "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
            **variables,
        }
    )


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, f"{COLLECTOR}/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{COLLECTOR}/in/"}, f"{COLLECTOR}/in/v1/traces"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR,
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://x/y",
            },
            "https://x/y",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": ""}, "http://x"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "False"},
            "http://x",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_TRACES_SAMPLER": "always_off"}, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        ({"OTEL_SDK_DISABLED": "0"}, None),
    ],
)
def test_an_endpoint_turns_spans_on(variables: dict[str, str], url: str | None) -> None:
    """The general address gets the path of traces; without one, other variables are ignored."""
    assert url == settings(**variables).otlp_url


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR},
        {**TLS, "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_authorities_that_no_tls_needs_are_not_read(variables: dict[str, str]) -> None:
    """A template may set the file for all services of a machine."""
    assert settings(OTEL_EXPORTER_OTLP_CERTIFICATE="/nowhere/ca.pem", **variables)


def test_headers_and_attributes_are_percent_encoded() -> None:
    """Headers of traces go before those of everything, and no header is shown."""
    found = settings(
        OTEL_EXPORTER_OTLP_HEADERS="a=1",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="authorization=Bearer%20s3cret, x=y=z",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,team=a%2Cb",
        OTEL_SERVICE_NAME="runs",
    )
    assert (("authorization", "Bearer s3cret"), ("x", "y=z")) == found.otlp_headers
    assert (("deployment.environment.name", "test"), ("team", "a,b")) == found.resource_attributes
    assert "runs" == found.service_name
    assert "s3cret" not in repr(found)


def test_a_part_of_the_traces_can_be_recorded() -> None:
    """The argument counts for `traceidratio` alone, as the specification says."""
    some = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    assert 0.25 == settings(**some).trace_ratio
    assert 1.0 == settings(OTEL_TRACES_SAMPLER_ARG="0.25").trace_ratio


def test_authorities_of_the_collector_are_a_file(tmp_path: Path) -> None:
    """The file is read again by the process that sends spans."""
    file = str(tmp_path / "authority.pem")
    trustme.CA().cert_pem.write_to_path(file)

    assert file == settings(**TLS, OTEL_EXPORTER_OTLP_CERTIFICATE=file).otlp_ca_file


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:s3cret@collector:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:431800"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:https"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://:4318"},
        {**TLS, "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem"},
        {**TLS, "OTEL_EXPORTER_OTLP_CERTIFICATE": "/etc"},
        {**TLS, "OTEL_EXPORTER_OTLP_CERTIFICATE": os.devnull},
        {**TLS, "OTEL_EXPORTER_OTLP_CERTIFICATE": __file__},
        {"OTEL_EXPORTER_OTLP_HEADERS": "a:b=1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_SDK_DISABLED": "1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_SDK_DISABLED": "yes"},
        {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "s3cret"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "a=s3cret%0D%0Ab: c"},
        {"OTEL_RESOURCE_ATTRIBUTES": "a=1,=2"},
    ],
)
def test_what_cannot_be_done_is_refused_at_the_start(variables: dict[str, Any]) -> None:
    """The message names the variable, and shows no secret."""
    with pytest.raises(InvalidSettings) as refused:
        settings(**variables)
    assert list(variables)[-1].removesuffix("_ARG") in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("sampler", "advice"),
    [
        ("parentbased_traceidratio", "; use traceidratio: the trace id alone decides here"),
        ("parentbased_always_on", "; use always_on: the trace id alone decides here"),
        ("parentbased_always_off", "; use always_off: the trace id alone decides here"),
        ("jaeger_remote", ""),
    ],
)
def test_a_sampler_that_asks_the_caller_is_refused_with_its_substitute(
    sampler: str, advice: str
) -> None:
    """The parent-based ones are in many a template, and the default elsewhere."""
    with pytest.raises(InvalidSettings) as refused:
        settings(OTEL_TRACES_SAMPLER=sampler)
    known = "must be always_on, traceidratio or always_off"
    assert f"OTEL_TRACES_SAMPLER: {known}, is {sampler!r}{advice}" == str(refused.value)
