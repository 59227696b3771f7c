"""The variables of OpenTelemetry that `Settings` reads, by the names of its specification."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from arkloop.shared import addresses, certificate_settings

_HAS_USER = re.compile("[^/]*//[^/]*@")
_ATTRIBUTE = re.compile(r"[!-~]+")
_HEADER = re.compile(r"[!-9;-~]+")  # without a colon, which ends the name
_RATIO = re.compile(r"0(\.[0-9]{1,9})?|1(\.0{1,9})?")
_SAMPLERS = ("always_on", "traceidratio", "always_off")


def read(text: Callable[[str], str | None], problems: list[str]) -> dict[str, Any]:
    """Return the fields of `Settings` about traces.

    `text` returns a variable's value, if it is set. What is wrong is added to `problems`.
    """
    general = text("OTEL_EXPORTER_OTLP_ENDPOINT")
    own = text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        value = text(name)
        if value is not None and (_HAS_USER.match(value) or not addresses.is_usable(value)):
            problems.append(f"{name}: must be an address such as http://collector:4318")
    url = own or (general and general.rstrip("/") + "/v1/traces")
    disabled = text("OTEL_SDK_DISABLED") or "false"
    if url and disabled.lower() not in ("true", "false"):
        problems.append(f"OTEL_SDK_DISABLED: must be true or false, is {disabled!r}")
    is_off = disabled.lower() == "true"
    ratio = _ratio(text, problems)
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        if (protocol := text(name)) not in (None, "http/protobuf") and url and not is_off:
            problems.append(f"{name}: must be http/protobuf, is {protocol!r}")
    headers = "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
    if text(headers) is None:
        headers = "OTEL_EXPORTER_OTLP_HEADERS"
    url = None if is_off or ratio == 0 else url
    certificate = "OTEL_EXPORTER_OTLP_CERTIFICATE"
    file = text(certificate)
    # An error of TLS would not name the file.
    if file and url and url.startswith("https:") and (why := certificate_settings.unusable(file)):
        problems.append(f"{certificate}: {why}")
    return {
        "otlp_url": url,
        "otlp_headers": _pairs(headers, _HEADER, text, problems),
        "otlp_ca_file": file,
        "service_name": text("OTEL_SERVICE_NAME"),
        "resource_attributes": _pairs("OTEL_RESOURCE_ATTRIBUTES", _ATTRIBUTE, text, problems),
        "trace_ratio": ratio,
    }


def _ratio(text: Callable[[str], str | None], problems: list[str]) -> float:
    sampler = text("OTEL_TRACES_SAMPLER") or "always_on"
    if sampler not in _SAMPLERS:
        # Whether the caller's trace is kept is not stored with a run, so no worker could obey it.
        own = sampler.removeprefix("parentbased_")
        problems.append(
            f"OTEL_TRACES_SAMPLER: must be {', '.join(_SAMPLERS[:-1])} or {_SAMPLERS[-1]},"
            f" is {sampler!r}"
            + (f"; use {own}: the trace id alone decides here" if own in _SAMPLERS else "")
        )
    argument = text("OTEL_TRACES_SAMPLER_ARG") or "1"
    if sampler != "traceidratio":
        return 0.0 if sampler == "always_off" else 1.0
    if not _RATIO.fullmatch(argument):
        problems.append(f"OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, is {argument!r}")
        return 1.0
    return float(argument)


def _pairs(
    name: str, form: re.Pattern[str], text: Callable[[str], str | None], problems: list[str]
) -> tuple[tuple[str, str], ...]:
    """Read `key=value,key=value`, percent-encoded; values may be secret: no problem has one."""
    pairs = []
    for number, part in enumerate((text(name) or "").split(","), 1):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        key, value = key.strip(), unquote(value.strip())
        if not equals or not form.fullmatch(key) or not (value.isascii() and value.isprintable()):
            problems.append(f"{name}: part {number} is not of the form key=value")
            continue
        pairs.append((key, value))
    return tuple(pairs)
