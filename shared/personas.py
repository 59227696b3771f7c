"""Personas: what a run's model is told, which tools it has, and its limits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources

import yaml

from shared.errors import PersonaNotFound

DEFAULT_PERSONA = "assistant"
PERSONA_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}(@[A-Za-z0-9][A-Za-z0-9._:-]{0,63})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """Immutable once published; `key@version` is its id."""

    key: str
    version: str
    system_prompt: str = ""
    route_id: str | None = None
    tools: tuple[str, ...] = ()
    confirm: frozenset[str] = frozenset()  # these tools ask a person first
    max_steps: int = 32
    max_output_tokens: int | None = None  # of one model call
    max_cost_usd: Decimal | None = None
    timeout_seconds: float = 900.0  # waiting for a person does not count
    input_expires_seconds: float = 86_400.0

    @property
    def id(self) -> str:
        return f"{self.key}@{self.version}"


@cache
def builtin() -> Mapping[str, Persona]:
    """The personas that come with the code, by id."""
    personas = {}
    for file in resources.files("shared").joinpath("persona_files").iterdir():
        name = file.name.removesuffix(".yaml")
        key, _, version = name.partition("@")
        fields = yaml.safe_load(file.read_text("utf-8"))
        fields["tools"] = tuple(fields.get("tools", ()))
        fields["confirm"] = frozenset(fields.get("confirm", ()))
        personas[name] = Persona(key=key, version=version, **fields)
    return dict(sorted(personas.items()))


def find(persona_id: str | None) -> Persona:
    """The persona of this id; without a version the newest; None is the default.

    Raises:
        PersonaNotFound
    """
    key, _, version = (persona_id or DEFAULT_PERSONA).partition("@")
    versions = {p.version: p for p in builtin().values() if p.key == key}
    if version in versions:
        return versions[version]
    if version or not versions:
        raise PersonaNotFound(persona_id=[f"There is no persona {persona_id!r}."])
    return versions[max(versions, key=_version_order)]


def _version_order(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else 0, version)
