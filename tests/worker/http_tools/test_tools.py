"""HTTP tools as tools of a run: signed requests, results, repetitions, and what stays secret."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.catalog import http_tools
from arkloop.shared.config import Settings
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.security import exchange
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.http_tools import tools
from arkloop.worker.http_tools.tools import tools_of
from arkloop.worker.tools import CallInfo, ResultPending, Tool, ToolFailed
from tests.clients import User
from tests.closed_port import closed_port
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually
from tests.worker.recorded_run import RUN

INFO = CallInfo.of(replace(RUN, end_user_id="u1", metadata={"plan": "pro"}), "call")
CANARY = "canary-7d21"
IN_ADDRESS = "word-of-an-address"  # which the org sees; it is no secret in the database
UNKNOWN = "The call may have taken effect."


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("127.0.0.0/8",))


@pytest.fixture
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply({"output": "ok"})) as made:
        yield made


#: `made(**fields)` → the tool as a run has it, and its signing secret.
Made = Callable[..., tuple[Tool, str]]


@pytest.fixture
def made(connections: Connections, alice: User, receiver: ToolReceiver) -> Made:
    def make(**fields: Any) -> tuple[Tool, str]:
        given = {
            "name": "refund",
            "description": "Refund an order.",
            "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}},
            "url": receiver.url,
            "idempotent": False,
            "timeout_seconds": 20.0,
            **fields,
        }
        with connections.transaction() as tx:
            row, secret = http_tools.create(tx, alice.org_id, **given)
        return tools_of(connections, alice.org_id, [row.name])[row.name], secret

    return make


def call(tool: Tool, stop: StopSignal | None = None, **arguments: Any) -> str:
    tool.check(arguments)
    result = tool(stop or StopSignal(), INFO, arguments)
    assert isinstance(result, str)
    return result


def failure(tool: Tool) -> str:
    with pytest.raises(ToolFailed) as raised:
        call(tool)
    return str(raised.value)


# ---- the request ---------------------------------------------------------------------


def test_a_call_is_one_signed_post_with_the_identity(receiver: ToolReceiver, made: Made) -> None:
    """The receiver verifies it and learns what is called, with which arguments, for whom."""
    tool, secret = made(headers={"X-Team": CANARY})

    assert "ok" == call(tool, order=7)

    [request] = receiver.received
    assert request.is_signed_by(secret)
    assert not request.is_signed_by("whsec_" + "A" * 43 + "=")
    assert ("/tool", "application/json") == (request.path, request.headers["Content-Type"])
    assert "tool.call" == request.message["type"]
    assert {"name": "refund", "arguments": {"order": 7}, **INFO.wire()} == request.data
    assert INFO.idempotency_key == request.headers["webhook-id"]
    assert INFO.headers() == {name: request.headers[name] for name in INFO.headers()}
    assert CANARY == request.headers["X-Team"]


def test_a_replaced_secret_is_valid_for_its_overlap(
    connections: Connections, alice: User, receiver: ToolReceiver, made: Made
) -> None:
    """A run that has the tool already signs by both secrets, and by the new one alone after."""
    tool, old = made()
    tool_id = _id_of(connections, alice, "refund")

    with connections.transaction() as tx:
        _, new = http_tools.rotate(tx, alice.org_id, tool_id, 60)
    call(tool)
    with connections.transaction() as tx:
        _, newest = http_tools.rotate(tx, alice.org_id, tool_id, 0)
    call(tool)

    signed_by = [
        [request.is_signed_by(secret) for secret in (old, new, newest)]
        for request in receiver.received
    ]
    assert [[True, True, False], [False, False, True]] == signed_by


def test_a_tool_that_was_deleted_is_not_called(
    connections: Connections, alice: User, receiver: ToolReceiver, made: Made
) -> None:
    """A run that has the tool already reports the deletion to the model; later runs lack it."""
    tool, _ = made()
    with connections.transaction() as tx:
        http_tools.remove(tx, alice.org_id, _id_of(connections, alice, "refund"))

    assert "Not called: the tool 'refund' was deleted." == failure(tool)
    assert ([], {}) == (receiver.received, tools_of(connections, alice.org_id, ["refund"]))


def test_a_changed_address_applies_to_runs_that_have_the_tool(
    connections: Connections, alice: User, receiver: ToolReceiver, made: Made
) -> None:
    """A call uses the address of now."""
    tool, _ = made(url=receiver.url + "/old")
    with connections.transaction() as tx:
        tool_id = _id_of(connections, alice, "refund")
        http_tools.change(tx, alice.org_id, tool_id, {"url": receiver.url + "/new"})

    call(tool)

    assert ["/tool/new"] == [request.path for request in receiver.received]


def test_a_private_address_is_refused(
    connections: Connections, receiver: ToolReceiver, made: Made
) -> None:
    """An address inside the operator's network is called only where the operator allows it."""
    tool, _ = made()
    allowed = connections.settings
    connections.settings = replace(allowed, allowed_networks=())
    try:
        refused = failure(tool)
    finally:
        connections.settings = allowed

    assert refused.startswith("Not called: The address is not on the public network.")
    assert [] == receiver.received


# ---- the response --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "output"),
    [
        (Reply({"output": "42", "is_error": False}), "42"),
        (Reply({"output": {"b": 1, "a": [None]}}), '{"b":1,"a":[null]}'),
        (Reply({"output": "x", "more": 1}), '{"output": "x", "more": 1}'),
        (Reply({"balance": 3}), '{"balance": 3}'),
        (Reply("plain", content_type="text/plain"), "plain"),
        (Reply(b"not json"), "not json"),
        (Reply(b"", content_type="text/plain", status=204), ""),
    ],
)
def test_a_successful_response_is_the_result(
    receiver: ToolReceiver, made: Made, reply: Reply, output: str
) -> None:
    """`output` of a result, or else the whole text of the body, is what the model reads."""
    receiver.answer = lambda _: reply

    assert output == call(made()[0])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"output": "No such order.", "is_error": True}), "No such order."),
        (Reply({"output": "Not yours."}, status=403), "Not yours."),
        (Reply({"error": CANARY}, status=422), "The tool responded with HTTP status 422."),
        (Reply(CANARY, 500, "text/html"), f"The tool responded with HTTP status 500. {UNKNOWN}"),
        (Reply({}, status=429), "The tool responded with HTTP status 429."),
        (
            Reply({}, 302, headers=(("Location", "http://169.254.169.254/"),)),
            "HTTP status 302: redirects of tools are not followed.",
        ),
        (
            Reply({"output": "x", "is_error": "no"}),
            "The tool's response is not valid: `is_error` must be true or false.",
        ),
        (
            Reply(b"\x89PNG", content_type="image/png"),
            "HTTP status 200, but the response is neither JSON nor text.",
        ),
        (
            Reply(b"x" * 1_048_577),
            "HTTP status 200: The response is longer than 1048576 bytes.",
        ),
        (
            Reply({}, headers=(("Content-Encoding", "gzip"),)),
            "HTTP status 200: The response is compressed although `identity` was requested.",
        ),
        (None, f"{exchange.BROKEN} {UNKNOWN}"),
    ],
)
def test_a_failure_shows_only_what_the_author_wrote_for_the_model(
    receiver: ToolReceiver, made: Made, reply: Reply | None, said: str
) -> None:
    """An error page never reaches the model, and a tool that is not idempotent is called once."""
    receiver.answer = lambda _: reply

    assert said == failure(made()[0])
    assert 1 == len(receiver.received)


def test_an_accepted_call_has_its_result_later(receiver: ToolReceiver, made: Made) -> None:
    """With 202 the tool promises to send the result over the API."""
    receiver.answer = lambda _: Reply({"output": "ignored"}, status=202)
    tool, _ = made()

    with pytest.raises(ResultPending):
        call(tool)

    assert ResultSource.HTTP == tool.result_from


# ---- repetitions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", [None, Reply({}, 503), Reply({}, 429, headers=(("Retry-After", "0"),))]
)
def test_an_idempotent_call_is_repeated_under_its_key(
    receiver: ToolReceiver, made: Made, first: Reply | None
) -> None:
    """After a lost connection or a request to try again, the same key is sent once more."""
    replies = iter([first, Reply({"output": "done"})])
    receiver.answer = lambda _: next(replies)

    tool, secret = made(idempotent=True)

    assert "done" == call(tool)
    assert [INFO.idempotency_key] * 2 == [r.headers["webhook-id"] for r in receiver.received]
    assert all(request.is_signed_by(secret) for request in receiver.received)


def test_a_request_that_no_server_got_is_repeated(
    receiver: ToolReceiver, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is being restarted is reached, even by a tool that is not idempotent."""
    port = free_port()
    tool, _ = made(url=f"http://127.0.0.1:{port}/tool")
    monkeypatch.setattr(tools, "PAUSES", (0.05,))
    later = threading.Timer(0.5, lambda: started.append(ToolReceiver(receiver.answer, port)))
    started: list[ToolReceiver] = []
    later.start()

    assert "ok" == call(tool)

    later.join()  # the call may come before it has noted the server
    [server] = started
    assert 1 == len(server.received)
    server.__exit__()


def test_an_unreachable_server_is_reported_at_the_end_of_the_calls_time(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model reads that nothing has happened, and no address."""
    monkeypatch.setattr(tools, "PAUSES", (0.01,))
    began = time.monotonic()

    tool, _ = made(url=f"http://127.0.0.1:{closed_port()}/{IN_ADDRESS}", timeout_seconds=0.6)
    assert "Not called: The server is unreachable." == failure(tool)

    assert time.monotonic() - began > 0.5


def test_a_request_that_the_server_may_have_got_is_repeated_five_times(
    receiver: ToolReceiver, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much time is left: a server that cannot take it is not kept busy."""
    monkeypatch.setattr(tools, "PAUSES", (0.01,))
    receiver.answer = lambda _: Reply({}, 503)

    assert "The tool responded with HTTP status 503." == failure(made(idempotent=True)[0])

    assert 1 + tools.MAX_REPETITIONS == len(receiver.received)


def test_a_server_that_asks_for_more_time_than_there_is_fails_the_call(
    receiver: ToolReceiver, made: Made
) -> None:
    """A pause that would exceed the call's time is not made."""
    receiver.answer = lambda _: Reply({}, 503, headers=(("Retry-After", "3600"),))

    said = failure(made(idempotent=True)[0])

    assert "The tool responded with HTTP status 503." == said


@pytest.mark.parametrize(
    ("first", "status", "unknown"), [(Reply({}, 503), 503, ""), (None, 429, f" {UNKNOWN}")]
)
def test_the_last_request_to_try_again_is_read(
    receiver: ToolReceiver, made: Made, first: Reply | None, status: int, unknown: str
) -> None:
    """The model reads its `output`, and what is unknown since a connection was lost before."""
    wait = Reply({"output": "Closed until 8:00."}, status, headers=(("Retry-After", "3600"),))
    replies = iter([first, wait])
    receiver.answer = lambda _: next(replies)

    assert f"Closed until 8:00.{unknown}" == failure(made(idempotent=True)[0])


# ---- the end of a call ---------------------------------------------------------------


def test_a_slow_tool_ends_with_its_time(receiver: ToolReceiver, made: Made) -> None:
    """After `timeout_seconds` the connection is closed, and the model reads what is unknown."""
    receiver.answer = _hang
    tool, _ = made(timeout_seconds=1.0)
    began = time.monotonic()

    assert f"{exchange.LATE} {UNKNOWN}" == failure(tool)

    assert 1 <= time.monotonic() - began
    assert 1 + tools.GRACE_SECONDS == tool.timeout_seconds
    assert receiver.received[0].hung_up.wait(30)


def test_a_cancel_closes_the_connection(receiver: ToolReceiver, made: Made) -> None:
    """The receiver sees the end of a cancelled call while it works."""
    receiver.answer = _hang
    tool, _ = made()
    stop, stopped = StopSignal(), threading.Event()

    def make() -> None:
        with pytest.raises(CancelRequested):
            call(tool, stop)
        stopped.set()

    threading.Thread(target=make, daemon=True).start()
    eventually(lambda: len(receiver.received) == 1)
    stop.set(CancelRequested())

    assert stopped.wait(30) and receiver.received[0].hung_up.wait(30)
    assert 1 == len(receiver.received)


def _hang(request: Received) -> None:
    request.hung_up.wait(30)


# ---- secrets -------------------------------------------------------------------------


def test_nothing_of_a_failed_call_is_logged_that_is_secret(
    receiver: ToolReceiver, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither headers nor the signing secret, the address or the response are in the log."""
    receiver.answer = lambda _: Reply(CANARY, 500, "text/plain")
    tool, secret = made(headers={"X-Key": CANARY}, url=f"{receiver.url}?key={IN_ADDRESS}")

    with caplog.at_level(logging.DEBUG):
        failure(tool)

    assert not any(word in caplog.text for word in (CANARY, IN_ADDRESS, secret))


def _id_of(connections: Connections, alice: User, name: str) -> UUID:
    with connections.reading() as sql:
        [row] = http_tools.of_names(sql, alice.org_id, [name])
    return UUID(str(row.id))
