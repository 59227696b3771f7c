"""Errors of `/v1/responses` as OpenAI's API has them: `{"error": {message, type, param, code}}`."""

from typing import Any, Literal, TypedDict

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from arkloop.api.http import errors
from arkloop.api.http.described import ErrorShape
from arkloop.shared.errors import ArkloopError, IdempotencyInProgress, Unavailable

PATH = "/v1/responses"
#: Codes under which OpenAI's clients know the same; all others are our own.
_CODES = {
    "personas.not_found": "model_not_found",
    "routes.not_found": "model_not_found",
    "auth.unauthorized": "invalid_api_key",
}
#: Parameters under the names that this API has for them.
_PARAMS = {
    "persona_id": "model",
    "route_id": "model",
    "output_schema": "text.format.schema",
    "model_settings.reasoning_effort": "reasoning.effort",
    "model_settings.verbosity": "text.verbosity",
}
_PREFIXES = ("model_settings.", "limits.", "message.")
#: The SDKs send each 408, 409, 429 and 5xx again by themselves; this 409 alone passes.
_PASSING = IdempotencyInProgress.code
_MAX_REASONS = 5
#: Endpoints of OpenAI's that clients of it try, whose SDKs show errors of another shape without
#: their text.
_NOT_SERVED = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/conversations",
    "/v1/embeddings",
    "/v1/models",
)
_ALONE = f"Of OpenAI's API, this service has the Responses API alone: POST {PATH}."


class OpenAIProblem(TypedDict):
    """An error as OpenAI's clients read it; `code` is ours where they know none."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """The shape of errors of `/v1/responses`."""

    error: OpenAIProblem


#: For `@described`.
SHAPE = ErrorShape(OpenAIError, {422: 400})


def register(blueprint: Blueprint) -> None:
    """Let the blueprint's endpoints respond with errors of this shape, and paths below theirs, and
    those at which OpenAI has what this service lacks.
    """
    blueprint.register_error_handler(ArkloopError, _arkloop_error)
    blueprint.register_error_handler(HTTPException, lambda error: _converted(errors.http(error)))
    blueprint.register_error_handler(Exception, lambda error: _converted(errors.unexpected(error)))
    # A path or method that matches no endpoint belongs to no blueprint.
    for status in (404, 405):
        blueprint.app_errorhandler(status)(_unmatched)


def of_existing(error: Unavailable, response_id: str) -> Response:
    """Return the error of a request whose response exists, so that it is not sent again."""
    text = (
        f"The database is unavailable, but the response {response_id} was created:"
        " retrieve it, and do not send the request again."
    )
    response = _converted(errors.arkloop(error), text)
    response.headers["X-Should-Retry"] = "false"
    response.headers.pop("Retry-After", None)
    return response


def _unmatched(error: HTTPException) -> Response:
    native = errors.http(error)
    if _is_below(PATH):
        return _converted(native)
    if error.code == 404 and any(_is_below(path) for path in _NOT_SERVED):
        return _converted(native, _ALONE)
    return native


def _is_below(path: str) -> bool:
    return f"{request.path}/".startswith(f"{path}/")


def _arkloop_error(error: ArkloopError) -> Response:
    return _converted(errors.arkloop(error))


def _converted(native: Response, message: str | None = None) -> Response:
    """Return an error of the service in this shape, perhaps with another message."""
    shown = native.get_json()
    status, details, param = native.status_code, shown["details"], None
    if status in (403, 422):  # whose details are fields
        status = 400 if status == 422 else status  # most clients of this API know no 422
        reasons = {_param(name): why for name, why in details.items()}
        param = next(iter(reasons), None)
        message = message or "; ".join(_reason(name, why) for name, why in reasons.items())
    message = message or errors.in_words(shown["message"], details)
    error = {
        "message": message[: errors.MAX_REASON_LENGTH],
        "type": _type(status),
        "param": param,
        "code": _CODES.get(shown["code"], shown["code"]),
    }
    response = jsonify(error=error)
    response.status_code = status
    for name in ("Retry-After", "WWW-Authenticate", "Allow"):
        if name in native.headers:
            response.headers[name] = native.headers[name]
    if _is_lasting(native, shown["code"]):
        response.headers["X-Should-Retry"] = "false"
    return response


def _is_lasting(native: Response, code: str) -> bool:
    """Return whether no repetition of the request changes the error."""
    if native.status_code == 429:
        return "Retry-After" not in native.headers
    return native.status_code < 500 and native.status_code != 408 and code != _PASSING


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def _reason(name: str, why: Any) -> str:
    texts = why if isinstance(why, list) else [why]
    return f"{name}: {', '.join(str(text) for text in texts[:_MAX_REASONS])}"


def _param(name: str) -> str:
    if name in _PARAMS:
        return _PARAMS[name]
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
