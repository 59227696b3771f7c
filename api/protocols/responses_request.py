"""The body of `POST /v1/responses`, and the run that it asks for.

What OpenAI's API knows and this one does not is refused by its name, unless it says what happens
anyway.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from marshmallow import ValidationError, fields
from sqlalchemy import Connection, RowMapping

from arkloop.api.http.content import MAX_CONTENT_BYTES
from arkloop.api.http.current import actor, catalog, trace_id
from arkloop.api.http.end_users import refuse_fields
from arkloop.api.http.fields import ClientId, JsonSchema, Metadata, StrictBoolean
from arkloop.api.http.schema import Schema
from arkloop.api.protocols import responses_tools
from arkloop.api.protocols.responses_defaults import without_defaults
from arkloop.api.protocols.responses_input import Input
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import Forbidden, InvalidRequest, PersonaNotFound, RouteNotFound
from arkloop.shared.runs import overrides
from arkloop.shared.runs.creation import END_USER_OVERRIDES, NewMessage, NewRun, NewThread
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.threads import earlier_lines
from arkloop.shared.threads.content import Content


class Only(fields.Field[Any]):
    """A parameter that may only say what happens anyway."""

    @property
    def json_schema(self) -> JsonSchema:
        match self.allowed:  # generators have no names for objects and flags in an enum
            case (bool(),):
                return {"type": "boolean"}
            case (dict(), *_):
                return {"type": "object"}
            case (list(), *_):
                items = [*dict.fromkeys(item for one in self.allowed for item in one)]
                known = {"enum": items} if items else {}
                return {"type": "array", "items": known, "maxItems": max(map(len, self.allowed))}
        return {"enum": [*dict.fromkeys(self.allowed), None]}

    def __init__(self, *allowed: Any, **kwargs: Any) -> None:
        super().__init__(allow_none=True, **kwargs)
        self.allowed = allowed

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in self.allowed):
            raise ValidationError("is not supported with this value; leave it out")
        return value


#: Overrides that the request has as fields of its own, whose names `responses_errors` knows.
_MADE_OF_FIELDS = ("model_settings", "limits")


class CreateResponse(Schema):
    """Null is not given."""

    model = fields.String(required=True)
    input = fields.Raw(required=True)
    stream = StrictBoolean(allow_none=True)
    background = StrictBoolean(allow_none=True)
    previous_response_id = fields.String(allow_none=True)
    instructions = fields.Raw(allow_none=True)
    tools = fields.Raw(allow_none=True)
    metadata = Metadata(allow_none=True)
    safety_identifier = ClientId(allow_none=True)
    user = ClientId(allow_none=True)
    tool_choice = fields.Raw(allow_none=True)
    parallel_tool_calls = fields.Raw(allow_none=True)
    temperature = fields.Raw(allow_none=True)
    top_p = fields.Raw(allow_none=True)
    max_output_tokens = fields.Raw(allow_none=True)
    reasoning = fields.Raw(allow_none=True)
    text = fields.Raw(allow_none=True)
    store = Only(True)
    truncation = Only("auto")
    service_tier = Only("auto", "default")
    include = Only([], ["reasoning.encrypted_content"])  # reasoning is kept by the service
    stream_options = Only({}, {"include_obfuscation": False})
    prompt_cache_key = fields.String(allow_none=True)  # caching is the service's own matter
    top_logprobs = Only(0)
    presence_penalty = Only(0, 0.0)
    frequency_penalty = Only(0, 0.0)
    max_tool_calls = Only()
    conversation = Only()
    prompt = Only()


def new_run(
    body: Mapping[str, Any], given: Input, thread_id: UUID, sql: Connection | None = None
) -> NewRun:
    """Return the run that the request asks for, in this thread.

    Raises:
        InvalidRequest, PersonaNotFound, RouteNotFound
        Forbidden: an end user has given what the org decides.
    """
    refuse_fields(body, "metadata")
    persona, route = chosen(body["model"], sql)
    wanted = _overrides(body, given, persona, route)
    return NewRun(
        actor=actor(),
        thread_id=thread_id,
        message=_message(given),
        persona=persona,
        route=route,
        trace_id=trace_id(),
        options=_checked(persona, route, wanted, body, given),
        end_user_id=body.get("safety_identifier") or body.get("user"),
        metadata=body.get("metadata") or {},
        on_busy=OnBusy.ENQUEUE,
    )


def _message(given: Input) -> NewMessage | None:
    """Return the message, with the transcript of the conversation before it.

    That is no instructions: these are an override, which the persona and the token have to allow.
    """
    if given.message is None:
        return None
    content = given.message
    if given.shown:
        # Before they are split: a text of many megabytes may be nothing but line breaks.
        is_long = sum(map(len, given.shown)) > MAX_CONTENT_BYTES
        if not is_long:
            own = content.parts or content.text
            content = Content.of(earlier_lines.in_front_of(own, given.shown))
            texts = [part.get("text", "") for part in content.parts or [{"text": content.text}]]
            is_long = sum(len(text.encode()) for text in texts) > MAX_CONTENT_BYTES
        if is_long:
            why = (
                "the message, with the conversation before it, must have at most"
                f" {MAX_CONTENT_BYTES:,} bytes of UTF-8: leave out its beginning"
            )
            raise InvalidRequest(input=[why])
    metadata = earlier_lines.metadata_of(given.shown, given.earlier)
    return NewMessage(content=content, metadata=metadata)


def in_new_thread(new: NewRun) -> NewRun:
    return replace(new, thread=NewThread(end_user_id=new.end_user_id))


def chosen(model: str, sql: Connection | None = None) -> tuple[Persona, Route]:
    """Return what `model` names: a persona, else a route or its model, with the default persona.

    Raises:
        PersonaNotFound, RouteNotFound
        Forbidden: an end user names another persona than the one of their token, or a route.
    """
    org_id, of_token = actor().org_id, actor().persona_id
    if of_token is not None:
        if model not in (of_token, of_token.partition("@")[0]):
            raise Forbidden(f"This client token is for the persona {of_token}.")
        model = of_token
    if personas.PERSONA_ID.fullmatch(model):
        try:
            persona = catalog().persona(org_id, model, sql=sql)
            return persona, catalog().choose_route(
                org_id, None, persona, sql=sql, advises=actor().end_user_id is None
            )
        except PersonaNotFound:
            pass
    persona = catalog().persona(org_id, None, sql=sql)
    route = None
    if model_routes.ROUTE_ID.fullmatch(model):
        route = catalog().route(org_id, model, sql=sql)
    if route is None:
        named = [one.id for one in catalog().routes(org_id) if one.model == model]
        route = catalog().route(org_id, named[0], sql=sql) if named else None
    if route is None:
        why = "is neither a persona nor a route nor the model of a route"
        raise RouteNotFound(f"The model {model!r} does not exist.", model=[why])
    return persona, route


def check_same(model: str, run: RowMapping) -> None:
    """Check that `model` names the persona or the route of a run that continues, which keeps both.

    Another version of the persona counts: clients name the newest one once there is another.

    Raises:
        InvalidRequest
    """
    persona_id: str = run["persona_id"]
    key = persona_id.partition("@")[0]
    if model.partition("@")[0] != key and model not in (run["route_id"], run["model"]):
        why = f"must be {persona_id} or {run['model']}: a run keeps its agent until it ends"
        raise InvalidRequest(model=[why])


def _overrides(
    body: Mapping[str, Any], given: Input, persona: Persona, route: Route
) -> dict[str, Any]:
    instructions = body.get("instructions")
    if given.instructions:
        if instructions is not None and not isinstance(instructions, str):
            raise InvalidRequest(instructions=["must be a string"])
        own = instructions or ""
        instructions = "\n\n".join(filter(None, (own, *given.instructions.values())))
        most_bytes = overrides.MAX_INSTRUCTIONS_BYTES
        if len(own.encode()) <= most_bytes < len(instructions.encode()):
            why = (
                "the instructions in it, with those of the request, must have at most"
                f" {most_bytes:,} bytes of UTF-8"
            )
            raise InvalidRequest(input=[why])
    settings, schema = _settings(body)
    most = body.get("max_output_tokens")
    fields_of = {
        "instructions": instructions or None,
        "tools": responses_tools.added(persona, responses_tools.read(body.get("tools"))) or None,
        "model_settings": settings or None,
        "limits": None if most is None else {"max_output_tokens": most},
        "output_schema": schema,
    }
    wanted = {name: value for name, value in fields_of.items() if value is not None}
    # Settings that are allowed stay as they were sent: processes of earlier commits know a request
    # that is sent again by them.
    if actor().end_user_id is None and "model_settings" in persona.overrides:
        return wanted
    return without_defaults(wanted, persona, route)


def _checked(
    persona: Persona,
    route: Route,
    wanted: Mapping[str, Any],
    body: Mapping[str, Any],
    given: Input,
) -> overrides.Options | None:
    """Check the overrides.

    Raises:
        InvalidRequest, Forbidden: with the names of fields, not of overrides.
    """
    try:
        options = overrides.check(persona, route, wanted)
    except InvalidRequest as error:
        problems: dict[str, Any] = {}
        for name, why in error.details.items():
            if name == "tools":
                problems[name] = responses_tools.at_their_places(why, body["tools"], persona)
            else:
                problems |= dict.fromkeys(_fields(name, wanted, body, given), why)
        raise InvalidRequest(**problems) from None
    of_org = [name for name in wanted if name not in END_USER_OVERRIDES]
    fields_of_org = [field for name in of_org for field in _fields(name, wanted, body, given)]
    refuse_fields(dict.fromkeys(fields_of_org, True), *fields_of_org)
    return options


def _fields(
    name: str, wanted: Mapping[str, Any], body: Mapping[str, Any], given: Input
) -> list[str]:
    """Return the fields of an override; other names are those of fields."""
    if name == "instructions" and not body.get(name):
        return list(given.instructions)
    return [f"{name}.{field}" for field in wanted[name]] if name in _MADE_OF_FIELDS else [name]


def _settings(body: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the settings of model calls, and the schema of the output."""
    settings = {name: body.get(name) for name in ("temperature", "top_p", "parallel_tool_calls")}
    settings["tool_choice"] = _tool_choice(body.get("tool_choice"))
    reasoning = _object("reasoning", body.get("reasoning"), "effort", "summary", "generate_summary")
    settings["reasoning_effort"] = reasoning.get("effort")
    text = _object("text", body.get("text"), "format", "verbosity")
    settings["verbosity"] = text.get("verbosity")
    schema = None
    match text.get("format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_schema", "schema": wanted}:
            schema = wanted
        case _:
            why = "must be of type text or json_schema, the latter with a schema"
            raise InvalidRequest(**{"text.format": [why]})
    return {name: value for name, value in settings.items() if value is not None}, schema


def _tool_choice(value: Any) -> Any:
    match value:
        case {"type": "function", "name": name}:
            return {"name": name}
        case {"type": _}:
            why = "must be none, auto, required or a function"
            raise InvalidRequest(tool_choice=[why])
    return value


def _object(name: str, value: Any, *known: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(**{name: ["must be an object"]})
    responses_tools.refuse_unknown(name, value, *known)
    return value
