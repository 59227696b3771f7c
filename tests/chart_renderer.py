"""Helm's own library, in a process of its own: it brings a runtime and threads along.

Reads a JSON object from standard input: `chart`, a folder; `values`; `kubernetes`, a version.
Prints one: `documents`, what is rendered; `lint`, the messages of `helm lint --strict`; `invalid`,
what the schemas of Kubernetes say; `notes`; or `error`.
"""

import json
import sys
from typing import Any

import helm_python
import kubernetes_validate
import yaml


def main() -> None:
    """Render, lint and validate."""
    asked = json.load(sys.stdin)
    values = asked["values"]
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


def _invalid(document: dict[str, Any], version: str) -> list[str]:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = "/".join(map(str, error.path))
        return [f"{document['kind']} {document['metadata']['name']} {where}: {error.message}"]
    return []


main()
