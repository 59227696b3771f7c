"""The documents name everything there is: an addition fails with the line that is missing."""

import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from flask import Flask

from arkloop.cli.main import main
from arkloop.shared import certificate_settings, errors
from arkloop.shared.catalog.model_routes import _FIELDS as ROUTE_FIELDS
from arkloop.shared.catalog.personas import RESERVED_NAMES
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.events import types
from arkloop.shared.storage import keys
from arkloop.shared.storage.tables import metadata
from arkloop.worker.providers import scripted_provider
from scripts import testing_figures

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
ROOMS = ("shared", "api", "worker", "cli", "chaos")
#: What `make test` and `make test-rest` use, too, and CI installs before them.
NEEDED_WITHOUT_A_MARK = {"CURL", "POOLERS"}
MAX_LINES = 400


def _text(name: str) -> str:
    return (ROOT / name).read_text()


def _subclasses(of: type) -> Iterator[type]:
    for found in of.__subclasses__():
        yield found
        yield from _subclasses(found)


# ---- what must be named --------------------------------------------------------------


@pytest.mark.parametrize("event", get_args(types.Event), ids=lambda event: event.type)
def test_every_event_type_has_an_example(event: Any) -> None:
    """`events.md` has a heading for the type, and below it examples that show all its fields."""
    sections = re.split(r"^### ", _text("docs/reference/events.md"), flags=re.MULTILINE)
    found = [section for section in sections if section.startswith(f"{event.type}\n")]
    assert found, f"docs/reference/events.md: there is no heading ### {event.type}"

    of_type = rf'^{{"seq":\d+,"type":"{re.escape(event.type)}","data":(.*),"created_at":'
    examples = "".join(re.findall(of_type, found[0], re.MULTILINE))

    assert examples, f"docs/reference/events.md: {event.type} has no example"
    missing = [f.name for f in fields(event) if f'"{f.name}":' not in examples]
    assert [] == missing, f"docs/reference/events.md: no example of {event.type} has {missing}"


def test_every_event_of_a_conversation_has_a_rule() -> None:
    """A front end learns what each event with a part of a message or turn, or an end, changes."""
    parts = {"content", "message_id", "tool_call_id", "request_id", "from_seq"}
    named = {
        event.type
        for event in get_args(types.Event)
        if parts & {f.name for f in fields(event)} or event.type in types.TERMINAL_TYPES
    }
    table = re.findall(r"^\| (`.*?`) \|", _text("docs/how-to/show-a-conversation.md"), re.MULTILINE)
    rules = {type_ for row in table for type_ in re.findall(r"`(.+?)`", row)}
    assert named == rules


def test_every_error_code_is_documented() -> None:
    """`docs/reference/http-api.md` says when a caller meets it."""
    codes = {error.code for error in _subclasses(errors.ArkloopError)} | {"internal.error"}
    assert set() == _missing(codes, "docs/reference/http-api.md")


def test_every_end_of_a_failed_run_is_documented() -> None:
    """`events.md` lists the codes that the worker and the sweep can give to a failure."""
    source = "".join(p.read_text() for room in ("worker", "shared") for p in _modules(room))
    failure = r"(?:RunError|RunFailure|LimitExceeded)\(\s*"
    codes = set(re.findall(rf'{failure}"([a-z_]+\.[a-z_]+)"', source))
    # An error that becomes a failure keeps its code.
    kept = re.findall(rf"except (\w+) as (\w+):\s+raise {failure}\2\.code", source)
    assert kept
    codes |= {getattr(errors, name).code for name, _ in kept}
    kinds = set(re.findall(r'ProviderError\(\s*"([a-z_]+)"', source))
    kinds |= set(scripted_provider._ERRORS.values())
    assert codes and kinds

    assert set() == _missing(
        codes | {f"provider.{kind}" for kind in kinds}, "docs/reference/events.md"
    )


def test_every_reserved_name_of_a_tool_is_documented() -> None:
    """`tools.md` says which names an org's tools cannot have."""
    assert set() == _missing(set(RESERVED_NAMES), "docs/reference/tools.md")


def test_the_panels_of_the_console_are_called_what_its_page_says() -> None:
    """`console.md` describes no panel of a run's page that the console has not."""
    named = re.findall(r"^- \*\*([^*]+)\*\* on a run's page", _text("docs/how-to/console.md"), re.M)
    source = "".join(path.read_text() for path in (ROOT / "api/console/static").rglob("*.js"))
    assert "Replay" in named

    assert [] == [name for name in named if not re.search(rf">{name}\s*<", source)]


class _Recorder(dict[str, str]):
    """An environment that is empty and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return default


def _variables() -> set[str]:
    environ = _Recorder()
    with pytest.raises(InvalidSettings):
        Settings.from_env(environ)
    # OpenSSL's own have a section instead: they must not be empty, as settings may be. The system's
    # folder for temporary files is not this service's to name.
    return environ.asked - {certificate_settings.FILE, certificate_settings.DIRECTORY, "TMPDIR"}


def test_every_setting_is_in_the_table() -> None:
    """`configuration.md` has a row for each variable that is read, and for no other."""
    rows = {variable for variable, _ in _settings_table()}

    assert set() == _variables() - rows, "docs/reference/configuration.md: rows are missing"
    assert set() == rows - _variables(), "docs/reference/configuration.md: nothing reads these"


def test_every_default_is_the_one_of_the_code() -> None:
    """The table's default column says what `Settings` says, where that is a plain value."""
    defaults = {f.name: f.default for f in fields(Settings)}
    defaults["registration"] = "closed"
    wrong = {}
    for variable, default in _settings_table():
        value = defaults.get(variable.removeprefix("ARKLOOP_").lower())
        if isinstance(value, bool | int | float | str):
            shown = f"{value:g}" if isinstance(value, int | float) else value
            if default != f"`{shown}`":
                wrong[variable] = f"is `{shown}`, the table says {default}"

    assert {} == wrong


def _settings_table() -> list[tuple[str, str]]:
    """Return (variable, default) of the first table of the page."""
    section = _text("docs/reference/configuration.md").split("## Settings")[1].split("\n## ")[0]
    return re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \|", section, re.MULTILINE)


def test_every_field_of_a_routes_file_is_documented() -> None:
    """The examples in `docs/reference/configuration.md` have each of them."""
    blocks = _text("docs/reference/configuration.md").split("```yaml")[1:]
    examples = "".join(block.split("```")[0] for block in blocks)
    assert set() == {name for name in ROUTE_FIELDS if f"{name}:" not in examples}


def test_every_redis_key_is_documented() -> None:
    """`docs/architecture.md` has each name of the table in `shared/storage/keys.py`."""
    names = set(re.findall(r"^\| `(\S+)`", keys.__doc__ or "", re.MULTILINE))
    assert names
    assert set() == _missing(names, "docs/architecture.md")


def test_every_table_is_documented() -> None:
    """`docs/architecture.md` says what a row of each table is."""
    assert set() == _missing(set(metadata.tables), "docs/architecture.md")


def test_every_endpoint_has_a_heading(app: Flask) -> None:
    """`docs/reference/http-api.md` has a heading for each method and address, and for no other."""
    expected = {
        f"{method} {_address(rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    headings = set(
        re.findall(r"^### ([A-Z]+ /.*)$", _text("docs/reference/http-api.md"), re.MULTILINE)
    )

    assert set() == expected - headings, "docs/reference/http-api.md: headings are missing"
    assert set() == headings - expected, "docs/reference/http-api.md: there are no such endpoints"


def _address(rule: str) -> str:
    """Convert `/v1/runs/<id:run_id>` to what documents write: `/v1/runs/{run_id}`."""
    return re.sub(r"<(?:\w+:)?(.*?)>", r"{\1}", rule)


def test_every_sub_command_and_option_is_documented() -> None:
    """`docs/reference/command-line.md` names each of them."""
    names = set(_commands(main, "arkloop", click.Context(main)))
    assert {"arkloop dev", "arkloop runs list"} <= names
    text = _text("docs/reference/command-line.md")

    assert set() == {name for name in names if not re.search(rf"{re.escape(name)}\b", text)}


def _commands(command: click.Command, path: str, context: click.Context) -> Iterator[str]:
    """Yield the full names of all commands below this one, and the options of each."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield f"{path} {name}"
            yield from _commands(found, f"{path} {name}", context)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            options = [*parameter.opts, *parameter.secondary_opts]
            yield from (option for option in options if option.startswith("--"))


def test_every_step_of_a_script_is_documented() -> None:
    """`docs/reference/scripted-provider.md` shows each kind of step and each error."""
    steps = {f'"{kind}":' for kind in scripted_provider._STEPS}
    kinds = {f"`{name}`" for name in scripted_provider._ERRORS}
    assert set() == _missing(steps | kinds, "docs/reference/scripted-provider.md", whole=True)


def _missing(names: set[str], document: str, *, whole: bool = False) -> set[str]:
    """Return the names that the document does not show as code."""
    text = _text(document)
    return {name for name in names if (name if whole else f"`{name}`") not in text}


# ---- the map -------------------------------------------------------------------------


def _map_entries() -> list[str]:
    """Return the folders in the tree of `docs/architecture.md`, with their slash."""
    tree = (
        _text("docs/architecture.md").split("## The rooms")[1].split("```text")[1].split("```")[0]
    )
    folders: list[str] = []
    entries = []
    for line in filter(str.strip, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        entries.append("".join(folders))
    return entries


def test_what_the_map_shows_is_there() -> None:
    """Each entry of the tree in `docs/architecture.md` is a folder."""
    entries = _map_entries()
    assert len(entries) > 20
    assert [] == [entry for entry in entries if not (ROOT / entry).is_dir()]


def test_every_room_is_on_the_map() -> None:
    """The tree in `docs/architecture.md` has a line for each folder that has modules."""
    rooms = {f"{path.parent.relative_to(ROOT)}/" for room in ROOMS for path in _modules(room)}
    assert set() == rooms - {*_map_entries()}, "docs/architecture.md: the map lacks rooms"


def test_no_module_is_too_long() -> None:
    """A module has at most 400 lines, also one of tests or of the console: a longer one holds two
    ideas.
    """
    modules = [path for room in (*ROOMS, "tests", "bench", "scripts") for path in _modules(room)]
    console = [
        path for path in (ROOT / "api/console/static").rglob("*.js") if "vendor" not in path.parts
    ]
    assert len(console) > 10
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (*modules, *console)
    }
    assert {} == {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def _modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_the_readme_says_how_to_test() -> None:
    """The two commands stand in it, and the Makefile has them."""
    for command in ("make demo", "make test"):
        assert command in _text("README.md")
        assert f"\n{command.removeprefix('make ')}:" in _text("Makefile")


def test_what_needs_other_programs_is_tested_by_a_command_of_its_own() -> None:
    """`make test` leaves all marks out that `make test-conformance` takes, and CI runs both, and
    what else `make test` leaves out.
    """
    marks = set(re.findall(r'^    "(\w+): needs ', _text("pyproject.toml"), re.MULTILINE))
    [named] = re.findall(r"^CONFORMANCE := (.*)$", _text("Makefile"), re.MULTILINE)
    needs = {
        command: set(re.findall(r"NEED_(\w+)=1 ", given))
        for given, command in re.findall(r"^(.*)make (\S+)$", _text(".ci/run"), re.MULTILINE)
    }

    assert marks == set(named.split(" or "))
    # A program that is missing then fails the tests, which without this would be skipped.
    assert {mark.upper() for mark in marks} == needs["test-conformance"]
    assert NEEDED_WITHOUT_A_MARK == needs["test"] == needs["test-rest"]
    of_first_chat = r"^test-first-chat-short:.*\n\t@.*NEED_BROWSER=1 "
    assert re.search(of_first_chat, _text("Makefile"), re.MULTILINE)


def test_the_readme_is_short() -> None:
    """It has at most 120 lines: a front page is read in half a minute."""
    assert len(_text("README.md").splitlines()) <= 120


def test_every_page_is_in_the_index() -> None:
    """`docs/README.md` links each page of `docs/` except the decisions."""
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"README.md"}
    pages = {page for page in pages if not page.startswith("decisions/")}
    linked = set(re.findall(r"\]\(([^)#\s]+)\)", _text("docs/README.md")))
    assert set() == pages - linked


# ---- links ---------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    """A relative link names a file that is there, and a heading that this file has."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert [] == broken


@cache
def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_is_named_exists(document: Path) -> None:
    """A document that says which test keeps a promise names one that is there."""
    named = set(re.findall(r"`(test_\w+)`", document.read_text()))

    assert set() == named - _names_of_tests()


@cache
def _names_of_tests() -> set[str]:
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    return set(re.findall(r"^\s*(?:async )?def (test_\w+)", source, re.MULTILINE))


def test_the_page_of_tests_lists_the_variants_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its tables of places, scenarios, broken variants and bugs are those of the code."""
    assert 0 == testing_figures.main(["--check"]), capsys.readouterr().out


def test_decisions_are_numbered_and_complete() -> None:
    """Numbers have no hole, and each page has its four parts."""
    pages = sorted((DOCS / "decisions").glob("*.md"))

    assert [f"{number:04d}" for number in range(1, len(pages) + 1)] == [p.name[:4] for p in pages]
    for page in pages:
        parts = re.findall(r"^## (\w+)$", page.read_text(), re.MULTILINE)
        assert ["Context", "Decision", "Evidence", "Consequences"] == parts, page.name


def test_the_changelog_has_each_entry_once() -> None:
    """Neither a section nor an entry is there twice, or is cut off, as merges leave them."""
    releases = re.split(r"^## .*\n", _text("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    for release in releases:
        sections = re.findall(r"^### .*$", release, re.MULTILINE)
        assert sorted(set(sections)) == sorted(sections)
        entries = [
            entry.replace("\n  ", " ").strip()
            for part in re.split(r"^### .*\n", release, flags=re.MULTILINE)[1:]
            for entry in re.split(r"^- ", part, flags=re.MULTILINE)[1:]
        ]
        beginnings = [entry[:80] for entry in entries]
        assert [] == [one for one in beginnings if beginnings.count(one) > 1]
        assert [] == [entry for entry in entries if "\n" in entry or not entry.endswith((".", ")"))]
