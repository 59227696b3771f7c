"""Access to the current request's actor and trace, and to the process's connections."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from flask import current_app, g, request

from arkloop.shared.actors import Actor
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.config import Settings
from arkloop.shared.files.storage import Storage
from arkloop.shared.ids import new_trace_id
from arkloop.shared.storage.connections import Connections

P = ParamSpec("P")
R = TypeVar("R")

#: W3C trace context, version 00 and later ones that begin like it.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)

#: Where the environment of a request has what `trace_of` has found.
_TRACE = "arkloop.trace"


def connections() -> Connections:
    """Return the connections for what this request reads and writes: the org's of its actor.

    A request without an actor, such as a log-in, works for the service as a whole.
    """
    if "actor" not in g:
        return connections_of_service()
    if "connections" not in g:
        g.connections = connections_of_service().of(actor().org_id)
    return cast(Connections, g.connections)


def connections_of_service() -> Connections:
    """Return the connections for what no org has alone, such as the logins of a person.

    Row-level security keeps nothing from their statements.
    """
    return cast(Connections, current_app.extensions["arkloop"])


def settings() -> Settings:
    return connections_of_service().settings


def public_path(path: str) -> str:
    """Return the path as clients know it, in front of a proxy that strips a prefix.

    From a setting, not from `X-Forwarded-Prefix`, which any client could send.
    """
    return (settings().path_prefix or "") + path


def storage() -> Storage:
    """Return this process's storage of files."""
    return cast(Storage, current_app.extensions["arkloop.storage"])


def catalog() -> Catalog:
    """Return this process's catalog."""
    return cast(Catalog, current_app.extensions["arkloop.catalog"])


def changes_catalog(view: Callable[P, R]) -> Callable[P, R]:
    """Mark an endpoint that changes what runs can be made with: this process then reads it anew.

    Stands outside of what commits, and inside of `requires`.
    """

    @wraps(view)
    def changing(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return view(*args, **kwargs)
        finally:
            catalog().forget(actor().org_id)

    return changing


def actor() -> Actor:
    """Return the actor of this request; only valid where `auth.requires` has let it in."""
    return cast(Actor, g.actor)


def trace_id() -> str:
    """Return 32 hex digits: the caller's trace id from `traceparent`, else a new one."""
    return trace_of(request.environ)[0]


def trace_of(environ: dict[str, Any]) -> tuple[str, str | None]:
    """Return a request's trace id, and the span of the caller of which it is a part, if any."""
    found: tuple[str, str | None] | None = environ.get(_TRACE)
    if found is None:
        match = _TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", ""))
        found = environ[_TRACE] = (match[1], match[2]) if match else (new_trace_id(), None)
    return found
