"""Plugins: found by their names, imported on demand, and reported with file and reason."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from arkloop.shared import plugins
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.catalog.personas import InvalidPersona
from arkloop.shared.config import InvalidSettings
from arkloop.shared.plugins import InvalidPlugin
from arkloop.worker import tools
from tests.blank_settings import BLANK

PRICE = """
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool
from ._list import PRICES

@tool(idempotent=True)
def price(context: ToolContext, sku: str) -> str:
    "Look up a price."
    return PRICES[sku]
"""
CALLABLE = "class Agent:\n    def __call__(self, run): yield ''\n\nbad = Agent()"
GENERATOR = """
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool

@tool(idempotent=True)
def bad(context: ToolContext):
    "Yield a text."
    yield ""
"""
DECORATED = """
import functools

def with_shop(function):
    return functools.wraps(function)(lambda run: function(run, "shop"))

@with_shop
async def clerk(run, shop): ...
"""
SHOP = "system_prompt: You sell things.\ntools: [price]\n"


@pytest.fixture(autouse=True)
def _none_afterwards() -> Iterator[None]:
    """The other tests of this process have no plugins."""
    yield
    plugins.use(())


def written(folder: Path, **files: str) -> str:
    """Write files, with `__` for the slash and `_dot_` for dots; return the folder as text."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".").replace("_at_", "@")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


@pytest.fixture
def shop(tmp_path: Path) -> str:
    return written(
        tmp_path / "shop",
        tools__price_dot_py=PRICE,
        tools___list_dot_py="PRICES = {'tea': '3 EUR'}",
        providers__parrot_dot_py="def build(route, *, faults, egress): ...",
        personas__shop_at_1_dot_yaml=SHOP,
        agents__clerk_dot_py="def clerk(run): ...",
    )


def test_a_folder_has_four_kinds_of_plugins(shop: str) -> None:
    """Each module is named for what it holds; modules import each other by `from . import`."""
    plugins.use([shop])

    assert {
        "tools": ("price",),
        "providers": ("parrot",),
        "personas": (),
        "agents": ("clerk",),
    } == {group: plugins.names(group) for group in plugins.GROUPS}
    assert ("price",) == personas.builtin()["shop@1"].tools
    assert "Look up a price." == tools.load(["price"])["price"].spec.description
    assert "clerk" == plugins.load("agents")["clerk"].__name__
    assert "build" == plugins.load("providers")["parrot"].__name__


def test_finding_a_plugin_does_not_import_it(shop: str) -> None:
    """A web process checks names; the code stays out of its memory."""
    before = set(sys.modules)

    plugins.use([shop])

    assert [] == [name for name in set(sys.modules) - before if name.count(".")]


def test_an_installed_package_has_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points name tools, providers and agents, and a package of persona files."""
    site = tmp_path / "site"
    written(
        site,
        acme_dot_py=PRICE.replace("from ._list import PRICES", "PRICES = {}") + "\nrun = print",
        acme_personas__files__shop_at_1_dot_yaml=SHOP,
    )
    site.joinpath("acme_personas/__init__.py").write_text("raise RuntimeError('imported')")
    info = site / "acme-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(
        "[arkloop.tools]\nprice = acme:price\n"
        "[arkloop.agents]\nthe-clerk = acme:run\n"
        "[arkloop.personas]\nours = acme_personas.files\n"
    )
    monkeypatch.syspath_prepend(site)

    plugins.use(())

    assert ("price",) == personas.builtin()["shop@1"].tools
    assert ["price"] == list(tools.load(["price"]))
    assert {"the-clerk": print} == plugins.load("agents")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("tools__bad_dot_py", "def bad(:", "tools/bad.py: SyntaxError: invalid syntax"),
        ("tools__bad_dot_py", "import nothing_here", "tools/bad.py: ModuleNotFoundError: No"),
        ("tools__bad_dot_py", "raise SystemExit(3)", "tools/bad.py: SystemExit: 3"),
        ("tools__bad_dot_py", "", "tools/bad.py: the module has no 'bad'"),
        ("tools__bad_dot_py", "bad = print", "tools/bad.py: the function 'bad' is not a tool;"),
        ("providers__bad_dot_py", "", "providers/bad.py: the module has no 'build'"),
        ("agents__bad_dot_py", "1 / 0", "agents/bad.py: ZeroDivisionError: division by zero"),
        ("agents__bad_dot_py", "bad = 3", "'bad' must be a function, and is of the type int"),
        ("agents__bad_dot_py", "def bad(): ...", "'bad' must accept the arguments (run): too many"),
        ("agents__bad_dot_py", "def bad(run, x): ...", "missing a required argument: 'x'"),
        ("agents__bad_dot_py", "def bad(run): yield ''", "must not be a generator function"),
        ("agents__bad_dot_py", "async def bad(run): yield ''", "must not be a generator function"),
        ("agents__bad_dot_py", CALLABLE, "must not be a generator function"),
        ("agents__bad_dot_py", "bad = str", "must be a function, and is a class"),
        (
            "providers__bad_dot_py",
            "def build(route): ...",
            "(route, *, faults, egress): got an unex",
        ),
        ("tools__bad_dot_py", GENERATOR, "bad.py: TypeError: The function is a generator function"),
        ("tools__delegate_dot_py", "", "'delegate' belongs to the service itself"),
        ("tools__calculator_dot_py", "", "calculator.py: the name 'calculator' belongs to the"),
        ("tools__sleep_dot_py", "", "tools/sleep.py: the name 'sleep' belongs to the service"),
        ("tools__final_answer_dot_py", "", "'final_answer' belongs to the service itself"),
        ("providers__openai_dot_py", "", "providers/openai.py: the name 'openai' belongs to"),
        ("tools__a b_dot_py", "", "tools/a b.py: the name 'a b' must match"),
        ("personas__a_at_1_dot_yml", "", "a@1.yml: the name must end with .yaml"),
        ("personas__a_dot_yaml", "", "personas/a.yaml: must be named <key>@<version>.yaml"),
        ("personas__a_at_1_dot_yaml", "tool: x", "personas/a@1.yaml: tool: unknown field"),
        ("personas__a_at_1_dot_yaml", "tools: [x]", "personas/a@1.yaml: tools: unknown tool 'x'"),
        ("personas__plain_at_1_dot_yaml", "{}", "there is another persona plain@1"),
        ("tool__x_dot_py", "", "it has none of the folders tools, providers, personas, agents"),
    ],
)
def test_a_broken_plugin_is_named_with_its_reason(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    """The error has the path of the file, and says why it cannot be used."""
    folder = written(tmp_path / "broken", **{name: text})

    with pytest.raises((InvalidPlugin, InvalidPersona, tools.InvalidTool)) as raised:
        plugins.use([folder])
        personas.builtin()
        tools.load(plugins.names("tools"))
        for group in plugins.GROUPS:
            plugins.load(group)

    assert problem in str(raised.value)
    assert folder in str(raised.value)


@pytest.mark.parametrize(
    "text", [DECORATED, "class Clerk:\n    def __call__(self, run): ...\nclerk = Clerk()"]
)
def test_an_agent_may_be_whatever_a_run_can_call(tmp_path: Path, text: str) -> None:
    """The decorator's function counts, and not the one within it."""
    plugins.use([written(tmp_path / "shop", agents__clerk_dot_py=text)])

    assert callable(plugins.load("agents")["clerk"])


def test_every_problem_is_reported_at_once(shop: str, tmp_path: Path) -> None:
    """Two folders with tools of one name, and one that does not exist, are two lines."""
    again = written(tmp_path / "again", tools__price_dot_py=PRICE)

    with pytest.raises(InvalidPlugin) as raised:
        plugins.use([shop, again, str(tmp_path / "nowhere")])

    assert [
        f"{again}/tools/price.py: {shop}/tools/price.py has the same name",
        f"ARKLOOP_PLUGINS: {tmp_path}/nowhere: there is no such folder",
    ] == str(raised.value).splitlines()


def test_a_routes_file_may_name_the_provider_of_a_plugin(shop: str, tmp_path: Path) -> None:
    """A route has the provider while the plugin is there, and is refused without it."""
    file = tmp_path / "routes.yaml"
    file.write_text("routes: [{id: parrot, provider: parrot, model: p-1}]")
    with_routes = replace(BLANK, routes_file=str(file))
    plugins.use([shop])
    assert "parrot" == model_routes.load(with_routes)["parrot"].provider

    plugins.use(())
    with pytest.raises(InvalidSettings, match="`provider` must be one of"):
        model_routes.load(with_routes)
