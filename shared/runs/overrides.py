"""Overrides: what a run changes of its persona, as far as the persona allows it.

A run keeps them in `runs.options`, by name; a worker applies them when it loads the persona.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from arkloop.shared.catalog import client_tools, model_settings, output_schema, personas
from arkloop.shared.catalog.field_readers import object_of
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.model_settings import InvalidModelSettings
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import InvalidRequest, PersonaNotFound

Options = Mapping[str, Any]

#: The limits that a run can lower.
LIMITS = (
    "max_steps",
    "max_equal_turns",
    "max_output_tokens",
    "max_cost_usd",
    "timeout_seconds",
    "input_expires_seconds",
)
MAX_INSTRUCTIONS_BYTES = 65_536
MAX_VARIABLES = 64
MAX_VALUE_BYTES = 32_768
#: The prompt with the values in it: one value may stand in many places.
MAX_FILLED_BYTES = 262_144

_ONLY_OF_LOOP = "only the built-in loop uses it, and the persona has an `agent`"
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}")
_PLACEHOLDER = re.compile(r"\{\{ *(" + _VARIABLE.pattern + r") *\}\}")


class Override(NamedTuple):
    """A kind of override, whose value is any JSON but null.

    `check` returns the value to be stored, or raises ValueError, or InvalidRequest with the
    problems of its fields. `apply` returns the persona with a stored value. Whatever `check`
    accepts of some persona fits `json_schema`.
    """

    check: Callable[[Persona, Any], Any]
    apply: Callable[[Persona, Any], Persona]
    json_schema: Mapping[str, Any]


def check(persona: Persona, route: Route, given: Mapping[str, Any]) -> Options | None:
    """Check the overrides of a run; returns those to store, None without any. Null is left out.

    Raises:
        InvalidRequest: what the persona does not allow, or is no value for it; all at once.
    """
    # Without a limit of the persona, the route's is the one that a run cannot raise.
    bounded = replace(
        persona, max_output_tokens=persona.max_output_tokens or route.max_output_tokens
    )
    options: dict[str, Any] = {}
    problems: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        try:
            options[name] = _checked(bounded, name, value)
        except ValueError as error:
            problems[name] = [str(error)]
        except InvalidRequest as error:
            problems |= error.details
    is_refused = given.get("variables") is not None and "variables" not in options
    if "variables" in persona.overrides and not is_refused:
        named = set(_PLACEHOLDER.findall(persona.system_prompt))
        missing = named - options.get("variables", {}).keys()
        problems |= {
            f"variables.{name}": ["is required by the persona's prompt"] for name in missing
        }
    if problems:
        raise InvalidRequest(**problems)
    return options or None


def apply(persona: Persona, options: Options | None) -> Persona:
    """Return the persona as a run with these options has it.

    Raises:
        PersonaNotFound: a later release has stored an override that this one does not know.
    """
    if not options:
        return persona
    if unknown := sorted(options.keys() - OVERRIDES.keys()):
        why = f"This release of the server does not support the override {unknown[0]!r}."
        raise PersonaNotFound(persona_id=[why])
    for name in OVERRIDES:
        if name in options:
            persona = OVERRIDES[name].apply(persona, options[name])
    return persona


def given(options: Options | None) -> Options | None:
    """Return the overrides as they were given."""
    if options is None:
        return None
    return {
        name: _FROM_TEXT[name](value) if name in _FROM_TEXT else value
        for name, value in options.items()
    }


def _checked(persona: Persona, name: str, value: Any) -> Any:
    if name not in persona.overrides:
        raise ValueError(f"the persona {persona.id!r} does not allow this override")
    return OVERRIDES[name].check(persona, value)


# ---- the kinds -----------------------------------------------------------------------


def _check_instructions(_persona: Persona, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a string that is not blank")
    if len(value.encode()) > MAX_INSTRUCTIONS_BYTES:
        raise ValueError(f"must have at most {MAX_INSTRUCTIONS_BYTES:,} bytes of UTF-8")
    return value


def _add_instructions(persona: Persona, value: str) -> Persona:
    prompt = f"{persona.system_prompt}\n\n{value}" if persona.system_prompt else value
    return replace(persona, system_prompt=prompt)


def _check_variables(persona: Persona, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MAX_VARIABLES:
        raise ValueError(f"must be an object with at most {MAX_VARIABLES} fields")
    problems: dict[str, Any] = {}
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name):
            problems[f"variables.{name}"] = [f"the name must match {_VARIABLE.pattern}"]
        elif not isinstance(text, str) or len(text.encode()) > MAX_VALUE_BYTES:
            why = f"must be a string of at most {MAX_VALUE_BYTES:,} bytes of UTF-8"
            problems[f"variables.{name}"] = [why]
    if problems:
        raise InvalidRequest(**problems)
    added = sum(len(value.get(n, "").encode()) for n in _PLACEHOLDER.findall(persona.system_prompt))
    if len(persona.system_prompt.encode()) + added > MAX_FILLED_BYTES:
        raise ValueError(f"the prompt with them would exceed {MAX_FILLED_BYTES:,} bytes of UTF-8")
    return value


def _fill_in(persona: Persona, value: Mapping[str, str]) -> Persona:
    # In one pass: a value that looks like a placeholder stays as it is.
    prompt = _PLACEHOLDER.sub(lambda found: value.get(found[1], found[0]), persona.system_prompt)
    return replace(persona, system_prompt=prompt)


def _check_limits(persona: Persona, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    problems: dict[str, Any] = {}
    for name, limit in value.items():
        if name not in LIMITS:
            problems[f"limits.{name}"] = [f"must be one of {', '.join(LIMITS)}"]
        elif limit is not None and persona.agent is not None and name in personas.LOOP_FIELDS:
            problems[f"limits.{name}"] = [_ONLY_OF_LOOP]
        elif limit is not None:
            try:
                most = getattr(persona, name)
                wanted = personas.read_field(name, limit)
                if most is not None and wanted > most:
                    problems[f"limits.{name}"] = [f"must be at most {most}: a run cannot raise it"]
            except ValueError as error:
                problems[f"limits.{name}"] = [str(error)]
    if problems:
        raise InvalidRequest(**problems)
    return {name: limit for name, limit in value.items() if limit is not None}


def _lower(persona: Persona, value: Mapping[str, Any]) -> Persona:
    limits = {name: personas.read_field(name, limit) for name, limit in value.items()}
    return replace(persona, **limits)


def _check_model_settings(_persona: Persona, value: Any) -> dict[str, Any]:
    try:
        return model_settings.read(value)
    except InvalidModelSettings as error:
        problems = {f"model_settings.{name}": why for name, why in error.problems.items()}
        raise InvalidRequest(**problems) from None


def _set_model(persona: Persona, value: Mapping[str, Any]) -> Persona:
    return replace(persona, model_settings={**persona.model_settings, **value})


def _check_output_schema(_persona: Persona, value: Any) -> str:
    schema = output_schema.read(value)
    output_schema.check_new(schema)
    return output_schema.to_text(schema)


def _set_output_schema(persona: Persona, value: str) -> Persona:
    return replace(persona, output_schema=output_schema.from_text(value))


def _check_tools(persona: Persona, value: Any) -> str:
    if persona.agent is not None:
        raise ValueError(_ONLY_OF_LOOP)
    tools = client_tools.read(value)
    taken = personas.reserved_for((*persona.tools, *(tool.name for tool in persona.client_tools)))
    if names := client_tools.collisions(tools, taken):
        raise ValueError(f"the name {names[0]!r} is in use")
    client_tools.check_new(tools)
    return client_tools.to_text(value)


def _add_tools(persona: Persona, value: str) -> Persona:
    tools = client_tools.read(client_tools.from_text(value))
    return replace(persona, client_tools=(*persona.client_tools, *tools))


#: Those that are stored as text.
_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {
    "output_schema": output_schema.from_text,
    "tools": client_tools.from_text,
}
_INSTRUCTIONS = {"type": "string", "minLength": 1, "maxLength": MAX_INSTRUCTIONS_BYTES}
_VARIABLES = {
    "type": "object",
    "maxProperties": MAX_VARIABLES,
    "propertyNames": {"pattern": f"^{_VARIABLE.pattern}$"},
    "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_BYTES},
}
_LIMITS = object_of({name: personas.FIELDS[name].json_schema for name in LIMITS})
_SETTINGS = model_settings.FIELD.json_schema
#: By name, in the order in which they are applied: nothing is filled into instructions.
OVERRIDES: Mapping[str, Override] = {
    "variables": Override(_check_variables, _fill_in, _VARIABLES),
    "instructions": Override(_check_instructions, _add_instructions, _INSTRUCTIONS),
    "limits": Override(_check_limits, _lower, _LIMITS),
    "model_settings": Override(_check_model_settings, _set_model, _SETTINGS),
    "output_schema": Override(
        _check_output_schema, _set_output_schema, output_schema.FIELD.json_schema
    ),
    "tools": Override(_check_tools, _add_tools, client_tools.FIELD.json_schema),
}
