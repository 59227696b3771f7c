"""The reasons of failed authorizations that people read."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from arkloop.worker.mcp import AuthorizationRequired
from arkloop.worker.mcp.failed_requests import NOT_AUTHORIZED
from tests.worker.mcp.oauth_servers import ISSUER, RESOURCE, Internet, Process

OWN = {"client_id": "own", "client_secret": "hidden"}
FAILED = "The authorization at the server failed"
BY_HAND = "register a client by hand, and set `client_id` in `oauth`"
RESOURCE_METADATA = "/.well-known/oauth-protected-resource/mcp"
METADATA = "/.well-known/oauth-authorization-server"
ENDS = {"authorization_endpoint": f"{ISSUER}/authorize", "token_endpoint": f"{ISSUER}/token"}
CANARY = "canary-text-of-the-server"
#: The first address of the resource's metadata is down, and the second is not.
AT_ITS_ROOT = {
    RESOURCE_METADATA: (503, {}),
    "/.well-known/oauth-protected-resource": (
        200,
        {"resource": f"{RESOURCE}/mcp", "authorization_servers": [ISSUER]},
    ),
    METADATA: (200, {"issuer": ISSUER, **ENDS}),
}
REFUSED = {"error": "invalid_redirect_uri", "error_description": CANARY}


class Odd(Internet):
    """Servers that respond to requests for some paths as the test says."""

    def __init__(self, responses: Mapping[str, tuple[int, Mapping[str, Any]]]) -> None:
        super().__init__()
        self.responses = responses

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path in self.responses:
            self.seen.append(request)
            status, body = self.responses[request.url.path]
            return httpx2.Response(status, json=body)
        return await super().__call__(request)


@pytest.mark.parametrize(
    ("responses", "why"),
    [
        (
            {METADATA: (200, {"issuer": "https://canary-text-of-the-server.example.com", **ENDS})},
            f"{FAILED}: the metadata of its authorization server has another issuer than the"
            " server names.",
        ),
        (
            {
                RESOURCE_METADATA: (
                    200,
                    {"resource": f"{RESOURCE}/{CANARY}", "authorization_servers": [ISSUER]},
                )
            },
            f"{FAILED}: its metadata is that of another resource.",
        ),
        (
            {METADATA: (200, {"issuer": ISSUER, **ENDS}), "/register": (404, {})},
            f"{FAILED}: its authorization server offers no registration: {BY_HAND}.",
        ),
        (
            {"/register": (400, REFUSED)},
            f"{FAILED}: its authorization server has registered no client (invalid_redirect_uri):"
            f" {BY_HAND}.",
        ),
        (
            {"/register": (403, {"detail": CANARY})},
            f"{FAILED}: its authorization server has registered no client (HTTP status 403):"
            f" {BY_HAND}.",
        ),
        (
            {"/register": (201, {"client": CANARY})},
            f"{FAILED}: the response to the registration of a client is not valid.",
        ),
        (
            {"/register": (201, {"client_id": "c", "token_endpoint_auth_method": CANARY})},
            f"{FAILED}: its authorization server has registered a client without a usable secret.",
        ),
        (
            {
                METADATA: (
                    200,
                    {"issuer": ISSUER, **ENDS, "authorization_endpoint": f"{ISSUER}/{'a' * 2048}"},
                )
            },
            f"{FAILED}: the address of its page is longer than 2,048 characters.",
        ),
        ({"/register": (503, {})}, NOT_AUTHORIZED),
        ({"/register": (429, {})}, NOT_AUTHORIZED),
        ({METADATA: (503, {}), "/register": (404, {})}, NOT_AUTHORIZED),
        ({RESOURCE_METADATA: (503, {})}, NOT_AUTHORIZED),
        (
            {**AT_ITS_ROOT, "/register": (404, {})},
            f"{FAILED}: its authorization server offers no registration: {BY_HAND}.",
        ),
        ({**AT_ITS_ROOT, "/register": (501, {})}, NOT_AUTHORIZED),
    ],
)
def test_a_page_that_cannot_be_made_has_its_reason(
    responses: Mapping[str, tuple[int, Mapping[str, Any]]], why: str
) -> None:
    """It contains nothing of a response but the name of an error."""
    process = Process(Odd(responses), {})

    problem = asyncio.run(process.refused())

    assert why == str(problem)
    assert not isinstance(problem, AuthorizationRequired)


@pytest.mark.parametrize(
    ("iss", "responses", "reason"),
    [
        (
            "https://canary-text-of-the-server.example.com",
            {},
            "the code is from another issuer than was visited",
        ),
        (
            None,
            {
                METADATA: (
                    200,
                    {
                        "issuer": ISSUER,
                        **ENDS,
                        "authorization_response_iss_parameter_supported": True,
                    },
                )
            },
            "the code came without the `iss` of its issuer",
        ),
        (None, {"/token": (200, {"token": CANARY})}, "the response to the code has no valid token"),
        # As GitHub says it.
        (
            None,
            {"/token": (200, {"error": "incorrect_client_credentials", "error_uri": CANARY})},
            "incorrect_client_credentials",
        ),
    ],
)
def test_a_code_that_leads_to_no_token_has_its_reason(
    iss: str | None, responses: Mapping[str, tuple[int, Mapping[str, Any]]], reason: str
) -> None:
    """The error of a token endpoint counts, whatever status it has."""

    async def story() -> None:
        internet = Odd(responses)
        made = await Process(internet, {}, **OWN).asked()
        answered = {**made, "code": "c", "iss": iss}
        problem = await Process(internet, {"answered": answered}, **OWN).refused()
        assert f"{FAILED}: {reason}." == str(problem)
        assert not isinstance(problem, AuthorizationRequired)

    asyncio.run(story())


def test_a_code_that_github_does_not_accept_leads_to_another_page() -> None:
    """It has an error of its own for a code that has expired, with the status 200."""

    async def story() -> None:
        internet = Odd({"/token": (200, {"error": "bad_verification_code"})})
        made = await Process(internet, {}, **OWN).asked()
        answered = {**made, "code": "c", "iss": None}
        again = await Process(internet, {"answered": answered}, **OWN).asked()
        assert made["state"] != again["state"]

    asyncio.run(story())


def test_an_error_with_the_status_200_accepts_no_client() -> None:
    """Where the form is refused, and HTTP Basic is with 200, the reason is that of the form."""

    class Refusing(Internet):
        async def __call__(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path != "/token":
                return await super().__call__(request)
            if "Authorization" in request.headers:
                return httpx2.Response(200, json={"error": "incorrect_client_credentials"})
            return httpx2.Response(401, json={"error": "invalid_client"})

    async def story() -> None:
        internet = Refusing()
        made = await Process(internet, {}, **OWN).asked()
        answered = {**made, "code": "c", "iss": None}
        problem = await Process(internet, {"answered": answered}, **OWN).refused()
        assert f"{FAILED}: invalid_client." == str(problem)

    asyncio.run(story())
