"""Facts about an endpoint that only its author knows, for the description of the API.

`@described` stands on each endpoint, anywhere among its decorators, and changes nothing about it:

    @bp.post("/v1/threads")
    @requires("data.threads.write")
    @idempotent
    @described(body=CreateThread, body_optional=True, returns=ShownThread, status=201)
    def create_thread(tx: Transaction) -> Response:

The rest is known: path, method and ids from the route; the text from the docstring; permission,
idempotency keys and most errors from the other decorators and the kinds of parameters.
`api/description` makes the OpenAPI document of all that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from arkloop.api.http.schema import Schema
from arkloop.shared.errors import ArkloopError

_FACTS = "described"

F = TypeVar("F", bound=Callable[..., Any])

#: A marshmallow schema, or JSON Schema for what is none.
BodySchema = type[Schema] | Schema | Mapping[str, Any]


class Json:
    """JSON Schema that a type is annotated with, in addition to what the type says."""

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords


# Types of what is shown; a text in an `Annotated` is the description.
UuidText = Annotated[str, Json(format="uuid")]
Time = Annotated[str, Json(format="date-time", pattern=r"\.[0-9]{3}Z$")]
JsonObject = dict[str, Any]


class Ok(TypedDict):
    """An acknowledgement."""

    ok: Literal[True]


class Frames:
    """The return type of a stream of Server-Sent Events; subclasses name those of a protocol."""


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """Errors as another protocol has them: their JSON, and the statuses that replace others."""

    json: Any
    statuses: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Described:
    """Facts that `@described` was given."""

    returns: Any
    status: int
    also: Mapping[int, Any]
    body: BodySchema | None
    body_optional: bool
    body_type: str
    query: type[Schema] | None
    headers: Sequence[str]
    response_headers: Sequence[str]
    raises: Sequence[type[ArkloopError]]
    security: Sequence[str] | None
    permission: str | None
    errors: ErrorShape | None


def described(
    *,
    returns: Any = None,
    status: int = 200,
    also: Mapping[int, Any] | None = None,
    body: BodySchema | None = None,
    body_optional: bool = False,
    body_type: str = "application/json",
    query: type[Schema] | None = None,
    headers: Sequence[str] = (),
    response_headers: Sequence[str] = (),
    raises: Sequence[type[ArkloopError]] = (),
    security: Sequence[str] | None = None,
    permission: str | None = None,
    errors: ErrorShape | None = None,
) -> Callable[[F], F]:
    """Describe an endpoint.

    `returns` is the type of the JSON that it responds with: a TypedDict, a list of one, or a
    mapping from media types to types; None is no body. `also` has types for other statuses of
    success. `headers` are request headers with an entry in `api/description/headers.py`;
    `response_headers` are those of success that no decorator adds, with an entry there too.
    `raises` are errors beyond those that `api/description/errors.py` finds by itself. `security`
    and `permission` are for endpoints that check tokens without `@requires`: the names of the
    schemes of `api/description/document.py`, one of which a request needs. `errors` is the shape
    that errors have if it is not `Error`.
    """
    facts = Described(
        returns=returns,
        status=status,
        also=also or {},
        body=body,
        body_optional=body_optional,
        body_type=body_type,
        query=query,
        headers=headers,
        response_headers=response_headers,
        raises=raises,
        security=security,
        permission=permission,
        errors=errors,
    )

    def decorate(view: F) -> F:
        view.__dict__[_FACTS] = facts
        return view

    return decorate


def facts_of(view: Callable[..., Any]) -> Described | None:
    """Return how the view is described; decorators on top of it keep that. None: it is not."""
    found = view.__dict__.get(_FACTS)
    return found if isinstance(found, Described) else None


def mark(view: Callable[..., Any], name: str, value: object) -> None:
    """Note what a decorator does, for the description."""
    view.__dict__[f"described.{name}"] = value


def marked(view: Callable[..., Any], name: str) -> Any:
    """Return what `mark` has noted; None if it has not."""
    return view.__dict__.get(f"described.{name}")
