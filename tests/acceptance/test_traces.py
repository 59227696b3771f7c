"""Traces of the real processes, as a collector gets them: from requests to the calls of runs."""

import signal
from collections.abc import Callable, Iterator

import pytest

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.ids import new_trace_id, span_id_of
from tests import leaks
from tests.acceptance.test_secrets import used
from tests.caller import Caller, client, script
from tests.collector import Collector, Seen, collector
from tests.system import System, running_system, sealing
from tests.tool_receiver import Reply, ToolReceiver
from tests.waiting import eventually

pytestmark = pytest.mark.processes

SECRET = "s3cret-of-the-collector"
REQUEST = "POST /v1/threads/<id:thread_id>/runs"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def traced(
    new_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
    receiver: Collector,
) -> Iterator[System]:
    """A web server and a worker that export spans."""
    folder = tmp_path_factory.mktemp("traced")
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "ARKLOOP_REQUEST_LOG": "1",
        "ARKLOOP_METRICS_PORT": str(free_port()),
        "ARKLOOP_METRICS_DIR": str(folder / "metrics"),
        **sealing(),
    }
    with running_system(new_database, folder, web=1, environ=environ) as system:
        yield system


@pytest.fixture(scope="module")
def someone(traced: System) -> Caller:
    return traced.caller()


def trace_of(caller: Caller, receiver: Collector, run_id: str, *names: str) -> list[Seen]:
    """Return the spans of the run's trace, once there is one of each of these names.

    The web server and the worker send theirs independently of each other.
    """
    trace_id = caller.get_run(run_id)["trace_id"]

    def there() -> bool:
        found = [span.name for span in receiver.of(trace_id)]
        return all(name in found for name in names)

    eventually(there)
    return receiver.of(trace_id)


def one(spans: list[Seen], name: str) -> Seen:
    """Return the only span of this name."""
    [span] = [span for span in spans if span.name == name]
    return span


def test_a_run_is_one_trace_from_its_request_to_its_calls(
    someone: Caller, receiver: Collector
) -> None:
    """The caller's trace continues: request, creation, claim, attempt, models and tools."""
    trace_id, caller_span = new_trace_id(), "b" * 16
    thread_id = someone.thread(
        script({"tool": "calculator", "args": {"expression": "6*7"}}, {"say": "42"})
    )
    made = someone.http.post(
        f"/v1/threads/{thread_id}/runs",
        json={},
        headers={"traceparent": f"00-{trace_id}-{caller_span}-01"},
    ).json()
    run_id = made["run_id"]
    assert trace_id == made["trace_id"] == someone.ended(run_id)["trace_id"]
    agent = "invoke_agent assistant"
    spans = trace_of(someone, receiver, run_id, REQUEST, agent, "execute_tool calculator")
    request = one(spans, REQUEST)
    created, claimed, attempt = (one(spans, n) for n in ("create run", "claim run", agent))
    chats = [span for span in spans if span.name.startswith("chat ")]
    tool = one(spans, "execute_tool calculator")
    assert [caller_span, request.span_id, created.span_id, claimed.span_id] == [
        span.parent_id for span in (request, created, claimed, attempt)
    ]
    assert {attempt.span_id} == {span.parent_id for span in (*chats, tool)}
    assert [2, 4, 5, 1, 3, 3, 1] == [
        span.kind for span in (request, created, claimed, attempt, *chats, tool)
    ]
    assert not [span for span in spans if span.is_error]
    assert span_id_of(f"{run_id}:call_1_1") == tool.span_id
    assert created.began <= claimed.began <= claimed.ended <= attempt.began
    assert attempt.began <= chats[0].began <= chats[0].ended <= tool.began <= chats[1].began


def test_attributes_are_those_of_the_conventions(someone: Caller, receiver: Collector) -> None:
    """They are those of version 1.41.0, and contain nothing that people, models and tools say."""
    run_id = someone.run(
        {"tool": "calculator", "args": {"expression": "1234567*1"}}, {"say": "the whispered answer"}
    )
    run = someone.ended(run_id)
    agent = "invoke_agent assistant"
    spans = trace_of(someone, receiver, run_id, REQUEST, agent, "execute_tool calculator")
    attempt, tool = one(spans, agent), one(spans, "execute_tool calculator")
    assert {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "assistant",
        "gen_ai.conversation.id": run["thread_id"],
        "arkloop.run.id": run_id,
        "arkloop.org.id": someone.org_id,
        "arkloop.outcome": "completed",
        "arkloop.attempt": 1,
    }.items() <= attempt.attributes.items()
    assert {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "calculator",
        "gen_ai.tool.call.id": "call_1_1",
        "gen_ai.tool.type": "function",
    }.items() <= tool.attributes.items()
    chats = [span for span in spans if span.name.startswith("chat ")]
    for chat in chats:
        assert {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "scripted",
            "gen_ai.request.model": chat.name.removeprefix("chat "),
            "gen_ai.request.stream": True,
            "arkloop.try": 1,
        }.items() <= chat.attributes.items()
        assert 0 < chat.attributes["gen_ai.usage.input_tokens"]
    assert run["usage"]["output_tokens"] == sum(
        chat.attributes["gen_ai.usage.output_tokens"] for chat in chats
    )
    assert ["stop"] == chats[-1].attributes["gen_ai.response.finish_reasons"]
    request = one(spans, REQUEST)
    assert {
        "http.request.method": "POST",
        "http.response.status_code": 201,
        "arkloop.org.id": someone.org_id,
        "arkloop.run.id": run_id,
    }.items() <= request.attributes.items()
    assert ("arkloop-web", "arkloop-worker") == (
        request.resource["service.name"],
        attempt.resource["service.name"],
    )
    assert "test" == attempt.resource["deployment.environment.name"]
    everything = b"".join(receiver.bodies)
    for said in (b"1234567", b"whispered", SECRET.encode(), someone.token.encode()):
        assert said not in everything
    assert f"Bearer {SECRET}" == receiver.headers[0]["authorization"]


def test_failures_have_the_code_that_events_have(someone: Caller, receiver: Collector) -> None:
    """Each try of a call is a span; the run's own has the code of its end."""
    run_id = someone.run({"error": "invalid_request", "times": 9})
    someone.ended(run_id)
    spans = trace_of(someone, receiver, run_id, "invoke_agent assistant")
    failed = [span for span in spans if span.is_error]
    assert {"provider.invalid_request"} == {span.attributes["error.type"] for span in failed}
    assert "invoke_agent assistant" in {span.name for span in failed}
    assert "failed" == one(spans, "invoke_agent assistant").attributes["arkloop.outcome"]


def test_an_http_tool_is_called_in_the_span_of_its_call(
    traced: System, receiver: Collector
) -> None:
    """The `traceparent` that the tool's server gets is that of the exported span."""
    owner = traced.caller()
    with ToolReceiver(lambda _: Reply({"output": "refunded"})) as server:
        tool = {"name": "refund", "description": "Refund.", "url": server.url}
        owner.made("/v1/tools", {**tool, "parameters": {"type": "object"}})
        owner.made("/v1/personas", {"key": "clerk", "tools": ["refund"]})
        run_id = owner.run({"tool": "refund", "args": {}}, {"say": "done"}, persona_id="clerk")
        owner.ended(run_id)
    spans = trace_of(owner, receiver, run_id, "invoke_agent clerk")
    call = one(spans, "execute_tool refund")
    [request] = server.received
    assert f"00-{call.trace_id}-{call.span_id}-01" == request.headers["traceparent"]


def test_the_attempt_of_a_killed_worker_is_in_the_trace(
    someone: Caller, receiver: Collector
) -> None:
    """The recovering worker records it, so that the calls before it keep their parent."""
    run_id = someone.run(
        {"tool": "calculator", "args": {"expression": "1+1"}},
        {"hang": 10},  # its span is exported meanwhile
        {"exit_worker": True, "attempts": 1},
        {"say": "done"},
    )
    trace_id = someone.get_run(run_id)["trace_id"]
    someone.ended(run_id, seconds=90)  # a new worker has to start
    agent = "invoke_agent assistant"
    eventually(lambda: len([s for s in receiver.of(trace_id) if s.name == agent]) == 2)
    spans = receiver.of(trace_id)
    lost, last = sorted((s for s in spans if s.name == agent), key=lambda span: span.began)
    assert ("worker_lost", True) == (lost.attributes["error.type"], lost.is_error)
    assert (False, "completed") == (last.is_error, last.attributes["arkloop.outcome"])
    assert lost.span_id == one(spans, "execute_tool calculator").parent_id
    created = one(spans, "create run")
    assert created.span_id == lost.parent_id
    known = {span.span_id for span in spans}
    assert not [span for span in spans if span.parent_id and span.parent_id not in known]


def test_a_run_that_waited_for_a_person_goes_on_in_its_trace(
    someone: Caller, receiver: Collector
) -> None:
    """Each attempt is a span of its own beside the others, under the creation of the run."""
    run_id = someone.run({"tool": "ask_user", "args": {"question": "Which?"}}, {"say": "that one"})
    someone.until(run_id, "status", "waiting_for_input")
    someone.answer(run_id, "this")
    someone.ended(run_id)
    trace_id = someone.get_run(run_id)["trace_id"]
    agent = "invoke_agent assistant"
    eventually(lambda: len([s for s in receiver.of(trace_id) if s.name == agent]) == 2)
    spans = trace_of(someone, receiver, run_id, REQUEST)
    attempts = [span for span in spans if span.name == agent]
    assert ["waiting", "completed"] == [a.attributes["arkloop.outcome"] for a in attempts]
    claims = {span.span_id: span for span in spans if span.name == "claim run"}
    assert {a.parent_id for a in attempts} == claims.keys()
    assert {one(spans, "create run").span_id} == {claim.parent_id for claim in claims.values()}


def test_what_is_recorded_last_is_sent_before_a_worker_ends(
    traced: System, someone: Caller, receiver: Collector
) -> None:
    """A deploy loses no span: SIGTERM right after a run, and its trace is complete."""
    run_id = someone.run("hello")
    someone.ended(run_id)
    trace_id = someone.get_run(run_id)["trace_id"]
    traced.worker.stop(signal.SIGTERM)
    try:
        assert "invoke_agent assistant" in [span.name for span in receiver.of(trace_id)]
    finally:
        traced.worker.start()
        someone.ended(someone.run("hello"), seconds=90)  # it has to start first


def test_runs_do_not_notice_a_frozen_collector(someone: Caller, receiver: Collector) -> None:
    """Nothing waits for spans."""
    receiver.release.clear()
    try:
        ids = [someone.run("hello") for _ in range(5)]
        assert {"completed"} == {someone.ended(run_id)["status"] for run_id in ids}
    finally:
        receiver.release.set()


def test_no_trace_metric_or_line_of_a_request_has_a_secret(
    traced: System, receiver: Collector
) -> None:
    """Secrets of twelve kinds are used, where they work and where they do not, also in queries."""
    before = len(receiver.bodies)
    with ToolReceiver(lambda _: Reply({"error": "no"}, status=401)) as refusing:
        kinds = used(traced.caller(), refusing, traced)
    port = traced.environ["ARKLOOP_METRICS_PORT"]
    metrics = client(f"http://127.0.0.1:{port}").get("/metrics").content
    names = {"POST /v1/llm-providers", "execute_tool refund"}
    eventually(lambda: names <= {span.name for span in list(receiver.spans)})
    left = b"\n".join((*receiver.bodies[before:], metrics))

    assert len(kinds) >= 12
    assert b"arkloop_" in metrics
    assert [] == [kind for kind, secret in kinds.items() if secret.encode() in left]
    logs = b"".join(log.read_bytes() for log in traced.folder.rglob("*.log"))
    assert b'"route": "/v1/runs"' in logs
    values = [(f"planted {kind}", secret.encode()) for kind, secret in kinds.items()]
    found = leaks.in_logs(traced.folder, values)
    assert [] == [str(leak) for leak in found if leak.kind.startswith("planted")]
