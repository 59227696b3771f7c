"""Settings: whether the processes can start with them, and what an operator may have overlooked."""

import errno
import logging
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from arkloop.cli.doctor.findings import Finding, fail, ok, warn
from arkloop.shared import folders, plugins
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.files.storage import UnusableStorage
from arkloop.shared.monitoring import exposition
from arkloop.shared.plugins import InvalidPlugin
from arkloop.shared.security import program_user

CHECK = "settings"
#: More than a file system keeps beside the name of a file; a file of counts grows by as much.
_PROBE_BYTES = 64 * 1024
#: Variables that other parts than `Settings` read: the command line, compose.yaml.
_OTHERS = (
    *("ARKLOOP_URL", "ARKLOOP_API_KEY", "ARKLOOP_DATA"),
    *("ARKLOOP_OWNER_DATABASE_URL", "ARKLOOP_TARGET_DATABASE_URL", "ARKLOOP_HTTP_PORT"),
)


class _Watched(dict[str, str]):
    """An environment that keeps in mind which names were looked up."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.names: set[str] = set()

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]  # settings are asked for this way alone
        self.names.add(name)
        return super().get(name, default)


class _Warnings(logging.Handler):
    """A handler that keeps what a storage logs about a server that is down."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def of_environment(environ: Mapping[str, str]) -> tuple[Settings | None, list[Finding]]:
    """Read the settings as every process does; None if no process can start with them."""
    watched = _Watched(environ)
    settings, findings = None, []
    try:
        settings = Settings.from_env(watched)
    except InvalidSettings as error:
        findings += [
            fail(CHECK, problem, "Set it in the environment of all processes.")
            for problem in str(error).splitlines()
        ]
    findings += _misspelled(environ, watched.names)
    if settings is not None:
        findings += _overlooked(settings)
        findings = findings or [ok(CHECK, "complete")]
        findings += _programs(settings)
        findings += _catalog(settings)
        findings += _files(settings)
        findings += _metrics(settings)
    return settings, findings


def _misspelled(environ: Mapping[str, str], known: set[str]) -> Iterator[Finding]:
    """Find variables that nobody reads; a name in a routes file may be any, so it only warns."""
    known = known | set(_OTHERS)
    for name in sorted(environ):
        if name.startswith("ARKLOOP_") and name not in known:
            similar = get_close_matches(name, known, n=1, cutoff=0.85)
            meant = f"Did you mean {similar[0]}?" if similar else "Remove it."
            yield warn(CHECK, f"{name} is not a setting", meant)


def _overlooked(settings: Settings) -> Iterator[Finding]:
    if settings.encryption_key is None:
        yield warn(
            CHECK,
            "ARKLOOP_ENCRYPTION_KEY is not set: organizations cannot store keys of providers",
            "Set it in all processes; generate it with: openssl rand -hex 32",
        )
    if settings.faults:
        yield fail(
            CHECK, "ARKLOOP_FAULTS=1: any run can end its worker", "Unset it; it is for tests."
        )
    if not settings.secure_cookies and (settings.public_url or "").startswith("https:"):
        yield warn(
            CHECK,
            "ARKLOOP_SECURE_COOKIES=0, but browsers use https",
            "Unset it: cookies would also be sent without encryption.",
        )
    if settings.registration_open and settings.new_org_credits:
        yield warn(
            CHECK,
            "anyone can register and spend ARKLOOP_NEW_ORG_CREDITS on your routes",
            "Set ARKLOOP_REGISTRATION=closed unless that is intended.",
        )


def _programs(settings: Settings) -> Iterator[Finding]:
    """Look at whom programs of orgs run as; the worker is taken to run as this process does."""
    if not settings.mcp_stdio:
        return
    try:
        user = program_user.of(settings.mcp_stdio_user)
    except InvalidSettings as error:
        yield fail(CHECK, str(error), "Worker processes exit with this at their start.")
        return
    if user is None:
        yield warn(
            CHECK,
            "MCP servers that are programs run as the user of the worker, and can do what it can",
            "Run workers as root, which starts them as ARKLOOP_MCP_STDIO_USER, or unset"
            " ARKLOOP_MCP_STDIO.",
        )
    else:
        yield ok(CHECK, f"MCP servers that are programs run as {user.name}")


def _catalog(settings: Settings) -> Iterator[Finding]:
    try:
        plugins.use(settings.plugins)
        routes = model_routes.load(settings)
        personas.builtin()
    except (InvalidSettings, personas.InvalidPersona, InvalidPlugin) as error:
        yield fail("models", str(error), "Web and worker processes exit with this at their start.")
        return
    if not [route for route in routes.values() if route.provider != "scripted"]:
        yield warn(
            "models",
            "the server has no routes to real models",
            "Set OPENAI_API_KEY, ANTHROPIC_API_KEY or ARKLOOP_ROUTES, unless each organization"
            " has providers of its own.",
        )
    else:
        yield ok("models", f"routes: {', '.join(routes)}")


def _files(settings: Settings) -> Iterator[Finding]:
    said = _Warnings()
    logger = logging.getLogger("arkloop.shared.files")
    logger.addHandler(said)
    try:
        advice = storage_of(settings).check()
    except UnusableStorage as error:
        yield fail("files", str(error), "Web and worker processes exit with this at their start.")
        return
    finally:
        logger.removeHandler(said)
    if advice is not None:
        yield warn("files", said.lines[0], advice)
        return
    if settings.s3_bucket is not None:
        yield ok("files", f"bucket {settings.s3_bucket}")
    elif (found := _without_room(Path(settings.files_dir))) is not None:
        why, remedy = found
        yield fail(
            "files",
            f"folder {settings.files_dir} stores no file: {why}",
            f"{remedy}: until then uploads get 503.",
        )
    else:
        yield ok("files", f"folder {settings.files_dir}")


def _metrics(settings: Settings) -> Iterator[Finding]:
    try:
        exposition.check(settings)
    except InvalidSettings as error:
        yield fail("metrics", str(error), "Web and worker processes exit with this at their start.")
        return
    if not settings.metrics_port:
        return
    yield from _metrics_address(settings)
    folder = exposition.folder_of(settings)
    if (found := _without_room(folder)) is not None:
        why, remedy = found
        yield warn(
            "metrics",
            f"no count can be stored in {folder}: {why}",
            f"{remedy}: until then the metrics lack counts.",
        )


def _metrics_address(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.metrics_host} port {settings.metrics_port}"
    if settings.metrics_collide_with_web:
        yield fail(
            "metrics",
            f"web listens on port {settings.port}, too: it does not start with these settings",
            "Set another ARKLOOP_METRICS_PORT.",
        )
        return
    try:
        exposition.probe(settings)
    except (OSError, TypeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            yield warn(
                "metrics",
                f"another program, or another user, listens on {where}",
                "Set another ARKLOOP_METRICS_PORT, unless this service runs here as another user.",
            )
            return
        why = getattr(error, "strerror", None) or error
        yield fail(
            "metrics",
            f"no process can listen on {where}: {why}",
            "Correct ARKLOOP_METRICS_HOST or ARKLOOP_METRICS_PORT: until then nothing shows the"
            " metrics.",
        )


def _without_room(folder: Path) -> tuple[str, str] | None:
    """Return why no file can be stored in the folder, and the remedy; None if one can."""
    try:
        why = folders.without_room(folder, _PROBE_BYTES)
    except TimeoutError as error:
        return str(error), "Check its file system, and the file server if it is a network mount"
    return None if why is None else (why, "Free space on its disk, and inodes (df -i)")
