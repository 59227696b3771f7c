"""The page about personas: its example, its request, and its table of fields."""

import json
import re
from pathlib import Path

from arkloop.shared import usd
from arkloop.shared.catalog import personas, published_personas
from tests.api.endpoints.published_personas import DEFAULTS, published
from tests.clients import User

PAGE = (Path(__file__).parents[3] / "docs/reference/personas.md").read_text("utf-8")


def block_of(language: str) -> str:
    """Return the page's one example in this language."""
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(block)


def test_the_file_of_the_page_is_a_persona() -> None:
    """The file that the documentation shows is a valid persona."""
    persona = personas.from_file("translator@1.yaml", block_of("yaml"))

    assert ("translator@1", ("ask_user",), 4) == (persona.id, persona.tools, persona.max_steps)


def test_the_request_of_the_page_publishes_a_persona(alice: User) -> None:
    """The request that the documentation shows publishes a persona, and once more its next
    version.
    """
    body = json.loads(block_of("sh").split("-d '")[1].rsplit("'", 1)[0])

    first, second = published(alice, **body), published(alice, **body)

    assert ["researcher@1", "researcher@2"] == [first["id"], second["id"]]
    assert body == {name: first[name] for name in body}


def test_the_page_has_every_field_and_its_limit() -> None:
    """The table's rows are the fields of a definition, in order, with the default of each."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    shown = {
        None: "null",
        "": "empty",
        "anyone": "`anyone`",
        "fail": "`fail`",
        "answer": "`answer`",
        "truncate": "`truncate`",
        False: "false",
    }

    assert list(DEFAULTS) == list(rows)
    for name, default in DEFAULTS.items():
        expected = "none" if default in ([], {}) else shown.get(default) or f"{default:,.0f}"
        assert expected == rows[name], name
    for limit in (
        personas.MAX_PROMPT_BYTES,
        personas.MAX_FALLBACKS,
        personas.MAX_MCP,
        personas.MAX_APPROVALS,
        personas.MAX_STEPS,
        personas.MAX_OUTPUT_TOKENS,
        personas.MAX_TIMEOUT_SECONDS,
        personas.MAX_INPUT_EXPIRES_SECONDS,
        usd.MAX_USD,
        published_personas.MAX_PERSONAS,
    ):
        assert f"{limit:,}" in PAGE
    assert all(f"`{tool}`" in PAGE for tool in personas.BUILTIN_TOOLS)
