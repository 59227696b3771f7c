"""The Helm chart: rendered by Helm's own library, valid for Kubernetes, with our commands."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from arkloop.cli.dev.dev import read_procfile
from arkloop.shared.config import Settings
from scripts.release import package_chart

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy/helm/arkloop"
HELM = ROOT / ".cache/helm"
pytestmark = [
    pytest.mark.helm,
    pytest.mark.skipif(
        not (HELM / ".installed").exists() and not os.environ.get("NEED_HELM"),
        reason="Helm's library is not installed: make test-helm",
    ),
]
#: The oldest one that the chart names, and the newest of which there are schemas.
KUBERNETES = ("1.25.0", "1.37.0")
LEAST = {
    "image": {"repository": "registry.example.com/arkloop-runs"},
    "existingSecret": "arkloop",
    "settings": {"ARKLOOP_S3_BUCKET": "files"},
}
FULL = {
    "image": {"repository": "registry.example.com/runs", "digest": f"sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "existingSecret": "arkloop",
    "settings": {"ARKLOOP_PUBLIC_URL": "https://runs.example.com", "ARKLOOP_RETENTION_DAYS": "7"},
    "extraEnv": [
        {"name": "VLLM_KEY", "valueFrom": {"secretKeyRef": {"name": "vllm", "key": "key"}}}
    ],
    "routes": "routes: [{id: vllm, provider: openai, model: m, api_key_env: VLLM_KEY}]\n",
    "files": {"existingClaim": "files"},
    "web": {
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"pool": "web"},
        "tolerations": [{"key": "web", "operator": "Exists"}],
    },
    "worker": {"autoscaling": {"enabled": True}, "concurrency": 300},
    "migrate": {"existingSecret": "owner"},
    "service": {"annotations": {"a": "b"}},
    "ingress": {"enabled": True, "host": "runs.example.com", "tlsSecret": "tls", "className": "n"},
    "metrics": {"enabled": True},
    "serviceAccountName": "runs",
}


def rendered(
    values: dict[str, Any],
    kubernetes: str = KUBERNETES[-1],
    live: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return what `chart_renderer.py` prints; `live` is what runs in the cluster."""
    asked = {"chart": str(CHART), "values": values, "kubernetes": kubernetes, "live": live}
    return _rendered(json.dumps(asked))


@cache
def _rendered(asked: str) -> dict[str, Any]:
    # Helm keeps what it has read of a cluster's API at home.
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, ROOT / "tests/chart_renderer.py"],
            input=asked,
            env={"PYTHONPATH": str(HELM), "PATH": os.environ["PATH"], "HOME": home},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert 0 == done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module", params=["least", "full"])
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    result = rendered({"least": LEAST, "full": FULL}[request.param])
    assert "error" not in result, result
    found: list[dict[str, Any]] = result["documents"]
    return found


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the component, the spec and the one container of each kind of pod."""
    for document in documents:
        if template := document["spec"].get("template") if "spec" in document else None:
            [container] = template["spec"]["containers"]
            yield container["name"], template["spec"], container


def one(documents: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    """Return the document of this kind whose name ends so."""
    [found] = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"].endswith(suffix)
    ]
    return found


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("values", [LEAST, FULL], ids=["least", "full"])
def test_everything_is_valid(values: dict[str, Any], kubernetes: str) -> None:
    """`helm lint --strict` and the strict schemas of Kubernetes find nothing."""
    result = rendered(values, kubernetes)

    assert ([], []) == (result["lint"], result["invalid"])
    assert "python -m arkloop.cli doctor" in result["notes"]


def test_the_schemas_find_a_wrong_field() -> None:
    """A field that Kubernetes does not know is an error: the validation is no formality."""
    result = rendered(LEAST | {"web": {"affinity": {"nodeAffinities": {}}}})

    assert ["nodeAffinities" in why for why in result["invalid"]] == [True]


def test_containers_run_the_lines_of_the_procfile(documents: list[dict[str, Any]]) -> None:
    """What `arkloop dev` and a platform run is what the containers run."""
    release, lines = read_procfile(ROOT / "Procfile")
    expected = {"migrate": str(release), **lines}

    commands = {}
    for name, _, container in pods(documents):
        environ = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
        concurrency = environ.get("ARKLOOP_WORKER_CONCURRENCY", "")
        line = expected[name].removeprefix("exec ")
        line = line.replace("${ARKLOOP_WORKER_CONCURRENCY:-200}", concurrency)
        commands[name] = shlex.split(line) == container["command"]
    assert {"migrate": True, "web": True, "worker": True} == commands


def test_every_container_is_confined(documents: list[dict[str, Any]]) -> None:
    """Nobody is root, writes to the image, gains privileges, or has a token of Kubernetes."""
    for name, spec, container in pods(documents):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert 10001 == spec["securityContext"]["runAsUser"], "the Dockerfile's"
        assert {"type": "RuntimeDefault"} == spec["securityContext"]["seccompProfile"]
        assert spec["automountServiceAccountToken"] is False
        # Of a service `arkloop` Kubernetes would make a variable ARKLOOP_PORT=tcp://….
        assert spec["enableServiceLinks"] is False
        assert {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        } == container["securityContext"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


def test_a_node_can_be_drained(documents: list[dict[str, Any]]) -> None:
    """Two pods of each, of which one may be away, and time to hand over what they do."""
    for name in ("web", "worker"):
        budget, deployment = (
            one(documents, kind, f"-{name}") for kind in ("PodDisruptionBudget", "Deployment")
        )
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        selector = budget["spec"]["selector"]["matchLabels"]
        assert 1 == budget["spec"]["maxUnavailable"]
        assert selector.items() <= labels.items()
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 30


def test_the_schema_is_migrated_first(documents: list[dict[str, Any]]) -> None:
    """A hook runs it before new pods start, and needs nothing that the chart creates."""
    job = one(documents, "Job")

    assert "pre-install,pre-upgrade" == job["metadata"]["annotations"]["helm.sh/hook"]
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert [{"name": "tmp", "emptyDir": {}}] == volumes


def test_the_commands_of_the_guide_wait_for_the_migration() -> None:
    """Helm's `--timeout` is longer than the Job may take: else a repeated upgrade deletes it."""
    guide = (ROOT / "docs/how-to/kubernetes.md").read_text()
    commands = re.findall(r"^helm (?:install|upgrade) .*", guide, re.MULTILINE)
    minutes = [re.findall(r"--timeout (\d+)m", command) for command in commands]
    deadline = one(rendered(LEAST)["documents"], "Job")["spec"]["activeDeadlineSeconds"]

    assert commands and all(found and deadline < 60 * int(found[0]) for found in minutes)


def test_the_ingress_of_the_guide_passes_files_and_logs_no_tickets() -> None:
    """What `deploy/nginx.conf` sets for all requests, its annotations set for ingress-nginx."""
    guide = (ROOT / "docs/how-to/kubernetes.md").read_text()
    [values] = re.findall(r"^```yaml\n(ingress:\n.*?)^```", guide, re.MULTILINE | re.DOTALL)
    result = rendered(LEAST | yaml.safe_load(values))
    annotations = one(result["documents"], "Ingress")["metadata"]["annotations"]

    assert ([], []) == (result["lint"], result["invalid"])
    assert {
        "proxy-buffering": "off",
        "proxy-read-timeout": "600",
        "proxy-body-size": "0",
        "enable-access-log": "false",
    } == {
        name.removeprefix("nginx.ingress.kubernetes.io/"): annotations[name] for name in annotations
    }


def test_the_guide_keeps_its_values_in_one_file() -> None:
    """An upgrade has the values of the installation and those of each later section, where Helm
    would forget what was set by an argument alone.
    """
    guide = (ROOT / "docs/how-to/kubernetes.md").read_text()
    commands = re.findall(r"^helm (?:install|upgrade) .*", guide.replace("\\\n", ""), re.MULTILINE)
    chart = yaml.safe_load((CHART / "values.yaml").read_text())
    files = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```", guide, re.DOTALL | re.MULTILINE))

    assert commands and all(command.endswith(" --values values.yaml") for command in commands)
    values: dict[str, Any] = {}
    for file in files:
        if file.keys() <= chart.keys():
            assert not file.keys() & values.keys()
            values |= file
            result = rendered(values)
            assert ([], []) == (result["lint"], result["invalid"])
            for name, _, container in pods(result["documents"]):
                url = {"name": "ARKLOOP_PUBLIC_URL", "value": "https://runs.example.com"}
                assert name == "migrate" or url in container["env"]
    assert "ingress" in values


def migration_env(values: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the variables of the migration's container, None if it has none of its own."""
    result = rendered(values)
    assert [] == result["invalid"]
    job = one(result["documents"], "Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    found: list[dict[str, Any]] | None = container.get("env")
    return found


def test_the_migration_has_the_setting_that_it_reads() -> None:
    """It makes partitions of events for as long as runs are kept; other settings are not its."""
    retention = {"name": "ARKLOOP_RETENTION_DAYS", "value": "7"}

    assert migration_env(LEAST) is None
    assert [retention, *FULL["extraEnv"]] == migration_env(FULL)


@pytest.mark.parametrize("own_secret", ["", "owner"])
def test_the_migration_has_the_variables_of_the_pods(own_secret: str) -> None:
    """The database's URL may be among them; the URL in a Secret of its own has precedence."""
    reference = {"secretKeyRef": {"name": "db", "key": "url"}}
    url, direct = (
        {"name": name, "valueFrom": reference}
        for name in ("ARKLOOP_DATABASE_URL", "ARKLOOP_DIRECT_DATABASE_URL")
    )
    values = {**LEAST, "extraEnv": [url, direct], "migrate": {"existingSecret": own_secret}}

    assert ([url] if own_secret else [url, direct]) == migration_env(values)


def test_traffic_waits_for_the_schema_and_outlives_an_outage(
    documents: list[dict[str, Any]],
) -> None:
    """A pod joins when it is ready; later it stays while Postgres is away, and is not restarted."""
    probes = {name: container for name, _, container in pods(documents)}

    assert "/readyz" == probes["web"]["startupProbe"]["httpGet"]["path"]
    assert "/healthz" == probes["web"]["readinessProbe"]["httpGet"]["path"]
    assert "/healthz" == probes["web"]["livenessProbe"]["httpGet"]["path"]
    assert "livenessProbe" not in probes["worker"]


def test_workers_scale_by_the_age_of_the_queue() -> None:
    """The scaler sets the number of pods alone, by an external metric and the CPU."""
    documents = rendered(FULL)["documents"]

    assert "replicas" not in one(documents, "Deployment", "-worker")["spec"]
    external, cpu = one(documents, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert "arkloop_oldest_queued_seconds" == external["external"]["metric"]["name"]
    assert {"type": "Value", "value": "5"} == external["external"]["target"]
    assert "cpu" == cpu["resource"]["name"]
    assert not [d for d in rendered(LEAST)["documents"] if d["kind"] == "HorizontalPodAutoscaler"]


def test_switching_the_autoscaler_on_stops_no_worker() -> None:
    """The manifest keeps the number of pods that run, also in later upgrades: one that leaves it
    out after one that had it would set it to 1.
    """
    worker = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 7}}
    worker["metadata"] = {"name": "runs-arkloop-worker"}

    switched = one(rendered(FULL, live=[worker])["documents"], "Deployment", "-worker")
    assert 7 == switched["spec"]["replicas"]

    scaler = one(rendered(FULL)["documents"], "HorizontalPodAutoscaler")
    for replicas in (9, 0):
        now = {**switched, "spec": {"replicas": replicas}}
        upgraded = one(rendered(FULL, live=[now, scaler])["documents"], "Deployment", "-worker")
        assert replicas == upgraded["spec"]["replicas"]


def test_a_release_that_began_with_the_autoscaler_leaves_the_number_to_it() -> None:
    """No manifest has it: an upgrade whose migration takes minutes would set an old one."""
    found = rendered(FULL)["documents"]
    worker = one(found, "Deployment", "-worker") | {"spec": {"replicas": 7}}
    scaler = one(found, "HorizontalPodAutoscaler")

    for live in ([], [worker, scaler]):
        upgraded = one(rendered(FULL, live=live)["documents"], "Deployment", "-worker")
        assert "replicas" not in upgraded["spec"]


def test_settings_reach_the_processes() -> None:
    """They are what `Settings` reads, with the Secret beside them."""
    for values in (LEAST, FULL):
        for name, _, container in pods(rendered(values)["documents"]):
            if name == "migrate":
                continue
            assert {"secretRef": {"name": "arkloop"}} in container["envFrom"]
            environ = {e["name"]: e["value"] for e in container["env"] if "value" in e}
            settings = Settings.from_env(
                {
                    **environ,
                    "ARKLOOP_DATABASE_URL": "postgresql://db/runs",
                    "ARKLOOP_REDIS_URL": "redis://redis",
                    "ARKLOOP_JWT_SECRET": "j" * 32,
                }
            )
            if values is FULL:
                assert (7, 9464, "/etc/arkloop/routes.yaml") == (
                    settings.retention_days,
                    settings.metrics_port,
                    settings.routes_file,
                )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"existingSecret": ""}, "existingSecret"),
        ({"settings": {}}, "files: set settings.ARKLOOP_S3_BUCKET, or files.existingClaim"),
        ({"settings": {"ARKLOOP_JWT_SECRET": "x"}}, "invalid propertyName 'ARKLOOP_JWT_SECRET'"),
        ({"settings": {"REDIS_URL": "x"}}, "invalid propertyName 'REDIS_URL'"),
        ({"settings": {"ARKLOOP_S3_BUCKET": "b", "ARKLOOP_RETENTION_DAYS": 7}}, "RETENTION_DAYS"),
        ({"web": {"replica": 3}}, "replica"),
        ({"worker": {"autoscaling": {"enabled": True}}}, "metrics.enabled"),
        ({"ingress": {"enabled": True}}, "ingress.host"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], why: str) -> None:
    """A misspelled name, a secret among the settings, or what is missing is named."""
    assert why in rendered(LEAST | changes).get("error", "nothing was refused")


def test_the_packaged_chart_is_the_chart(tmp_path: Path) -> None:
    """What a release packages renders the same, and its bytes depend on the files alone."""
    packages = [tmp_path / name for name in ("one.tgz", "other.tgz")]
    for package in packages:
        package_chart(CHART, package, 1_700_000_000)
    asked = {"values": FULL, "kubernetes": KUBERNETES[-1]}
    packaged = _rendered(json.dumps({**asked, "chart": str(packages[0])}))

    assert packages[0].read_bytes() == packages[1].read_bytes()
    assert packaged == rendered(FULL)
