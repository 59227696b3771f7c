"""Personas: those that come with the code, and how one is found."""

import pytest

from shared import personas
from shared.errors import PersonaNotFound
from shared.personas import PERSONA_ID, Persona, find


def test_the_builtin_personas_are_those_of_the_contract() -> None:
    """Their tools, and which of them a person confirms."""
    tools = ("ask_user", "current_time", "calculator")
    assert {
        "assistant@1": (tools, frozenset()),
        "careful@1": (tools, frozenset({"current_time", "calculator"})),
        "plain@1": ((), frozenset()),
    } == {id_: (p.tools, p.confirm) for id_, p in personas.builtin().items()}
    assert all(persona.system_prompt for persona in personas.builtin().values())


def test_the_limits_are_those_of_the_contract() -> None:
    """32 steps, 15 minutes, a day for an answer."""
    persona = find(None)

    assert (32, 900, 86_400) == (
        persona.max_steps,
        persona.timeout_seconds,
        persona.input_expires_seconds,
    )


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, "assistant@1"),
        ("assistant", "assistant@1"),
        ("careful", "careful@1"),
        ("careful@1", "careful@1"),
    ],
)
def test_without_a_version_the_newest_is_found(wanted: str | None, found: str) -> None:
    """And nothing at all means the default."""
    assert found == find(wanted).id


def test_versions_are_ordered_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten is newer than nine."""
    versions = {f"p@{version}": Persona(key="p", version=version) for version in ("9", "10", "rc")}
    monkeypatch.setattr(personas, "builtin", lambda: versions)

    assert "p@10" == find("p").id
    assert "p@rc" == find("p@rc").id


@pytest.mark.parametrize("wanted", ["nobody", "assistant@2", "assistant@01", "@1", "Assistant"])
def test_one_that_does_not_exist_is_named(wanted: str) -> None:
    """As the field that has it."""
    with pytest.raises(PersonaNotFound) as raised:
        find(wanted)

    assert [f"There is no persona {wanted!r}."] == raised.value.details["persona_id"]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("a", True),
        ("a@1", True),
        ("A9._:-@1.0", True),
        ("x" * 64 + "@" + "y" * 64, True),
        ("x" * 65, False),
        ("a@", False),
        ("@1", False),
        ("-a", False),
        ("a@1@2", False),
        ("a b", False),
        ("é", False),
        ("a\n", False),
    ],
)
def test_ids_have_one_form(text: str, fits: bool) -> None:
    """A key, and perhaps a version of the same form."""
    assert fits == (PERSONA_ID.fullmatch(text) is not None)
