"""`/openapi.json` and `/docs`: the description of the API, for programs and for people."""

import hashlib
import json
from functools import lru_cache
from importlib import resources
from typing import Any, cast

from flask import Blueprint, Response, current_app, request

from arkloop.api.http.current import settings
from arkloop.api.http.described import JsonObject, described
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.api.http.revalidation import revalidated

bp = Blueprint("description", __name__)

#: The page loads nothing from another host, and executes no script but these files.
PAGE_SECURITY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
#: Of Swagger UI, as the package `swagger-ui-py` has it; and what starts it.
ASSETS = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Arkloop Runs API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<main id="reference"></main>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
"""
START = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  validatorUrl: null,
})
"""


@bp.get("/openapi.json")
@described(returns=JsonObject, also={304: None})
def get_openapi() -> Response:
    """Return the description of the API in OpenAPI 3.1."""
    query_args(NoArguments())
    return _revalidated(_document(), "application/json")


@bp.get("/docs")
@described(returns={"text/html": str}, also={304: None})
def get_docs() -> Response:
    """Return a page that shows the description of the API."""
    query_args(NoArguments())
    response = _revalidated(PAGE.encode(), "text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = PAGE_SECURITY
    return response


@bp.get("/docs/swagger-ui.css")
@bp.get("/docs/swagger-ui-bundle.js")
@bp.get("/docs/start.js")
@described(returns={"*/*": bytes}, also={304: None})
def get_docs_asset() -> Response:
    """Return a file of that page."""
    query_args(NoArguments())
    asset = request.path.rpartition("/")[2]
    return _revalidated(_asset(asset), ASSETS[asset])


def _revalidated(body: bytes, content_type: str) -> Response:
    """Return the body, or 304 for a client that has it."""
    response = Response(body, content_type=content_type)
    response.headers["Cache-Control"] = "no-cache"
    return revalidated(response, hashlib.sha256(body).hexdigest()[:32])


def _document() -> bytes:
    """Return the document, which is made once per process: it takes a moment."""
    name = "arkloop.description"
    if name not in current_app.extensions:
        # Most processes never need what makes it.
        from arkloop.api.description import document

        made: Any = document.build(current_app, prefix=settings().path_prefix or "")
        current_app.extensions[name] = json.dumps(made, separators=(",", ":")).encode() + b"\n"
    return cast(bytes, current_app.extensions[name])


@lru_cache
def _asset(name: str) -> bytes:
    if name == "start.js":
        return START.encode()
    return (resources.files("swagger_ui") / "static" / name).read_bytes()
