"""The exchange of a code for tokens: how it can fail, and how a client's secret is sent."""

from urllib.parse import quote

import pytest

from arkloop.worker.mcp import AuthorizationRequired
from arkloop.worker.mcp.failed_requests import NOT_AUTHORIZED
from tests.worker.mcp.oauth_servers import CALLBACK, Internet, Process, granted, in_loop

OWN = {"client_id": "own", "client_secret": "hidden"}


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [
        (401, "invalid_client", "The authorization at the server failed: invalid_client."),
        (400, "No such thing!", "The authorization at the server failed: HTTP status 400."),
        (503, "server_error", NOT_AUTHORIZED),
    ],
)
def test_a_failed_exchange_is_reported(status: int, error: str, why: str) -> None:
    """All requests that the session makes with the code say why; the next one asks again."""

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}, **OWN).asked()
        internet.token_status, internet.token_error = status, error
        internet.auth_methods = ["client_secret_post"]
        process = Process(internet, {"answered": {**made, "code": "c", "iss": None}}, **OWN)
        for _ in range(2):  # the SDK makes two to begin a session
            problem = await process.refused()
            assert why == str(problem)
            assert not isinstance(problem, AuthorizationRequired)
        assert 1 == len(internet.token_requests)

        process.oauth.take({"grant": None, "client": None, "answered": None})
        await process.asked()

    in_loop(story)


def test_a_code_that_is_not_accepted_leads_to_another_page() -> None:
    """It has expired, or was used before: another one may be good."""

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}).asked()
        internet.token_status = 400
        process = Process(internet, {"answered": {**made, "code": "c", "iss": None}})
        assert made["state"] != (await process.asked())["state"]
        assert made["state"] != (await process.asked())["state"]
        assert 1 == len(internet.token_requests)

    in_loop(story)


@pytest.mark.parametrize("own", [OWN, {}])
def test_a_code_is_exchanged_with_the_redirect_uri_of_its_page(own: dict[str, str]) -> None:
    """The public URL has changed while the page was open (RFC 6749, section 4.1.3); the next page
    leads back to the new one.
    """
    now = "https://acme.example.com/v1/mcp-oauth/callback"

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}, **own).asked()
        answered = {**made, "code": "c", "iss": None}
        process = Process(internet, {"answered": answered}, redirect_uri=now, **own)
        assert 200 == await process.post()

        [(_, form)] = internet.token_requests
        assert CALLBACK == form["redirect_uri"]
        process.oauth.take({"grant": None, "client": None, "answered": None})
        assert quote(now, safe="") in (await process.asked())["url"]

    in_loop(story)


@pytest.mark.parametrize("own", [OWN, {}])
def test_a_failed_exchange_leaves_an_earlier_grant_as_it_was(own: dict[str, str]) -> None:
    """Somebody was asked for a further scope, and calls that need no more still have access."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet, **own)
        made = await Process(internet, {}, **own).asked()
        process = Process(internet, {"grant": grant}, **own)
        access = {"grant": None, "client": None}
        internet.token_status, internet.token_error = 401, "invalid_client"
        process.oauth.take({**access, "answered": {**made, "code": "c", "iss": None}})
        await process.refused()

        process.oauth.take({**access, "grant": grant, "answered": None})
        assert 200 == await process.post()

    in_loop(story)


@pytest.mark.parametrize(
    ("methods", "is_basic"),
    [
        (["client_secret_basic"], True),
        (["client_secret_basic", "client_secret_post"], False),
        (["private_key_jwt", "client_secret_post"], False),
    ],
)
def test_a_client_secret_is_sent_as_the_authorization_server_accepts_it(
    methods: list[str], is_basic: bool
) -> None:
    """The form comes first, of the methods that its metadata lists."""

    async def story(internet: Internet) -> None:
        internet.auth_methods = methods
        grant = await granted(internet, **OWN)
        process = Process(internet, {"grant": {**grant, "expires_at": 1}}, **OWN)
        assert 200 == await process.post()

        sent = [one for one in internet.seen if one.url.path == "/token"]
        assert 2 == len(sent)  # for the code, and to refresh
        for one, (_, form) in zip(sent, internet.token_requests, strict=True):
            assert is_basic == ("Authorization" in one.headers)
            assert is_basic == ("client_secret" not in form)

    in_loop(story)


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("accepts", ["client_secret_post", "client_secret_basic"])
@pytest.mark.parametrize("methods", [None, ["client_secret_basic", "client_secret_post"]])
def test_a_client_secret_is_sent_by_basic_where_the_form_is_refused(
    methods: list[str] | None, accepts: str, status: int
) -> None:
    """The metadata lists no method, or both, of which this client may use one; for the code and to
    refresh, a session finds it only once.
    """

    async def story(internet: Internet) -> None:
        internet.auth_methods = methods
        internet.accepts, internet.refusal_status = accepts, status
        refused = ["form"] if accepts == "client_secret_basic" else []
        accepted = "Basic b3duOmhpZGRlbg==" if refused else "form"

        def sent() -> list[str]:
            requests = [one for one in internet.seen if one.url.path == "/token"]
            internet.seen.clear()
            assert all(one.headers["User-Agent"] == "arkloop" for one in requests)
            return [one.headers.get("Authorization", "form") for one in requests]

        grant = await granted(internet, **OWN)
        assert [*refused, accepted] == sent()
        process = Process(internet, {"grant": {**grant, "expires_at": 1}}, **OWN)
        assert 200 == await process.post()
        assert [*refused, accepted] == sent()
        internet.valid.clear()
        assert 200 == await process.post()
        assert [accepted] == sent()

        forms = [{**form, "client_secret": ""} for _, form in internet.token_requests]
        if refused:
            assert [forms[0], forms[2]] == [forms[1], forms[3]]

    in_loop(story)


def test_a_session_keeps_to_the_form_where_basic_is_refused_as_well() -> None:
    """The authorization server may have refused the client for a moment, whatever the method."""

    async def story(internet: Internet) -> None:
        grant = {**await granted(internet, **OWN), "expires_at": 1}
        internet.token_requests.clear()
        internet.token_status, internet.token_error = 401, "invalid_client"
        process = Process(internet, {"grant": grant}, **OWN)
        await process.asked()
        assert ["client_secret" in form for _, form in internet.token_requests] == [True, False]

        internet.token_status = 200
        process.oauth.take({"grant": {**grant, "id": "1"}, "client": None, "answered": None})
        assert 200 == await process.post()
        assert "client_secret" in internet.token_requests[-1][1]

    in_loop(story)


BASIC, POST = "client_secret_basic", "client_secret_post"


@pytest.mark.parametrize(
    ("methods", "accepts", "refused"),
    [
        ([POST, "none"], POST, 0),  # as in the official SDK for TypeScript
        ([BASIC], BASIC, 0),
        ([BASIC, POST], POST, 0),
        ([BASIC, POST], BASIC, 1),
        (None, POST, 0),
        (None, BASIC, 1),
    ],
)
def test_a_secret_that_is_registered_without_a_method_is_sent(
    methods: list[str] | None, accepts: str, refused: int
) -> None:
    """The method that was accepted for the code is a part of the grant and of its client."""

    async def story(internet: Internet) -> None:
        internet.registered = {"client_secret": "hidden"}
        internet.auth_methods, internet.accepts = methods, accepts
        grant = await granted(internet)
        assert accepts == grant["client"]["token_endpoint_auth_method"]
        assert 1 + refused == len(internet.token_requests)

        process = Process(internet, {"grant": {**grant, "expires_at": 1}})
        assert 200 == await process.post()
        answered = {**await Process(internet, {"client": grant["client"]}).asked(), "code": "c"}
        assert 200 == await Process(internet, {"answered": {**answered, "iss": None}}).post()
        assert 3 + refused == len(internet.token_requests)
        assert 1 == internet.registrations

    in_loop(story)


@pytest.mark.parametrize("accepts", [POST, BASIC])
def test_a_secret_that_is_registered_for_the_form_is_sent_by_basic_where_that_is_refused(
    accepts: str,
) -> None:
    """The registration names a method that the token endpoint may not accept."""

    async def story(internet: Internet) -> None:
        internet.registered = {"client_secret": "hidden", "token_endpoint_auth_method": POST}
        internet.accepts = accepts
        grant = await granted(internet)
        assert accepts == grant["client"]["token_endpoint_auth_method"]

    in_loop(story)


@pytest.mark.parametrize(("own", "accepts"), [({}, "none"), (OWN, POST)])
def test_a_registered_secret_is_not_sent_where_no_method_for_it_is_listed(
    own: dict[str, str], accepts: str
) -> None:
    """The client works as a public one. The admin's secret is sent: it was given for that."""

    async def story(internet: Internet) -> None:
        internet.registered = {"client_secret": "hidden"}
        internet.auth_methods, internet.accepts = ["none"], accepts
        await granted(internet, **own)
        assert 1 == len(internet.token_requests)

    in_loop(story)


@pytest.mark.parametrize("secret", [None, "hidden"])
def test_a_client_that_is_registered_as_public_sends_no_secret(secret: str | None) -> None:
    """The method of its registration counts, whatever else the response has."""

    async def story(internet: Internet) -> None:
        internet.registered = {"token_endpoint_auth_method": "none", "client_secret": secret}
        internet.auth_methods, internet.accepts = [POST, "none"], "none"
        await granted(internet)
        assert 1 == len(internet.token_requests)

    in_loop(story)
