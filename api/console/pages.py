"""`/console`: the console, a page of static files that uses this API as any other client does."""

import hashlib
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

from flask import Blueprint, Response
from marshmallow import fields

from arkloop.api.http import path_ids
from arkloop.api.http.described import described
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.api.http.revalidation import revalidated
from arkloop.api.http.schema import Schema
from arkloop.shared.errors import NotFound

bp = Blueprint("console", __name__)

#: The page loads nothing from another host, and nothing that stands in the page itself is executed.
PAGE_SECURITY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".LICENSE": "text/plain; charset=utf-8",
}
PAGE = "index.html"


class ConsoleQuery(Schema):
    error = fields.String()  # of a login at an identity provider, which the page shows


class ConsoleFiles(NamedTuple):
    """The page, and the files by name; the version in their addresses changes with any of them."""

    version: str
    page: bytes
    files: dict[str, bytes]


@bp.get("/console")
@described(query=ConsoleQuery, returns={"text/html": str}, also={304: None})
def get_console() -> Response:
    """Return the page of the console."""
    query_args(ConsoleQuery())
    body = console_files().page
    response = Response(body, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = PAGE_SECURITY
    response.headers["Cache-Control"] = "no-cache"
    return revalidated(response, console_files().version)


@bp.get("/console/<version>/<path:file>")
@described(returns={"*/*": bytes}, raises=[NotFound])
def get_console_file(version: str, file: str) -> Response:
    """Return a file of the console.

    An address never has another content, so that browsers keep it.
    """
    query_args(NoArguments())
    path_ids.check({"version": version, "file": file})
    known = console_files()
    if version != known.version or file not in known.files:
        raise NotFound()
    suffix = file[file.rindex(".") :]
    response = Response(known.files[file], content_type=CONTENT_TYPES[suffix])
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


@lru_cache
def console_files() -> ConsoleFiles:
    """Read the files once per process, when the first browser needs one."""
    files = dict(sorted(_files(resources.files("arkloop.api.console") / "static", "")))
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    version = digest.hexdigest()[:16]
    page = files.pop(PAGE).replace(b"{version}", version.encode())
    return ConsoleFiles(version, page, files)


def _files(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _files(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry.read_bytes()))
    return found
