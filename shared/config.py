"""Settings of every process. The only reader of the environment."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from arkloop.shared import certificate_settings, machine, origins, redis_url, trace_settings
from arkloop.shared.addresses import PATH, is_usable
from arkloop.shared.database_url import InvalidDatabaseUrl, normalize
from arkloop.shared.redis_url import InvalidRedisUrl

#: What platforms such as Heroku, and honcho, set: each is used if the setting itself is not set.
FALLBACKS = {
    "ARKLOOP_DATABASE_URL": "DATABASE_URL",
    "ARKLOOP_REDIS_URL": "REDIS_URL",
    "ARKLOOP_PORT": "PORT",
    "ARKLOOP_API_WORKERS": "WEB_CONCURRENCY",
}
MAX_RETENTION_DAYS = 36_500  # dates that far away are still dates to Python and Postgres

#: The providers' own variables.
_KEYS_OF_PROVIDERS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
_URLS_OF_PROVIDERS = ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL")
_MAY_BE_ZERO = (
    *("ARKLOOP_PORT", "ARKLOOP_NEW_ORG_CREDITS", "ARKLOOP_WORKER_NICENESS"),
    *("ARKLOOP_ORG_REQUESTS_PER_MINUTE", "ARKLOOP_KEY_REQUESTS_PER_MINUTE"),
    *("ARKLOOP_ORG_CONCURRENT_RUNS", "ARKLOOP_KEY_CONCURRENT_RUNS", "ARKLOOP_ORG_QUEUED_RUNS"),
    *("ARKLOOP_ORG_STREAMS", "ARKLOOP_KEY_STREAMS", "ARKLOOP_METRICS_PORT"),
)
_MOST = {
    "worker_niceness": 19,
    "retention_days": MAX_RETENTION_DAYS,
    "port": 65_535,
    "metrics_port": 65_535,
}


def variable_of(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the variable that has the setting's value: its own, or its fallback."""
    names = (name, FALLBACKS.get(name, name))
    return next((one for one in names if environ.get(one, "").strip()), name)


class InvalidSettings(Exception):
    """Some settings are missing or wrong; the message lists every problem, one a line."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The operator's settings; `docs/reference/configuration.md` has the same table with prose."""

    database_url: str
    redis_url: str
    broker_url: str
    jwt_secret: str = field(repr=False)
    #: Postgres itself, where `database_url` leads to a pooler: for what needs a session.
    direct_database_url: str | None = None
    prepared_statements: bool | None = None  # None: wherever no pooler stands between
    encryption_key: str | None = field(default=None, repr=False)
    #: What addresses the providers and MCP servers of orgs may have, and what `http_fetch` may
    #: reach, besides public ones; networks in CIDR notation.
    allowed_networks: tuple[str, ...] = ()
    fetch_allowed_networks: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()  # folders; see `shared/plugins.py`
    mcp_stdio: bool = False  # whether orgs may start programs here as MCP servers
    mcp_stdio_user: str | None = None  # as whom they run; see `shared/security/program_user.py`
    core_dumps: bool = False  # whether there are core dumps, and debuggers of the same user

    lease_seconds: float = 15.0  # a silent worker process loses its runs after this
    heartbeat_seconds: float = 2.0  # at most a third of the lease
    sweep_seconds: float = 2.0
    stream_ttl_seconds: int = 600  # how long Redis keeps the stream of an ended run
    sse_ping_seconds: float = 10.0
    retention_days: int = 90
    #: The pauses between the attempts of a delivery, in seconds; the last attempt comes after their
    #: sum.
    webhook_retry_seconds: tuple[float, ...] = (
        *(5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400),
    )
    webhook_timeout_seconds: float = 15.0  # of one attempt
    database_pool_size: int = 10  # connections of one process
    worker_concurrency: int = 200  # runs that one worker process executes at a time
    worker_niceness: int = 5  # how far a worker gives way to web processes of its machine
    run_output_mib: int = 64  # what all the events of one run may have together
    keep_prompts: bool = True  # whether what vendors receive is stored, with the run's events
    history_memory_mib: int = 256  # of one worker process, for the threads that its runs have read

    files_dir: str = "files"  # where uploaded files are, unless there is an S3 bucket for them
    s3_bucket: str | None = None
    s3_endpoint_url: str | None = None  # of a server other than AWS
    s3_region: str | None = None
    s3_access_key_id: str | None = None  # None: the SDK's own chain, such as an instance's role
    s3_secret_access_key: str | None = field(default=None, repr=False)
    certificate_file: str | None = None  # what `SSL_CERT_FILE` names

    #: Limits of an org and of each API key; 0 is no limit.
    org_requests_per_minute: int = 0
    key_requests_per_minute: int = 0
    org_concurrent_runs: int = 0
    key_concurrent_runs: int = 0
    org_queued_runs: int = 0
    org_streams: int = 0
    key_streams: int = 0

    registration_open: bool = False
    new_org_credits: int = 0  # what an org that somebody registers gets, to use the server's routes
    scripted: bool = False
    faults: bool = False
    fault_point: str | None = None  # where a process of the fault tests dies
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()  # of the `Host` header; empty: any
    trusted_proxies: tuple[str, ...] = ()  # networks whose `X-Forwarded-For` is believed
    secure_cookies: bool = True
    path_prefix: str | None = None  # under which a proxy publishes this service, as in `/arkloop`
    public_url: str | None = None  # what browsers reach it by, without `path_prefix`

    routes_file: str | None = None
    openai_api_key: str | None = field(default=None, repr=False)
    openai_base_url: str | None = None
    openai_model: str = "gpt-4o-mini"
    anthropic_api_key: str | None = field(default=None, repr=False)
    anthropic_base_url: str | None = None
    anthropic_model: str = "claude-haiku-4-5"
    local_base_url: str | None = None  # an OpenAI-compatible server on this machine
    local_model: str = "local"
    local_context_tokens: int | None = None  # of one call, input and output together

    request_log: bool = False  # whether web logs a line for each request
    otlp_url: str | None = None  # where spans are sent; None: there are none
    otlp_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    otlp_ca_file: str | None = None
    service_name: str | None = None  # in spans; None: the program's own
    resource_attributes: tuple[tuple[str, str], ...] = ()
    trace_ratio: float = 1.0  # the part of all traces that is recorded
    metrics_port: int = 0  # 0: no metrics are counted
    metrics_host: str = "127.0.0.1"
    metrics_dir: str | None = None  # None: a folder of the port, where temporary files are
    temporary_dir: str = "/tmp"  # noqa: S108 - where `TMPDIR` names no other

    host: str = "127.0.0.1"
    port: int = 8080
    api_workers: int = field(default_factory=machine.default_web_processes)
    hostname: str = field(default_factory=socket.gethostname)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read `ARKLOOP_…` and the providers' own variables.

        An empty value counts as not set.

        Raises:
            InvalidSettings: with every problem at once.
        """
        reader = _Reader(os.environ if environ is None else environ)
        values = reader.values()
        if reader.problems:
            raise InvalidSettings("\n".join(reader.problems))
        return cls(**values)

    @property
    def metrics_collide_with_web(self) -> bool:
        """True if both have the same port, and the same address or a wildcard."""
        hosts = {self.host.strip("[]"), self.metrics_host}
        is_shared = len(hosts) == 1 or not hosts.isdisjoint(("0.0.0.0", "::"))  # noqa: S104 - compared
        return is_shared and self.port == self.metrics_port != 0


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def values(self) -> dict[str, Any]:
        verifies = self._plain("ARKLOOP_REDIS_VERIFY", default=True)
        of_streams = redis_url.verified(self._redis_url("ARKLOOP_REDIS_URL"), verifies)
        of_broker = of_streams
        if self._text("ARKLOOP_BROKER_URL"):
            of_broker = redis_url.verified(self._redis_url("ARKLOOP_BROKER_URL"), verifies)
        hosts = self._list(
            "ARKLOOP_ALLOWED_HOSTS",
            r"(?i)\.?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?",
            "a host name such as app.example.com or .example.com",
        )
        values: dict[str, Any] = {
            "database_url": self._database_url("ARKLOOP_DATABASE_URL"),
            "direct_database_url": self._database_url("ARKLOOP_DIRECT_DATABASE_URL", needed=False)
            or None,
            "prepared_statements": {"auto": None, "1": True, "0": False}[
                self._choice("ARKLOOP_PREPARED_STATEMENTS", ("auto", "1", "0"))
            ],
            "redis_url": of_streams,
            "broker_url": of_broker,
            "jwt_secret": self._secret("ARKLOOP_JWT_SECRET"),
            "encryption_key": self._keys("ARKLOOP_ENCRYPTION_KEY"),
            "registration_open": self._choice("ARKLOOP_REGISTRATION", ("closed", "open")) == "open",
            "allowed_networks": self._networks("ARKLOOP_ALLOWED_NETWORKS"),
            "fetch_allowed_networks": self._networks("ARKLOOP_FETCH_ALLOWED_NETWORKS"),
            "cors_origins": self._origins("ARKLOOP_CORS_ORIGINS"),
            "allowed_hosts": tuple(map(str.lower, hosts)),
            "trusted_proxies": self._networks("ARKLOOP_TRUSTED_PROXIES"),
            "path_prefix": self._path_prefix("ARKLOOP_PATH_PREFIX"),
            "public_url": self._public_url("ARKLOOP_PUBLIC_URL"),
            "plugins": self._folders("ARKLOOP_PLUGINS"),
            # Without the probe of `tempfile`: all processes of a host need the same.
            "temporary_dir": self._text("TMPDIR") or Settings.temporary_dir,
            "webhook_retry_seconds": self._pauses("ARKLOOP_WEBHOOK_RETRY_SECONDS")
            or Settings.webhook_retry_seconds,
            "routes_file": self._text("ARKLOOP_ROUTES"),
            "api_workers": self._whole_number(
                "ARKLOOP_API_WORKERS", machine.default_web_processes(), 1
            ),
            "s3_endpoint_url": self._endpoint("ARKLOOP_S3_ENDPOINT_URL"),
            "local_context_tokens": self._whole_number("ARKLOOP_LOCAL_CONTEXT_TOKENS", 0, 1)
            or None,
            "local_base_url": self._endpoint("ARKLOOP_LOCAL_BASE_URL", path=PATH),
            **{name.lower(): self._text(name) for name in _KEYS_OF_PROVIDERS},
            **{name.lower(): self._endpoint(name, path=PATH) for name in _URLS_OF_PROVIDERS},
            **trace_settings.read(self._text, self.problems),
            "certificate_file": certificate_settings.read(self._environ, self.problems),
        }
        for name in _KEYS_OF_PROVIDERS:
            if not re.fullmatch("[ -~]*", values[name.lower()] or ""):  # a header carries it
                self.problems.append(f"{name}: has characters that no key has")
        values |= {
            setting.name: self._plain(f"ARKLOOP_{setting.name.upper()}", setting.default)
            for setting in fields(Settings)
            if setting.name not in values and setting.name != "hostname"
        }
        if self._source("ARKLOOP_PORT") != "ARKLOOP_PORT" and not self._text("ARKLOOP_HOST"):
            # As gunicorn does: a platform that assigns a port connects to it from elsewhere.
            values["host"] = "0.0.0.0"  # noqa: S104 - ARKLOOP_HOST narrows it
        lease, heartbeat = values["lease_seconds"], values["heartbeat_seconds"]
        if heartbeat * 3 > lease:
            self.problems.append(
                "ARKLOOP_HEARTBEAT_SECONDS: must be at most a third of ARKLOOP_LEASE_SECONDS, "
                f"is {heartbeat:g} of {lease:g}"
            )
        for name, most in _MOST.items():
            if (value := values[name]) > most:
                source = self._source(f"ARKLOOP_{name.upper()}")
                self.problems.append(f"{source}: must be at most {most}, is {value}")
        if bool(values["s3_access_key_id"]) != bool(values["s3_secret_access_key"]):
            self.problems.append(
                "ARKLOOP_S3_ACCESS_KEY_ID and ARKLOOP_S3_SECRET_ACCESS_KEY: set both or neither"
            )
        return values

    def _plain(self, name: str, default: Any) -> Any:
        """Read a setting whose form is that of its default."""
        match default:
            case bool():
                return self._choice(name, ("1", "0") if default else ("0", "1")) == "1"
            case int():
                return self._whole_number(name, default, 0 if name in _MAY_BE_ZERO else 1)
            case float():
                return self._number(name, default, 0.05)
        return self._text(name) or default

    def _text(self, name: str) -> str | None:
        return self._environ.get(self._source(name), "").strip() or None

    def _source(self, name: str) -> str:
        return variable_of(name, self._environ)

    def _redis_url(self, name: str) -> str:
        value = self._text(name)
        if value is None:
            self.problems.append(f"{name} is required (a URL starting with redis://)")
            return ""
        try:
            redis_url.check(value)
        except InvalidRedisUrl as error:
            self.problems.append(f"{self._source(name)}: {error}")
        return value

    def _database_url(self, name: str, *, needed: bool = True) -> str:
        value = self._text(name)
        if value is None:
            if needed:
                self.problems.append(f"{name} is required (a URL starting with postgresql://)")
            return ""
        try:
            return normalize(value)
        except InvalidDatabaseUrl as error:
            self.problems.append(f"{self._source(name)}: {error}")
            return ""

    def _secret(self, name: str) -> str:
        if self._text(name) is None:
            self.problems.append(
                f"{name} is required: at least 32 bytes; generate them with: openssl rand -hex 32"
            )
        return self._keys(name) or ""

    def _keys(self, name: str) -> str | None:
        """Read a key, or several for `shared/security/encryption.py` to split at the commas."""
        value = self._text(name)
        for number, key in enumerate((value or "").split(","), 1):
            if value is not None and len(key.strip().encode()) < 32:
                self.problems.append(
                    f"{name}: key {number} must have at least 32 bytes, has"
                    f" {len(key.strip().encode())}; generate one with: openssl rand -hex 32"
                )
        return value

    def _number(self, name: str, default: float, least: float) -> float:
        value = self._text(name)
        if value is None:
            return float(default)
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or float(value) < least:
            self.problems.append(
                f"{self._source(name)}: must be a number of at least {least:g}, is {value!r}"
            )
            return float(default)
        return float(value)

    def _whole_number(self, name: str, default: int, least: int) -> int:
        number = self._number(name, default, least)
        if not number.is_integer():
            self.problems.append(f"{self._source(name)}: must be an integer, is {number:g}")
        return int(number)

    def _choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Read one of the choices, of which the first is the default."""
        value = self._text(name)
        if value is None:
            return choices[0]
        if value not in choices:
            self.problems.append(f"{name}: must be {' or '.join(sorted(choices))}, is {value!r}")
            return choices[0]
        return value

    def _pauses(self, name: str) -> tuple[float, ...]:
        form, meaning = r"[0-9]{1,6}(\.[0-9]{1,3})?", "a number of seconds"
        pauses = self._list(name, form, meaning)
        return () if self.problems else tuple(map(float, pauses))

    def _list(self, name: str, form: str, meaning: str) -> tuple[str, ...]:
        parts = self._parts(name)
        self.problems += [
            f"{name}: {part!r} is not {meaning}" for part in parts if not re.fullmatch(form, part)
        ]
        return parts

    def _origins(self, name: str) -> tuple[str, ...]:
        """Read origins as browsers send them, or none of them would ever be equal."""
        given = self._parts(name)
        for origin in given:
            if "*" in origin:
                why = "is not allowed: list each origin whose pages may call the API"
            elif not origins.ORIGIN.fullmatch(origin):
                why = "is not an origin such as https://app.example.com, in lower case"
            elif (sent := origins.as_sent(origin)) != origin:
                why = f"must be {sent!r}, as browsers send it"
            else:
                continue
            self.problems.append(f"{name}: {origin!r} {why}")
        return given

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = (part.strip() for part in (self._text(name) or "").split(","))
        return tuple(part for part in parts if part)

    def _folders(self, name: str) -> tuple[str, ...]:
        folders = (folder.strip() for folder in (self._text(name) or "").split(":"))
        return tuple(folder for folder in folders if folder)

    def _path_prefix(self, name: str) -> str | None:
        prefix = self._text(name)
        if prefix is not None and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
            self.problems.append(f"{name}: {prefix!r} is not a path such as /arkloop")
        return prefix

    def _public_url(self, name: str) -> str | None:
        url = self._text(name)
        if url is not None and (why := origins.problem_of_public_url(url)):
            self.problems.append(f"{name}: {why}")
        return url

    def _endpoint(self, name: str, *, path: str = "/?") -> str | None:
        url = self._text(name)
        if url is not None and not is_usable(url, path):
            example = "https://s3.example.com" if path == "/?" else "http://127.0.0.1:8000/v1"
            self.problems.append(f"{name}: must be an address such as {example}")
        return url

    def _networks(self, name: str) -> tuple[str, ...]:
        networks = self._parts(name)
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                self.problems.append(f"{name}: {network!r} is not a network: {error}")
        return networks
