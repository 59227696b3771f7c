"""`/v1/mcp-oauth/callback`: where authorization servers of MCP servers send people back to."""

from flask import Blueprint, Response, request
from markupsafe import escape
from marshmallow import EXCLUDE, fields, validate

from arkloop.api.http import errors
from arkloop.api.http.current import connections
from arkloop.api.http.described import described
from arkloop.api.http.json_body import query_args
from arkloop.api.http.schema import Schema
from arkloop.shared.catalog import mcp_access, mcp_configs
from arkloop.shared.errors import (
    ArkloopError,
    InvalidRequest,
    McpStateInvalid,
    OrgSuspended,
    Unavailable,
)
from arkloop.shared.runs import commands

bp = Blueprint("mcp_oauth", __name__)

_MAX_CHARACTERS = 4_096
_HTML = "text/html; charset=utf-8"
_TOO_LATE = "This came too late, and no access was granted. You will be asked again when necessary."
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text}</title>
<p>{text}
"""


class Callback(Schema):
    """The reply of an authorization server; what else it adds is ignored, as RFC 6749 demands."""

    class Meta:
        unknown = EXCLUDE

    state = fields.String(required=True, validate=validate.Length(1, 512))
    code = fields.String(validate=validate.Length(1, _MAX_CHARACTERS))
    error = fields.String(validate=validate.Length(1, _MAX_CHARACTERS))
    iss = fields.String(validate=validate.Length(1, _MAX_CHARACTERS))


@bp.get(mcp_access.CALLBACK_PATH)
@described(query=Callback, returns={"text/html": str}, raises=[McpStateInvalid, OrgSuspended])
def take_mcp_authorization() -> Response:
    """Take the reply of an authorization server; the run or the discovery that waits continues."""
    given = query_args(Callback())
    if ("code" in given) == ("error" in given):
        raise InvalidRequest(code=["is required, or `error`; not both"])
    if request.method == "HEAD":  # the reply is for one use, and its page comes with GET
        return Response(content_type=_HTML)
    code = given.get("code")
    text = "Access was denied." if code is None else "Access was granted."
    with connections().transaction() as tx:
        asked, url = mcp_access.answer(tx, given["state"], code, given.get("iss"))
        if asked.run_id is not None:
            is_taken = commands.answer_visit(tx, asked.run_id, url, is_accepted=code is not None)
            if code is not None and not is_taken:
                text = _TOO_LATE
        elif code is not None:
            mcp_configs.discover(tx, asked.config_id)
    text = f"{text} You can close this window."
    return Response(_PAGE.format(text=text), content_type=_HTML)


@bp.errorhandler(McpStateInvalid)
@bp.errorhandler(OrgSuspended)
@bp.errorhandler(Unavailable)
def _page_of(error: ArkloopError) -> Response:
    """Return the response to an error, as a page to a browser: a person looks at it."""
    response = errors.arkloop(error)
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        response.set_data(_PAGE.format(text=escape(str(error))))
        response.content_type = _HTML
    return response
