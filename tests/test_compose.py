"""`compose.yaml`, the image and the proxy: valid, the Procfile's own commands, nothing held back.

`compose-spec.json` is the schema of the Compose Specification, unchanged, under the Apache License
2.0 of `compose-spec.LICENSE` (copyright 2013-2018 Docker, Inc.), as the package check-jsonschema
0.39.0 carries it.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from sqlalchemy import URL, make_url

from arkloop.api.http import preferences
from arkloop.api.protocols import responses
from arkloop.cli.dev.dev import read_procfile
from arkloop.shared.config import FALLBACKS, Settings
from tests.stored_runs import StoredRuns, ago

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
#: The program by which Compose finds out whether a worker is well.
PROBE: str = SERVICES["worker"]["healthcheck"]["test"][-1]
OURS = ("migrate", "web", "worker")


def test_the_file_is_of_the_compose_specification() -> None:
    """The specification's own schema finds nothing wrong with `compose.yaml`."""
    schema = json.loads((ROOT / "tests" / "compose-spec.json").read_text())

    problems = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(COMPOSE)
    ]

    assert [] == problems


def test_every_part_is_there() -> None:
    """It has Postgres, Redis, the migrations, web, worker and a proxy, and nothing else."""
    assert {"postgres", "redis", "migrate", "web", "worker", "proxy"} == set(SERVICES)


def test_containers_run_the_lines_of_the_procfile() -> None:
    """What `arkloop dev` and a platform run is what the containers run."""
    release, lines = read_procfile(ROOT / "Procfile")
    expected = {"migrate": release, **lines}

    assert set(OURS) == set(expected)
    for name, line in expected.items():
        assert line is not None
        assert shlex.split(line.removeprefix("exec ")) == SERVICES[name]["command"], name


def test_redis_stops_at_a_part_of_its_containers_memory() -> None:
    """It forgets streams then, which Postgres has; messages for workers have no time to live."""
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert "volatile-lru" == options["--maxmemory-policy"]
    # The rest is for a copy of it while its file is written anew, and for clients' buffers.
    assert "512mb" == options["--maxmemory"]
    assert "1g" == SERVICES["redis"]["deploy"]["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", ["web", "worker"])
def test_one_container_may_be_lost(name: str) -> None:
    """There are two of each, so the service outlives the end of one."""
    assert 2 == SERVICES[name]["deploy"]["replicas"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_confined(name: str) -> None:
    """Nobody is root, writes to the image, gains privileges or takes the whole machine."""
    service = SERVICES[name]

    assert service["user"] not in ("root", "0", "0:0")
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert ["ALL"] == service["cap_drop"]
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert {"memory", "pids"} == set(service["deploy"]["resources"]["limits"])
    assert "privileged" not in service


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_every_container_that_stays_says_how_it_is(name: str) -> None:
    """A service that depends on one waits until it works, not until it exists."""
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_only_the_proxy_can_be_reached() -> None:
    """Databases and web processes have no port on the machine, and the proxy one on loopback."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert {"proxy": ["127.0.0.1:${ARKLOOP_HTTP_PORT:-8080}:8080"]} == published


def test_no_secret_has_a_default() -> None:
    """A start without its passwords is refused, by name."""
    text = (ROOT / "compose.yaml").read_text()

    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "ARKLOOP_JWT_SECRET"):
        uses = re.findall(rf"\$\{{{name}(.*?)\}}", text)
        assert uses, name
        assert all(use.startswith(":?") for use in uses), name


def test_the_containers_settings_are_complete() -> None:
    """The processes start with the three secrets and nothing else."""
    given = {
        "POSTGRES_PASSWORD": "a" * 48,
        "REDIS_PASSWORD": "b" * 48,
        "ARKLOOP_JWT_SECRET": "c" * 64,
    }
    environ = {
        name: interpolated(value, given) for name, value in SERVICES["web"]["environment"].items()
    }

    settings = Settings.from_env(environ)

    assert f"postgresql+psycopg://arkloop:{'a' * 48}@postgres:5432/arkloop" == settings.database_url
    assert all(SERVICES[name]["environment"] == SERVICES["web"]["environment"] for name in OURS)


def test_every_documented_setting_reaches_the_containers() -> None:
    """A line of `.env` for any of them is enough; those that the set itself decides are fixed."""
    decided = {
        *("ARKLOOP_DATABASE_URL", "ARKLOOP_REDIS_URL"),  # the set's own servers
        *("ARKLOOP_HOST", "ARKLOOP_PORT"),  # where the proxy and the health check look
    }
    text = (ROOT / "docs/reference/configuration.md").read_text()
    table = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    passed = SERVICES["web"]["environment"]

    assert len(documented) > 30
    ours = [name for name in documented if name not in FALLBACKS.values()]
    assert ours == list(passed), "in the order of the table"
    for name in set(ours) - decided:
        assert re.fullmatch(rf"\$\{{{name}:[-?].*\}}", passed[name]), name


def test_the_guide_says_which_variables_reach_no_container() -> None:
    """A line of `.env` does nothing for them; the guide's own file passes them on, with files."""
    page = (ROOT / "docs/reference/configuration.md").read_text()
    ours = page.partition("\n## Settings\n")[2].partition("\n### Platforms\n")[0]
    documented = set(re.findall(r"`([A-Z]+_[A-Z_]+)\b", ours)) - set(FALLBACKS.values())
    guide = (ROOT / "docs/how-to/operations.md").read_text()
    said, _, rest = guide.partition("\n`.env` can contain ")[2].partition("\n```yaml\n")
    own = yaml.safe_load(rest.partition("```")[0])["services"]["worker"]

    assert {"SSL_CERT_FILE", "SSL_CERT_DIR"} <= documented
    for name in documented - set(SERVICES["web"]["environment"]):
        assert f"`{name}`" in said
    mounted = {volume.split(":")[1] for volume in own["volumes"]}
    assert mounted == {value for value in own["environment"].values() if value[0] == "/"}


def test_an_operators_settings_are_what_the_processes_read() -> None:
    """Settings from `.env` change what the processes of a container do."""
    given = {
        "POSTGRES_PASSWORD": "a" * 48,
        "REDIS_PASSWORD": "b" * 48,
        "ARKLOOP_JWT_SECRET": "c" * 64,
        "ARKLOOP_RETENTION_DAYS": "7",
        "ARKLOOP_ALLOWED_NETWORKS": "10.0.0.0/8",
        "ANTHROPIC_API_KEY": "sk-ant",
    }
    environ = {
        name: interpolated(value, given) for name, value in SERVICES["web"]["environment"].items()
    }

    settings = Settings.from_env(environ)

    assert (7, ("10.0.0.0/8",), "sk-ant", "0.0.0.0", 8080) == (
        settings.retention_days,
        settings.allowed_networks,
        settings.anthropic_api_key,
        settings.host,
        settings.port,
    )


class Override(yaml.SafeLoader):
    """A reader of Compose files in which `!reset` removes a value."""


Override.add_constructor("!reset", lambda _loader, _node: None)


def test_the_guides_ways_to_plugins_reach_the_processes() -> None:
    """Every override of the guide names a folder that web and worker have, and Compose does not
    build an image of one's own from this repository: `compose.yaml` hides an image's variable.
    """
    page = (ROOT / "docs/how-to/plugins.md").read_text()
    overrides = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    copied = re.findall(r"^COPY \S+ (\S+)$", page, re.MULTILINE)

    assert 2 == len(overrides)
    for services in (yaml.load(text, Override)["services"] for text in overrides):
        for name in ("web", "worker"):
            own = services[name]
            folder = (SERVICES[name]["environment"] | own["environment"])["ARKLOOP_PLUGINS"]
            if "image" in own:
                assert (own["build"], [folder]) == (None, copied)
            else:
                assert folder in [volume.split(":")[1] for volume in own["volumes"]]


def test_the_guides_image_of_plugins_can_be_built_and_is_what_runs() -> None:
    """Packages are installed by root, who owns the environment, and processes have the user of
    Compose; its folder is not that of this repository, whose `.dockerignore` hides plugins.
    """
    page = (ROOT / "docs/how-to/plugins.md").read_text()
    [dockerfile] = re.findall(r"^```text\n(FROM .*?)^```$", page, re.DOTALL | re.MULTILINE)
    [(tag, folder)] = re.findall(r"^docker build --tag (\S+) (\S+)$", page, re.MULTILINE)
    installs, _, rest = dockerfile.partition("RUN pip install ")

    assert installs.endswith("\nUSER root\n")
    assert [SERVICES["web"]["user"]] == re.findall(r"^USER (\S+)$", rest, re.MULTILINE)
    assert {tag} == set(re.findall(r"^    image: (\S+)$", page, re.MULTILINE))
    assert not (ROOT / folder).exists()


def interpolated(value: str, given: dict[str, str]) -> str:
    """Interpolate as compose does: `${NAME:?word}` and `${NAME:-default}`."""

    def one(match: re.Match[str]) -> str:
        name, operator, word = match.groups()
        return given[name] if operator == "?" else given.get(name) or word

    return re.sub(r"\$\{(\w+):([?-])([^}]*)\}", one, value)


def test_the_proxy_holds_no_event_back() -> None:
    """No buffer and no compression stand between a web process and a client."""
    directives = _directives((ROOT / "deploy" / "nginx.conf").read_text())

    assert ["off"] == directives["proxy_buffering"]
    assert ["off"] == directives["gzip"]
    assert ["1.1"] == directives["proxy_http_version"]
    assert ["http://$web"] == directives["proxy_pass"]
    assert ["$web", "web:8080"] == directives["set"]


@pytest.mark.parametrize(
    ("name", "timeout"),
    [
        ("deploy/nginx.conf", r"proxy_read_timeout (\d+)s;"),
        ("deploy/haproxy.cfg", r"timeout server (\d+)s"),
        ("deploy/cells/haproxy.cfg", r"timeout server (\d+)s"),
        ("deploy/Caddyfile", r"read_timeout (\d+)s"),
        ("docs/how-to/kubernetes.md", r'proxy-read-timeout: "(\d+)"'),
    ],
)
def test_a_proxy_waits_for_the_slowest_response(name: str, timeout: str) -> None:
    """A request without a stream gets nothing, and no ping, before its run or its time is over."""
    [seconds] = re.findall(timeout, (ROOT / name).read_text())

    longest = max(responses.WAIT_SECONDS, preferences.MAX_WAIT_SECONDS)
    assert int(seconds) > longest + 5


@pytest.mark.parametrize("name", ["deploy/haproxy.cfg", "deploy/cells/haproxy.cfg"])
def test_a_proxy_keeps_web_processes_through_an_outage_of_postgres(name: str) -> None:
    """They answer 503 with `Retry-After` then, which a proxy without servers would not pass on."""
    checks = re.findall(r"(?m)^ *http-check send meth GET uri (\S+)", (ROOT / name).read_text())

    assert ["/healthz"] == checks


def test_the_proxy_logs_no_query_string() -> None:
    """Stream tickets travel in query strings."""
    directives = _directives((ROOT / "deploy" / "nginx.conf").read_text())

    assert ["off"] == directives["access_log"]
    assert ["stderr", "crit"] == directives["error_log"]


def _directives(text: str) -> dict[str, list[str]]:
    """Parse the simple directives of an nginx configuration; a repeated one has both arguments."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"#.*", "", text)
    for name, arguments in re.findall(r"(?:^|[;{}])\s*(\w+)\s+([^;{}]+)(?=;)", text):
        found.setdefault(name, []).extend(arguments.split())
    return found


def test_the_image_runs_as_the_unprivileged_user_of_compose() -> None:
    """The image has the uid that `compose.yaml` sets, and starts the web process by default."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    last = {line.split()[0]: line for line in lines if line and line[0].isupper()}

    assert f"USER {SERVICES['web']['user']}" == last["USER"]
    assert SERVICES["web"]["command"] == json.loads(last["CMD"].removeprefix("CMD "))


def test_the_image_installs_what_is_pinned() -> None:
    """Every package that the image installs is checked against a hash, but for our own."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install ([^&\n]+)", text)

    assert installs
    for arguments in installs:
        assert "--require-hashes" in arguments or "--no-deps" in arguments, arguments


@pytest.mark.parametrize(("package", "extra"), [("gunicorn", "gevent"), ("kombu", "redis")])
def test_the_image_has_what_its_servers_need(package: str, extra: str) -> None:
    """What a package imports only for gevent or for Redis is pinned for production too."""
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    needed = {
        re.split(r"[^\w.-]", requirement)[0]
        for requirement in metadata.requires(package) or ()
        if f'extra == "{extra}"' in requirement
    }

    assert set() == needed - pinned


def test_everything_that_the_image_needs_gets_into_it() -> None:
    """`.dockerignore` lets the product's folders in, and nothing that is not named."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()

    assert "*" in lines
    let_in = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    assert {"api", "arkloop", "cli", "migrations", "shared", "worker", "pyproject.toml"} <= let_in
    assert not [name for name in let_in if not (ROOT / name).exists()]


def test_the_probe_of_workers_is_that_of_the_chart() -> None:
    """Both look at the lease in Postgres, behind row-level security, too."""
    template = (ROOT / "deploy/helm/arkloop/templates/worker.yaml").read_text()

    assert textwrap.indent(PROBE, 18 * " ") in template


def test_the_probe_finds_the_database_as_workers_do(stored: StoredRuns, settings: Settings) -> None:
    """It accepts a platform's variables and any form of the URL, and requires a fresh row of this
    host.
    """
    url = make_url(settings.database_url).set(drivername="postgres")
    # SQLAlchemy's own form, which libpq does not read.
    address = f"{url.query.get('host', url.host)}:{url.port or 5432}"
    other = url.set(host=None, port=None).update_query_dict({"host": address})
    environ = {
        "PATH": os.environ["PATH"],
        "REDIS_URL": settings.redis_url,
        "ARKLOOP_JWT_SECRET": settings.jwt_secret,
        "ARKLOOP_LEASE_SECONDS": "300",
    }

    def status(url: URL = url) -> int:
        argv = [sys.executable, "-c", PROBE]
        env = {**environ, "DATABASE_URL": url.render_as_string(hide_password=False)}
        return subprocess.run(argv, cwd=ROOT, env=env, timeout=60).returncode

    before = status()
    worker = stored.worker(hostname=socket.gethostname(), seen_at=ago(seconds=25))
    during = (status(), status(other))
    stored.set_worker(worker, seen_at=ago(seconds=305))

    assert (1, (0, 0), 1) == (before, during, status())
