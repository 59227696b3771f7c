"""`arkloop personas`, `routes`, `providers`, `mcp` and the HTTP tools of `arkloop tools`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner, Result

from arkloop.cli.client.resources import read_object
from arkloop.cli.main import main
from tests.caller import Caller

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run(user: Caller) -> Run:
    """Call it with the words after `arkloop`; `input` is what standard input has."""
    _, key = user.api_key(name="cli")

    def run(*words: str, input: str | None = None) -> Result:
        env = {"ARKLOOP_URL": user.url, "ARKLOOP_API_KEY": key}
        return CliRunner().invoke(main, words, env=env, input=input)

    return run


def test_a_persona_is_published_from_a_file_and_shown(run: Run, tmp_path: Path) -> None:
    """YAML or JSON, with the fields of the API; its id has the version."""
    file = tmp_path / "finder.yaml"
    file.write_text("key: finder\nsystem_prompt: |\n  Find it.\ntools: [calculator]\n")

    published = run("personas", "publish", str(file))
    shown = json.loads(run("personas", "show", "finder@1", "--json").output)
    listed = [line.split("\t") for line in run("personas", "list").output.splitlines()]

    assert "finder@1\n" == published.output
    assert ("Find it.\n", ["calculator"]) == (shown["system_prompt"], shown["tools"])
    assert ["finder@1", "org", "-", "-", '["calculator"]'] in listed
    assert "assistant@1" in {line[0] for line in listed}


def test_a_provider_lives_from_its_creation_to_its_deletion(run: Run) -> None:
    """Its models are routes; deleting asks before."""
    body = {"name": "ours", "kind": "openai", "api_key": "sk-1", "models": [{"model": "small"}]}
    provider_id = run("providers", "create", "-", input=json.dumps(body)).output.strip()

    listed = run("providers", "list").output
    models = json.loads(run("providers", "models", provider_id, "--json").output)
    routes = json.loads(run("routes", "list", "--json").output)
    shown = run("providers", "show", provider_id).output
    kept = run("providers", "delete", provider_id, input="n\n")
    gone = run("providers", "delete", provider_id, "--yes")

    assert f"{provider_id}\tours\topenai" in listed
    assert ["small"] == [model["model"] for model in models]
    assert models[0]["route_id"] in {route["id"] for route in routes}
    assert "api_key_last_four\tsk-1" in shown or "has_api_key\ttrue" in shown
    assert (1, 0, "ok\n") == (kept.exit_code, gone.exit_code, gone.output)
    assert provider_id not in run("providers", "list").output


def test_routes_are_listed_in_a_pipe(run: Run) -> None:
    """The server's own come first, tab-separated."""
    first = run("routes", "list").output.splitlines()[0].split("\t")

    assert ("scripted", "server") == (first[0], first[1])


def test_an_mcp_server_is_created_and_asked_again(run: Run) -> None:
    """Its tools are those that a worker has found, here none."""
    body = "name: clock\nurl: https://mcp.example/mcp\n"
    server_id = run("mcp", "create", "-", input=body).output.strip()

    assert f"{server_id}\tclock" in run("mcp", "list").output
    assert "https://mcp.example/mcp" in run("mcp", "show", server_id).output
    assert (0, "") == (
        run("mcp", "tools", server_id).exit_code,
        run("mcp", "tools", server_id).output,
    )
    assert "ok\n" == run("mcp", "discover", server_id).output
    unknown = run("mcp", "approve", server_id, "echo", "0" * 64)
    assert 1 == unknown.exit_code and "Error: " in unknown.output
    assert "ok\n" == run("mcp", "delete", server_id, "--yes").output


def test_an_http_tool_prints_its_secret_once(run: Run) -> None:
    """The secret is what the receiver verifies calls with."""
    body = {"name": "refund", "description": "Refund.", "url": "https://shop.example/refund"}
    secret = run("tools", "create", "-", input=json.dumps(body)).output.strip()
    [tool] = json.loads(run("tools", "list", "--json").output)

    assert secret.startswith("whsec_")
    assert secret not in run("tools", "show", tool["id"]).output
    assert "ok\n" == run("tools", "delete", tool["id"], "--yes").output


@pytest.mark.parametrize("text", ["[1, 2]", "key: [", "just words"])
def test_a_file_that_is_no_object_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    """It is refused before anything is sent, in one line with its name."""
    file = tmp_path / "wrong.yaml"
    file.write_text(text)

    done = run("personas", "publish", str(file))

    assert (1, 1) == (done.exit_code, len(done.output.splitlines()))
    assert str(file) in done.output


def test_a_file_of_json_is_read_as_json(tmp_path: Path) -> None:
    """Python writes emoji, small numbers and tabs in ways in which YAML reads something else."""
    file = tmp_path / "fields.json"
    fields = {"name": "\U0001f600", "settings": {"temperature": 1e-05}}
    file.write_text(json.dumps(fields, indent="\t"))

    assert fields == read_object(file)


def test_a_file_that_is_almost_json_is_read_as_yaml(tmp_path: Path) -> None:
    """It may have comments, commas at the end, or NaN, which is a string there."""
    file = tmp_path / "fields.yaml"
    file.write_text('{"a": NaN, "b": [1,],}  # fields')

    assert {"a": "NaN", "b": [1]} == read_object(file)


@pytest.mark.parametrize("text", ["a: 2026-01-01", "a: .nan", "a: &a [*a]", "a: !!binary YQ=="])
def test_values_that_json_does_not_have_are_refused(tmp_path: Path, text: str) -> None:
    """YAML has them, and the request could not be written."""
    file = tmp_path / "wrong.yaml"
    file.write_text(text)

    with pytest.raises(ClickException, match=str(file)):
        read_object(file)


@pytest.mark.parametrize(
    "words",
    [
        ("personas", "show", "."),
        ("providers", "show", ".."),
        ("providers", "models", ".."),
        ("mcp", "tools", ".."),
        ("tools", "delete", "."),
        ("personas", "show", "caf\udce9"),
    ],
)
def test_a_step_in_a_path_is_no_id(run: Run, words: tuple[str, ...]) -> None:
    """It leads to a list, or to another resource; a name that is not UTF-8 leads nowhere."""
    done = run(*words)

    assert 2 == done.exit_code
    assert f"Error: {words[2]!r} is neither a name nor an id.\n" in done.output


def test_the_words_of_the_service_are_printed(run: Run) -> None:
    """What is wrong with which field, and what does not exist."""
    wrong = run("personas", "publish", "-", input="key: Not A Key\n")
    missing = run("providers", "show", "01a20e69-febb-7726-9958-e5d91f244720")

    assert 1 == wrong.exit_code and "key" in wrong.output
    assert 1 == missing.exit_code and "404" in missing.output
