"""The defaults of settings in OpenAI's Responses API, which SDKs send by themselves."""

from collections.abc import Mapping
from typing import Any

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.runs.overrides import Options

_DEFAULTS = {"tool_choice": "auto", "parallel_tool_calls": True}


def without_defaults(given: Options, persona: Persona, route: Route) -> dict[str, Any]:
    """Return the overrides without settings that have such a default where it applies anyway."""
    of_org = model_settings.effective(route.model_settings, persona.model_settings)
    settings = dict(given.get("model_settings") or {})
    for name, default in _DEFAULTS.items():
        if _is_default(name, settings.get(name)) and of_org.get(name, default) == default:
            del settings[name]
    if settings:
        return {**given, "model_settings": settings}
    return {name: value for name, value in given.items() if name != "model_settings"}


def with_defaults(given: Options, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides with such defaults as the request has sent."""
    sent = {name: body[name] for name in _DEFAULTS if _is_default(name, body.get(name))}
    settings = {**sent, **given.get("model_settings", {})}
    return {**given, "model_settings": settings} if settings else dict(given)


def _is_default(name: str, value: Any) -> bool:
    default = _DEFAULTS[name]
    return type(value) is type(default) and value == default  # 1 is no flag
