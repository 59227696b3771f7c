"""The commands in the documents work: they are executed, page by page, against a real service."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.closed_port import closed_port
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import delta, openai_stream, raw, vendor

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "bench" / "README.md"])
#: Also those of clients and examples, whose commands are not executed here.
LISTED = subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True)
ALL_PAGES = [ROOT / name for name in LISTED.splitlines()]
SHELLS = {"sh", "bash", "console"}
#: What a fence may say: a block of commands must not hide in one without a language.
LANGUAGES = SHELLS | {"json", "js", "python", "sql", "text", "toml", "ts", "tsx", "yaml"}
#: In a here-document and in single quotes a shell finds no history and no comments.
HERE_DOCUMENT = re.compile(r"<<-?'?(\w+)'?.*?^\s*\1$", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"""(?P<double>"(?:\\.|[^"\\])*")|'[^']*'|\\.""", re.DOTALL)
#: curl of the pages prints no progress, fails with an error response, and uses no proxy.
CURLRC = 'silent\nshow-error\nfail-with-body\nmax-time = 60\nnoproxy = "*"\n'


@dataclass(frozen=True)
class Block:
    """A fenced block; `not_run` is the reason in the comment before it, if it has one."""

    line: int
    language: str
    text: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = re.finditer(
        r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
        page.read_text(),
        re.DOTALL | re.MULTILINE,
    )
    return [
        Block(
            page.read_text()[: match.start("text")].count("\n") + 1,
            match["language"],
            match["text"],
            match["reason"],
        )
        for match in found
    ]


def commands(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in SHELLS]


def shell_texts(page: Path) -> list[str]:
    """Return the commands of a page, also those of lists, which are indented."""
    shells = "|".join(sorted(SHELLS))
    return re.findall(rf"^ *```(?:{shells})\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.M)


def script_of(page: Path) -> str:
    """Return the blocks of a page that are run, each behind a line for stderr that names it."""
    return "".join(
        f"echo '{name_of(page)}:{block.line}' >&2\n{block.text}\n"
        for block in commands(page)
        if not block.not_run
    )


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Service:
    """A running `arkloop dev` in `folder`, and the other servers that the pages speak of."""

    folder: Path
    addresses: dict[str, str]

    def execute(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script as a reader would, in a folder with `.venv` and `.arkloop`.

        `.venv/bin` is not searched for programs: the pages activate no environment.
        """
        for documented, address in self.addresses.items():
            script = script.replace(documented, address)
        path = [each for each in os.environ["PATH"].split(os.pathsep) if Path(each) != BIN]
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={"PATH": os.pathsep.join(path), "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=250,
        )

    def failed_runs(self) -> set[tuple[str, str]]:
        """Return the ids and the codes of all runs that have failed."""
        query = "SELECT id::text, error_code FROM runs WHERE state = 'failed'"
        with self.connect() as connection:
            return {*connection.execute(query)}

    def connect(self) -> psycopg.Connection[tuple[str, str]]:
        """Open a connection to the database, as a superuser."""
        sockets = (self.folder / ".arkloop/postgres.sockets").read_text().strip()
        return psycopg.connect(f"postgresql://postgres@/postgres?host={sockets}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start the service in a folder of its own; skips without curl, or fails in CI."""
    if shutil.which("curl") is None:
        stop = pytest.fail if os.environ.get("NEED_CURL") == "1" else pytest.skip
        stop("curl is not installed: run scripts/install-curl as root")
    folder = tmp_path_factory.mktemp("reader")
    folder.chmod(0o711)
    (folder / ".venv").symlink_to(BIN.parent)
    (folder / ".curlrc").write_text(CURLRC)
    mcp_port = free_port()
    mcp = subprocess.Popen([sys.executable, ROOT / "tests/files_mcp_server.py", str(mcp_port)])
    reply = raw(openai_stream(delta(content="Hello."), delta(finish="stop")))
    log = folder / "dev.log"
    with vendor(*[reply] * 500) as model, log.open("wb") as output:
        # As with the small local model, the scripted one plays only where a page names it.
        dev = subprocess.Popen(
            [BIN / "arkloop", "dev", "--port", "0", "--no-local-model", "--api-workers", "1"],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "ARKLOOP_LOCAL_BASE_URL": model.url,
            },
            stdout=output,
            stderr=output,
        )
        try:
            eventually(
                lambda: "Ready on " in log.read_text() or dev.poll() is not None, seconds=200
            )
            eventually(lambda: _listens(mcp_port))
            ready = re.search(r"Ready on (\S+)", log.read_text())
            assert ready, log.read_text()
            addresses = {
                "http://127.0.0.1:8080": ready[1],
                "http://127.0.0.1:8000/v1": model.url,
                "https://mcp.example.com/mcp": f"http://127.0.0.1:{mcp_port}/mcp",
            }
            yield Service(folder, addresses)
        finally:
            mcp.kill()
            mcp.wait()
            dev.send_signal(signal.SIGTERM)
            dev.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not b.not_run for b in commands(page))], ids=name_of
)
def test_the_commands_of_a_page_work(service: Service, page: Path) -> None:
    """Every unmarked block succeeds, in order, with the variables that the page itself sets, and
    so do the runs that it creates: curl takes a failed one for a success.
    """
    before = service.failed_runs()

    done = service.execute(script_of(page))

    assert 0 == done.returncode, f"{done.stderr}\n{done.stdout[-2000:]}"
    assert set() == service.failed_runs() - before


@pytest.mark.parametrize(
    ("name", "created", "secret"),
    [
        ("webhooks.md", "webhook.json", "webhook-secret"),
        ("http-tools.md", "tool.json", "signing-secret"),
        ("mcp.md", None, None),
        ("connect-a-model.md", None, None),
    ],
)
def test_a_page_works_again(
    service: Service, name: str, created: str | None, secret: str | None
) -> None:
    """A reader may begin it anew, where its files and what it has created are there already; each
    time its last step leaves another secret than the first one, if it has any.
    """
    for _ in range(2):
        done = service.execute(script_of(ROOT / "docs" / "how-to" / name))

        assert 0 == done.returncode, f"{done.stderr}\n{done.stdout[-2000:]}"
        if created and secret:
            first = json.loads((service.folder / created).read_text())["signing_secret"]
            assert first != (service.folder / secret).read_text().strip()


def test_the_page_of_http_tools_uses_the_service_that_it_names(service: Service) -> None:
    """Its commands reach the address that it names, also where ARKLOOP_URL leads elsewhere."""
    elsewhere = f"export ARKLOOP_URL=http://127.0.0.1:{closed_port()}\n"

    done = service.execute(elsewhere + script_of(ROOT / "docs" / "how-to" / "http-tools.md"))

    assert 0 == done.returncode, f"{done.stderr}\n{done.stdout[-2000:]}"


@pytest.mark.parametrize(
    ("name", "secret"), [("webhooks.md", "webhook-secret"), ("http-tools.md", "signing-secret")]
)
def test_a_secret_outlives_a_rotation_that_fails(tmp_path: Path, name: str, secret: str) -> None:
    """The file has the working secret until a response has brought the next one."""
    (tmp_path / ".arkloop").mkdir()
    for file, content in ((secret, "whsec_old"), (".arkloop/api-key", "key"), ("tool.json", "{}")):
        (tmp_path / file).write_text(content)
    texts = shell_texts(ROOT / "docs" / "how-to" / name)
    [rotation] = [text for text in texts if ":rotate-secret" in text]
    script = f"{texts[1].partition('curl')[0]}WEBHOOK=1\n{rotation}".replace(
        "http://127.0.0.1:8080", f"http://127.0.0.1:{closed_port()}"
    )

    # Without `-e`, as in the shell of a reader.
    subprocess.run(["bash", "-c", script], cwd=tmp_path, timeout=60)

    assert "whsec_old" == (tmp_path / secret).read_text()


@pytest.mark.parametrize(
    ("name", "server"), [("reference/http-api.md", "archive"), ("how-to/mcp.md", "files")]
)
def test_the_examples_of_mcp_servers_end_where_there_is_none(
    service: Service, name: str, server: str
) -> None:
    """A reader who keeps the address of the page sees the error of the discovery."""
    texts = [block.text for block in commands(ROOT / "docs" / name)]
    script = "".join([texts[0], *(text for text in texts[1:] if "$V1/mcp-configs" in text)])
    script = script.replace("https://mcp.example.com/mcp", f"http://127.0.0.1:{closed_port()}/mcp")

    done = service.execute(script.replace(f'"{server}"', f'"no-{server}"'))

    assert '"discovery_error":"' in done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_that_are_not_run_are_valid_shell(page: Path) -> None:
    """A marked block is at least free of syntax errors, and its marker says why it is not run."""
    for block in commands(page):
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert 0 == checked.returncode, f"{name_of(page)}:{block.line}: {checked.stderr}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_an_exclamation_mark_recalls_no_command(page: Path) -> None:
    """An interactive zsh replaces `!word` by an earlier command; `!"` does not end the quotes."""
    texts = [HERE_DOCUMENT.sub("", text) for text in shell_texts(page)]
    texts = [QUOTED.sub(lambda each: each["double"] or "", text) for text in texts]

    assert [] == [each for text in texts for each in re.findall(r".*!(?![\s=(;}]).*", text)]


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_a_variable_before_a_colon_has_braces(page: Path) -> None:
    """In zsh `:c`, `:r`, `:s` and `:t` after `$NAME` change its value, also within quotes."""
    found = [each for text in shell_texts(page) for each in re.findall(r"\$\w+:[a-zA-Z]", text)]

    assert [] == found


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_commands_have_no_comments(page: Path) -> None:
    """An interactive zsh takes `#` and the words after it for arguments, or for a command."""
    texts = [QUOTED.sub("", HERE_DOCUMENT.sub("", text)) for text in shell_texts(page)]

    assert [] == [each for text in texts for each in re.findall(r"(?<!\S)#.*", text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_every_block_names_its_language(page: Path) -> None:
    """Every code block names its language, so that no command escapes the tests above."""
    unknown = [(b.line, b.language) for b in blocks(page) if b.language not in LANGUAGES]
    assert [] == unknown


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "sql" for b in blocks(page))], ids=name_of
)
def test_the_sql_of_a_page_works(service: Service, page: Path) -> None:
    """Statements for operators fit the schema; an id stands in for each `…`."""
    with service.connect() as connection:
        for block in blocks(page):
            if block.language == "sql":
                connection.execute(block.text.replace("…", "01a20e81-4bd5-70da-88f9-366c61169856"))
        connection.rollback()
