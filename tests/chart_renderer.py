"""Helm's own library, in a process of its own: it brings a runtime and threads along.

Reads a JSON object from standard input: `chart`, a folder; `values`; `kubernetes`, a version;
`live`, documents of the cluster for which the chart is rendered, or null without one.
Prints one: `documents`, what is rendered; `lint`, the messages of `helm lint --strict`; `invalid`,
what the schemas of Kubernetes say; `notes`; or `error`.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import helm_python
import kubernetes_validate
import yaml


def main() -> None:
    """Render, lint and validate."""
    asked = json.load(sys.stdin)
    values = asked["values"]
    if (live := asked.get("live")) is not None:
        json.dump({"documents": _for_cluster(asked["chart"], values, live)}, sys.stdout)
        return
    try:
        with helm_python.Chart.load(asked["chart"]) as chart:
            chart.validate_schema(chart.merge_values(values))
            files = chart.render(values, name="runs", namespace="agents", is_install=True)
    except helm_python.HelmError as error:
        json.dump({"error": str(error)}, sys.stdout)
        return
    documents = [
        document
        for name, text in sorted(files.items())
        if not name.endswith(".txt")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    report = helm_python.lint(asked["chart"], values, strict=True)
    messages = [message["error"] for message in report["messages"] if message["severity"] > 1]
    invalid = [why for document in documents for why in _invalid(document, asked["kubernetes"])]
    result = {"documents": documents, "lint": messages + report["errors"], "invalid": invalid}
    json.dump({**result, "notes": files.get("arkloop/templates/NOTES.txt", "")}, sys.stdout)


def _for_cluster(chart: str, values: dict[str, Any], live: list[dict[str, Any]]) -> list[Any]:
    """Return what `helm install --dry-run=server` renders, without hooks."""

    class Handler(_Api):
        bodies: ClassVar = {**_discovery(), **dict(map(_resource, live))}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    kubeconfig = {
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "contexts": [{"name": "test", "context": {"cluster": "test"}}],
        "current-context": "test",
    }
    with helm_python.Config(
        kubeconfig_content=json.dumps(kubeconfig), namespace="agents", storage_driver="memory"
    ) as config:
        manifest = config.install(chart, "runs", values, namespace="agents", dry_run="server")
    return list(yaml.safe_load_all(manifest["manifest"]))


#: What the chart has, by the version of its API.
_KINDS = {
    "v1": ["Service", "ConfigMap"],
    "apps/v1": ["Deployment"],
    "batch/v1": ["Job"],
    "policy/v1": ["PodDisruptionBudget"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "networking.k8s.io/v1": ["Ingress"],
}


class _Api(BaseHTTPRequestHandler):
    """The part of Kubernetes' API that a dry run reads: what kinds exist, and resources."""

    bodies: ClassVar[dict[str, Any]]

    def do_GET(self) -> None:
        """Send the document of the path, or 404."""
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"}
        found = self.bodies.get(self.path.partition("?")[0])
        body = json.dumps(missing | {"code": 404} if found is None else found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def _discovery() -> dict[str, Any]:
    groups, bodies, schemas = [], {}, {}
    for api, kinds in _KINDS.items():
        group, _, version = api.rpartition("/")
        at = f"apis/{api}" if group else f"api/{api}"
        bodies[f"/{at}"] = {
            "kind": "APIResourceList",
            "groupVersion": api,
            "resources": [
                {"name": f"{kind.lower()}s", "kind": kind, "namespaced": True, "verbs": ["get"]}
                for kind in kinds
            ],
        }
        if group:
            one = {"groupVersion": api, "version": version}
            groups.append({"name": group, "versions": [one], "preferredVersion": one})
        schemas[at] = {"serverRelativeURL": f"/openapi/v3/{at}"}
        # The server checks fields itself, so that Helm reads no schemas.
        bodies[f"/openapi/v3/{at}"] = {
            "openapi": "3.0.0",
            "paths": {
                f"/{kind}": {
                    "patch": {
                        "parameters": [{"name": "fieldValidation", "in": "query"}],
                        "x-kubernetes-group-version-kind": {
                            "group": group,
                            "version": version,
                            "kind": kind,
                        },
                    }
                }
                for kind in kinds
            },
        }
    return {
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": groups},
        "/openapi/v3": {"paths": schemas},
        **bodies,
    }


def _resource(document: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return its path, and it as one of the release."""
    metadata = document["metadata"]
    release = {"meta.helm.sh/release-name": "runs", "meta.helm.sh/release-namespace": "agents"}
    path = f"/apis/{document['apiVersion']}/namespaces/agents/{document['kind'].lower()}s"
    owned = {
        **metadata,
        "namespace": "agents",
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {**metadata.get("annotations", {}), **release},
    }
    return f"{path}/{metadata['name']}", {**document, "metadata": owned}


def _invalid(document: dict[str, Any], version: str) -> list[str]:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = "/".join(map(str, error.path))
        return [f"{document['kind']} {document['metadata']['name']} {where}: {error.message}"]
    return []


main()
