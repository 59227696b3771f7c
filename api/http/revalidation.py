"""Responses to anybody that browsers keep, and ask for again with the ETag that they have."""

from typing import cast

from flask import Response, request


def revalidated(response: Response, etag: str) -> Response:
    """Return the response, or 304 for a client that has it.

    `If-Match` is for changes and for ranges, and there are none of these, so that it is ignored.
    Werkzeug would refuse `*`, and send the document along with the refusal.
    """
    response.set_etag(etag)
    environ = {name: value for name, value in request.environ.items() if name != "HTTP_IF_MATCH"}
    return cast(Response, response.make_conditional(environ))
