"""The lines after `Ready on …`: where the console is, the key to sign in with, what to try next."""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from arkloop.cli.client.server_address import DEFAULT_FOLDER
from arkloop.cli.dev.data_folder import DataFolder
from arkloop.cli.dev.prefixed_output import PrefixedOutput

_VENDORS_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
_EITHER_KEY = " or ".join(_VENDORS_KEYS)
_LOCAL = "Answers are from a small model on this machine, which is often wrong."
_REPEATED = "Answers repeat the message: there is no model."


def lines(
    url: str, folder: DataFolder, output: PrefixedOutput, *, has_model: bool
) -> Iterator[str]:
    """Yield them; the key itself is only for the terminal of a person, and for no log."""
    key = shlex.quote(_near(folder.api_key))
    yield f"The console is at {url}/console#/sign-in?with=key"
    if output.is_terminal:
        yield f"Sign in with this API key: {folder.api_key.read_text().strip()}"
    else:
        yield f"Sign in with the API key in {_near(folder.api_key)}"
    if not any(map(os.environ.get, _VENDORS_KEYS)):
        yield f"{_LOCAL if has_model else _REPEATED} For others put {_EITHER_KEY} into .env."
    yield "Next, in another terminal, in this folder:"
    if folder.path != Path.cwd() / DEFAULT_FOLDER:
        yield f"  export ARKLOOP_DATA={shlex.quote(str(folder.path))}"
    program = _program()
    # The scripted provider repeats the message.
    message = "What is 17 times 23? Use the calculator." if has_model else "Hello"
    yield f"  {program} run {shlex.quote(message)}"
    yield f"  {program} runs list"
    yield f'  curl -H "Authorization: Bearer $(cat {key})" {url}/v1/runs'


def _near(path: Path) -> str:
    """Return the path from this folder, if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _program() -> str:
    """Return how this command was called, to be called once more."""
    name = sys.argv[0]
    return shlex.quote(name) if Path(name).name == "arkloop" else "arkloop"
