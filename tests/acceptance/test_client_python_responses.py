"""`clients/python` with requests and responses that a transport plays: no service is there."""

import time
from typing import Any

import httpx
import pytest
from arkloop_client import Arkloop, ArkloopError

#: Responses of a proxy, and the message that becomes of each.
FOREIGN = (
    ({"status_code": 403, "text": "Forbidden"}, "Forbidden"),
    ({"status_code": 403, "text": " \n"}, "URL responded with 403 without a text."),
    (
        {"status_code": 301, "headers": {"Location": "https://service/"}, "text": "<p>Moved</p>"},
        "URL responded with 301 and a redirect to https://service/.",
    ),
)
#: That of a hotspot, for any request.
PAGE = {"headers": {"Content-Type": "text/html"}, "text": "<p>Log in"}


def _playing(
    *responses: httpx.Response, patience: float = 5, first_pause: float = 0.01
) -> tuple[Arkloop, list[httpx.Request]]:
    """Return a client to which these responses come, and the requests that it makes."""
    requests: list[httpx.Request] = []
    left = iter(responses)

    def play(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return next(left)

    http = httpx.Client(transport=httpx.MockTransport(play), follow_redirects=True)
    options = {"patience": patience, "first_pause": first_pause}
    return Arkloop("http://service", "token", http=http, **options), requests


@pytest.mark.parametrize("call", ["get", "follow"])
def test_a_limit_that_no_waiting_lifts_is_raised_at_once(call: str) -> None:
    """A 429 without `Retry-After`, such as that of a budget that is used up, is not repeated."""
    shown = {"code": "budget.exhausted", "message": "Nothing is left.", "details": {}}
    client, requests = _playing(httpx.Response(429, json=shown), httpx.Response(204))

    with client, pytest.raises(ArkloopError) as error:
        client.get_run("run") if call == "get" else list(client.follow("run"))

    assert 1 == len(requests)
    assert ("budget.exhausted", None) == (error.value.code, error.value.retry_after)


@pytest.mark.parametrize("call", ["get", "follow"])
def test_retry_after_is_waited_for(call: str) -> None:
    """The next request follows after as many seconds as the service has named."""
    last = httpx.Response(200, json={}) if call == "get" else httpx.Response(204)
    client, requests = _playing(httpx.Response(429, headers={"Retry-After": "1"}), last)

    begun = time.monotonic()
    with client:
        client.get_run("run") if call == "get" else list(client.follow("run"))

    assert 2 == len(requests)
    assert time.monotonic() - begun >= 1


@pytest.mark.parametrize("status", [408, 502, 503, 504, 520, 524, 530])
def test_a_passing_failure_is_repeated_with_its_key(status: int) -> None:
    """A request before it, whose response was lost, may have been carried out."""
    client, requests = _playing(httpx.Response(status), httpx.Response(201, json={}))

    with client:
        client.create("Hello")

    [first, second] = [request.headers["Idempotency-Key"] for request in requests]
    assert first == second


def test_a_retry_after_beyond_the_patience_is_raised_at_once() -> None:
    """The error says how long the caller would have to wait."""
    client, requests = _playing(httpx.Response(429, headers={"Retry-After": "6"}))

    with client, pytest.raises(ArkloopError) as error:
        client.get_run("run")

    assert (1, 6) == (len(requests), error.value.retry_after)


@pytest.mark.parametrize("call", ["get", "follow"])
@pytest.mark.parametrize(("response", "message"), FOREIGN)
def test_an_error_of_a_proxy_says_what_it_is(
    call: str, response: dict[str, Any], message: str
) -> None:
    """Its text is the message; without one, and of a redirect, it is what came from where."""
    client, _ = _playing(httpx.Response(**response))

    with client, pytest.raises(ArkloopError) as error:
        client.get_run("run") if call == "get" else list(client.follow("run"))

    path = "/v1/runs/run" + ("/events" if call == "follow" else "")
    assert ("", response["status_code"]) == (error.value.code, error.value.status)
    assert message.replace("URL", f"http://service{path}") == str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        '{"kind": "Status", "message": "No endpoints.", "reason": "Forbidden", "code": 403}',
        '{"code": 16, "message": "Jwt is missing", "details": []}',
        '{"code": "blocked", "message": null}',
        '{"code": "blocked"}',
        '"code, message"',
        "null",
    ],
)
def test_json_of_another_shape_has_no_code(body: str) -> None:
    """An error of Kubernetes or of a gRPC gateway is no error of the service: it has its text."""
    client, _ = _playing(httpx.Response(403, text=body))

    with client, pytest.raises(ArkloopError) as error:
        client.get_run("run")

    assert ("", {}, body) == (error.value.code, error.value.details, str(error.value))


@pytest.mark.parametrize(
    ("body", "header", "trace_id"),
    [
        ({"code": "internal.error", "message": "No.", "trace_id": "4bf9"}, "a", "4bf9"),
        ({"code": "internal.error", "message": "No."}, "4bf9", "4bf9"),
        ({"code": "internal.error", "message": "No.", "trace_id": 5}, None, None),
        ({"code": "internal.error", "message": "No.", "trace_id": ""}, "4bf9", "4bf9"),
        ({"code": "internal.error", "message": "No."}, "", None),
        ({"error": "blocked"}, "4bf9", "4bf9"),
    ],
)
def test_an_error_has_its_trace(
    body: dict[str, Any], header: str | None, trace_id: str | None
) -> None:
    """The id that an operator finds in the logs is that of the body, else that of the header."""
    headers = {} if header is None else {"X-Trace-Id": header}
    client, _ = _playing(httpx.Response(500, json=body, headers=headers))

    with client, pytest.raises(ArkloopError) as error:
        client.get_run("run")

    trace = "" if trace_id is None else f", trace {trace_id}"
    text = f"No. (500 internal.error{trace})" if "code" in body else '{"error":"blocked"}'
    assert (trace_id, text) == (error.value.trace_id, str(error.value))


@pytest.mark.parametrize("details", ["[1]", '"text"', "null"])
def test_details_are_an_object(details: str) -> None:
    """Details of another kind are left out, since programs look for their fields."""
    body = f'{{"code": "blocked", "message": "No.", "details": {details}}}'
    client, _ = _playing(httpx.Response(403, text=body))

    with client, pytest.raises(ArkloopError) as error:
        client.get_run("run")

    assert ({}, "No. (403 blocked)") == (error.value.details, str(error.value))


@pytest.mark.parametrize(
    ("options", "seen"), [({}, [1, 2]), ({"pings": True}, [None, 1, None, None, 2])]
)
def test_pings_are_yielded_if_asked_for(options: dict[str, bool], seen: list[int | None]) -> None:
    """A relay gets control for each comment of the service, and after a pause between attempts."""
    headers = {"Content-Type": "text/event-stream"}
    cut = ': ok\nretry: 1000\ndata: {"seq": 1, "type": "run.started"}\nid: 1\n\n: ping\n'
    rest = 'data: {"seq": 2, "type": "run.completed"}\nid: 2\n\n'
    client, _ = _playing(*(httpx.Response(200, headers=headers, text=text) for text in (cut, rest)))

    with client:
        got = [event and event["seq"] for event in client.follow("run", **options)]

    assert seen == got


def test_pauses_that_have_grown_do_not_end_a_patience() -> None:
    """Each stream is contact and ends at once; the pauses grow beyond the patience."""
    headers = {"Content-Type": "text/event-stream"}
    streams = [httpx.Response(200, headers=headers, text=": ok\n") for _ in range(4)]
    client, _ = _playing(*streams, httpx.Response(204), patience=0.2, first_pause=0.1)
    begin = time.monotonic()

    with client:
        assert not list(client.follow("run"))

    assert time.monotonic() - begin >= 0.05 + 0.1 + 0.2 + 0.4


@pytest.mark.parametrize(
    ("call", "what"), [("get", "200 and no JSON"), ("follow", "200 and no events")]
)
def test_a_success_that_is_not_the_services_is_raised_at_once(call: str, what: str) -> None:
    """The message says where it came from, and has nothing of what it was."""
    client, _ = _playing(httpx.Response(200, **PAGE))

    with client, pytest.raises(ArkloopError) as error:
        client.get_run("run") if call == "get" else list(client.follow("run"))

    path = "/v1/runs/run" + ("/events" if call == "follow" else "")
    message = f"http://service{path} responded with {what}: the response is not the service's."
    assert ("", f"{message} Check the address.") == (error.value.code, str(error.value))


def test_results_of_any_alphabet_are_sent_as_they_are() -> None:
    """They reach their limits by their length in UTF-8, not by that of escapes."""
    client, requests = _playing(httpx.Response(200, json={}))

    with client:
        client.send_tool_results("run", [{"tool_call_id": "a", "output": "я\u2028🙂"}])

    assert "я\u2028🙂".encode() in requests[0].content
