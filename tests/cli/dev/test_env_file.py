"""The file `.env` of `arkloop dev`."""

from pathlib import Path

import pytest

from arkloop.cli.dev import env_file
from arkloop.cli.dev.env_file import InvalidEnvFile


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A=1", {"A": "1"}),
        ("export A = 1 ", {"A": "1"}),
        ("A=a b#c # a comment", {"A": "a b#c"}),
        ("A=", {"A": ""}),
        ("A= # nothing", {"A": ""}),
        ("A='a # ${b}'  # a comment", {"A": "a # ${b}"}),
        ('A="a=b"', {"A": "a=b"}),
        ("A=$HOME", {"A": "$HOME"}),
        ("# A=1\n\n  B=2\r\n", {"B": "2"}),
        ("\ufeffA=1", {"A": "1"}),
        ("A=1\nA=2", {"A": "2"}),
    ],
)
def test_lines_are_read_as_compose_reads_them(
    tmp_path: Path, line: str, expected: dict[str, str]
) -> None:
    """Names, values, quotes and comments have the form of Docker Compose."""
    file = tmp_path / ".env"
    file.write_text(line)

    assert expected == env_file.read(file)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("secret-word", "line 2: is not of the form NAME=value"),
        ("1A=secret-word", "line 2: is not of the form NAME=value"),
        ('A="secret-word', "line 2: A has a quote that does not end on its line"),
        ("A=secret-word-${B}", "line 2: A refers to another variable"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused(tmp_path: Path, line: str, why: str) -> None:
    """The message has its number and no value: it may be a secret."""
    file = tmp_path / ".env"
    file.write_text(f"B=2\n{line}\n")

    with pytest.raises(InvalidEnvFile, match=why) as caught:
        env_file.read(file)
    assert "secret-word" not in str(caught.value)


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    """A folder without the file has no variables; one that is no text is refused."""
    assert {} == env_file.read(tmp_path / ".env")
    (tmp_path / ".env").write_bytes(b"A=\xff")
    with pytest.raises(InvalidEnvFile, match="not UTF-8"):
        env_file.read(tmp_path / ".env")


def test_the_environment_takes_precedence() -> None:
    """A variable that is set is never replaced; an empty one counts as not set."""
    environ = {"A": "mine", "B": ""}

    assert {"B": "2", "C": "3"} == env_file.missing_in(environ, {"A": "1", "B": "2", "C": "3"})


def test_variables_of_another_program_are_left_out(tmp_path: Path) -> None:
    """Settings, what the libraries read and what the routes file names; no `PATH`, no `PORT`."""
    routes = tmp_path / "routes.yaml"
    routes.write_text("routes: [{id: a, api_key_variable: VLLM_KEY}, {'api_key_variable': 'X'}]")
    ours = ("ARKLOOP_PORT", "OPENAI_API_KEY", "OTEL_SERVICE_NAME", "AWS_REGION", "SSL_CERT_FILE")
    others = ("PATH", "PYTHONPATH", "LD_PRELOAD", "DATABASE_URL", "PORT", "MY_ARKLOOP_X", "Y")
    variables = dict.fromkeys((*ours, *others, "VLLM_KEY", "X"), "1")

    assert set(ours) == env_file.settings_in({}, variables).keys()
    with_routes = env_file.settings_in({"ARKLOOP_ROUTES": str(routes)}, variables)
    assert {*ours, "VLLM_KEY", "X"} == with_routes.keys()
    assert ours == (*env_file.settings_in({"ARKLOOP_ROUTES": str(tmp_path)}, variables),)
