"""The client program of the tests, while the service is too busy for its requests."""

import httpx
import pytest

from tests.caller import Caller


@pytest.mark.parametrize("status", [429, 503])
def test_what_is_refused_for_now_is_asked_for_again(status: int) -> None:
    """Reports of an org take turns: one that waited too long for its own gets 429."""
    refusals = [httpx.Response(status, headers={"Retry-After": "1"})] * 2

    def respond(request: httpx.Request) -> httpx.Response:
        if refusals:
            return refusals.pop()
        return httpx.Response(200, json={"method": request.method})

    with httpx.Client(transport=httpx.MockTransport(respond), base_url="http://service") as http:
        caller = Caller("http://service", "token", http, "user", "org", "login")
        assert {"method": "GET"} == caller.get("/v1/budget")
        refusals.append(httpx.Response(status, headers={"Retry-After": "1"}))
        assert {"method": "PUT"} == caller.put("/v1/budget", {})
