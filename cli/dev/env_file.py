"""The file `.env` of the folder in which `arkloop dev` is started: settings, one on each line.

Such a file is often that of another program, too, in whose folder this one is tried: what is no
setting here, such as `PATH` or `PYTHONPATH`, must not reach the processes.
"""

import re
from collections.abc import Mapping
from pathlib import Path

#: Settings, and variables that libraries of the service read: for traces, models, S3 and TLS.
_SETTING = re.compile(r"(ARKLOOP|OTEL|OPENAI|ANTHROPIC|AWS|GOOGLE)_[A-Z0-9_]+|SSL_CERT_(FILE|DIR)")
_IN_ROUTES = re.compile(r"api_key_variable[\"']?\s*:\s*[\"']?(?P<name>\w+)")
_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)")
_QUOTED = re.compile(r"""(?P<quote>['"])(?P<text>.*)(?P=quote)(?:\s+#.*)?""")


class InvalidEnvFile(Exception):
    """A line that cannot be read; the message has its number, and not its value."""


def read(path: Path) -> dict[str, str]:
    """Return the variables of the file, none if there is no such file.

    The form is that of Docker Compose, without interpolation: `NAME=value`, perhaps after `export`,
    perhaps in quotes; ` #` begins a comment.

    Raises:
        InvalidEnvFile
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise InvalidEnvFile(f"{path} is not UTF-8") from None
    variables = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise InvalidEnvFile(f"{path}, line {number}: is not of the form NAME=value")
        try:
            variables[found["name"]] = _value(found["value"])
        except ValueError as error:
            raise InvalidEnvFile(f"{path}, line {number}: {found['name']} {error}") from None
    return variables


def _value(text: str) -> str:
    """Return a value without quotes and comment. Raises: ValueError, with what is wrong."""
    quoted = _QUOTED.fullmatch(text)
    if quoted is None and text[:1] in ("'", '"'):
        raise ValueError("has a quote that does not end on its line")
    value = quoted["text"] if quoted else re.sub(r"(^|\s+)#.*", "", text)
    if "${" in value and not (quoted and quoted["quote"] == "'"):
        raise ValueError("refers to another variable, which is not supported here")
    return value


def missing_in(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the environment lacks: what is set there always takes precedence.

    An empty variable counts as one that is not set, as everywhere.
    """
    return {name: value for name, value in variables.items() if not environ.get(name)}


def settings_in(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return the settings among the variables, with those that the routes file names."""
    routes = environ.get("ARKLOOP_ROUTES") or variables.get("ARKLOOP_ROUTES")
    named = set()
    if routes:
        try:
            text = Path(routes).read_text()
        except (OSError, UnicodeDecodeError):
            text = ""  # the processes say what is wrong with it
        named = {found["name"] for found in _IN_ROUTES.finditer(text)}
    return {n: value for n, value in variables.items() if n in named or _SETTING.fullmatch(n)}
