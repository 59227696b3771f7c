"""Responses that a worker gets from something else than the service."""

from typing import Any

#: A gateway responds with 200 and JSON of its own while the service is away; or it knows no server,
#: blocks the request, or redirects it to a page about maintenance.
FOREIGN: list[tuple[int, dict[str, Any] | bytes]] = [
    (200, {"status": "ok"}),
    (200, b"<html>Back soon</html>"),
    (302, b""),
    (401, b"<html>Log in</html>"),
    (403, b"<html>Blocked</html>"),
    (404, b"default backend - 404"),
    (404, {"code": 5, "message": "Not Found", "details": []}),
]
