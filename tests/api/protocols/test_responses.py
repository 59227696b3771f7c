"""Requests that `/v1/responses` refuses, and the shape of its errors."""

from base64 import b64encode
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from arkloop.api.http import idempotency as replays
from arkloop.shared.events.types import ToolCallRequested
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.idempotency import Scope
from arkloop.shared.storage.tables.files import files
from tests.clients import Register, User, error_of
from tests.contents import png
from tests.full_disk import full_disk
from tests.stored_runs import StoredRuns

UNKNOWN = "resp_01a20e814d93779bb068b0852a03871d"
KEY = {"Idempotency-Key": "k"}
ASK = {"model": "scripted", "input": "Hello", "background": True}
#: The persona's own tools, as clients may declare them.
SERVER = {"type": "mcp", "server_label": "arkloop", "server_url": "http://127.0.0.1:8080"}


def refused(response: TestResponse) -> tuple[int, str | None, str]:
    """Return status, parameter and code of an error, and check its shape."""
    assert response.json is not None, response.text
    assert {"error"} == set(response.json)
    error = response.json["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert error["message"] and error["type"]
    return response.status_code, error["param"], error["code"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": "nothing-of-that-name"}, "model"),
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["Hello"]}, "input[0]"),
        ({"input": [{"role": "developer", "content": "Be brief."}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]"),
        ({"input": [{"role": "assistant", "content": "Hi"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"previous_response_id": UNKNOWN}, "previous_response_id"),
        ({"store": False}, "store"),
        ({"truncation": "disabled"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"include": ["reasoning.encrypted_content"] * 2}, "include"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"mode": "x"}}, "reasoning.mode"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "two words"}]}, "tools"),
        ({"tools": [{"type": "mcp", "server_label": "docs"}]}, "tools[0].server_label"),
        ({"tools": [{**SERVER, "headers": {"a": "b"}}]}, "tools[0].headers"),
        ({"tools": [{**SERVER, "require_approval": "never"}]}, "tools[0].require_approval"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"instructions": 7}, "instructions"),
        ({"nonsense": True}, "nonsense"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_parameter_that_is_not_supported_is_named(
    alice: User, fields: dict[str, Any], param: str
) -> None:
    """A bad request gets 400 with the parameter, as OpenAI's clients read it."""
    status, found, code = refused(alice.post("/v1/responses", json={**ASK, **fields}))

    assert (400, param) == (status, found)
    assert code in ("validation.error", "model_not_found")


def test_errors_of_a_function_name_its_place_among_all_tools(alice: User) -> None:
    """The declaration of a server in front of it counts, too."""
    tools = [SERVER, {"type": "function", "name": "two words"}]

    response = alice.post("/v1/responses", json={**ASK, "tools": tools})

    assert (400, "tools", "validation.error") == refused(response)
    assert "[1].name must" in response.text


@pytest.mark.parametrize("include", [[], ["reasoning.encrypted_content"]])
def test_values_that_change_nothing_are_accepted(alice: User, include: list[str]) -> None:
    """What SDKs send by default, and what happens anyway, is no reason to refuse a request."""
    defaults = {"store": True, "truncation": "auto", "service_tier": "auto", "include": include}
    fields = {**defaults, "conversation": None, "tools": [], "text": {"format": {"type": "text"}}}
    response = alice.post("/v1/responses", json={**ASK, **fields})

    assert 200 == response.status_code and response.json
    assert "queued" == response.json["status"]


@pytest.mark.parametrize("query", ["", "&stream=true"])
def test_a_response_is_retrieved_with_what_its_request_includes(
    alice: User, stored: StoredRuns, query: str
) -> None:
    """The SDK sends the list under this name."""
    made = (alice.post("/v1/responses", json=ASK).json or {})["id"]
    stored.finish(stored.held(UUID(made.removeprefix("resp_"))))
    path, known = f"/v1/responses/{made}?include[]=", "reasoning.encrypted_content"

    assert 200 == alice.get(f"{path}{known}{query}").status_code
    for other in ("message.output_text.logprobs", f"{known}&include[]=x"):
        response = alice.get(f"{path}{other}{query}")
        assert (400, "include[]", "validation.error") == refused(response)


def test_the_server_of_the_persona_s_tools_may_be_declared(alice: User) -> None:
    """The OpenAI Agents SDK gives approvals for declared servers only; it is no tool of the run."""
    tools = [{**SERVER, "require_approval": "always", "allowed_tools": None}, SERVER]
    response = alice.post("/v1/responses", json={**ASK, "tools": tools})

    assert 200 == response.status_code and response.json, response.text
    assert [] == response.json["tools"]


def test_endpoints_of_others_do_not_exist(alice: User) -> None:
    """`compact` is no response to which a method does not apply: 404, and not 405."""
    for method, path in (("post", "compact"), ("get", "compact"), ("post", "input_tokens")):
        response = getattr(alice, method)(f"/v1/responses/{path}")
        assert (404, None, "http.not_found") == refused(response), path


def test_other_methods_are_refused_in_the_shape(alice: User) -> None:
    """Only paths of this API have it: those that begin alike keep the service's own."""
    listed = alice.get("/v1/responses")
    deleted = alice.delete(f"/v1/responses/{UNKNOWN}")

    assert [(405, None, "http.method_not_allowed")] * 2 == [refused(listed), refused(deleted)]
    assert "POST" in listed.headers["Allow"]
    for path in ("/v1/responses-of-others", "/v1/nothing"):
        assert (404, "http.not_found") == error_of(alice.get(path))
    assert (405, "http.method_not_allowed") == error_of(alice.delete("/v1/runs"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"max_output_tokens": 9}, "max_output_tokens"),
        ({"instructions": "Be brief."}, "instructions"),
    ],
)
def test_a_parameter_that_the_persona_does_not_allow_is_named(
    alice: User, fields: dict[str, Any], param: str
) -> None:
    """The name is that of the request, and not that of the override."""
    alice.post("/v1/personas", json={"key": "fixed", "overrides": []})

    response = alice.post("/v1/responses", json={**ASK, "model": "fixed", **fields})

    assert (400, param, "validation.error") == refused(response)
    assert response.json["error"]["message"].startswith(f"{param}: the persona")


def test_a_request_whose_key_is_in_use_may_be_repeated(
    alice: User, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDKs are not kept from it: the 409 ends with the first request."""
    monkeypatch.setattr(replays, "WAIT_SECONDS", 0)
    scope = Scope(org_id=alice.org_id, actor_id=alice.id, path="/v1/responses", key="k")
    with connections.transaction() as tx:
        assert idempotency.claim(tx, scope)
        early = alice.post("/v1/responses", ASK, headers=KEY)

    assert (409, None, "idempotency.in_progress") == refused(early)
    assert "X-Should-Retry" not in early.headers
    assert 200 == alice.post("/v1/responses", ASK, headers=KEY).status_code


def test_errors_of_all_kinds_have_the_shape(alice: User, register: Register) -> None:
    """Missing tokens, scopes and responses are reported in the shape of OpenAI's API."""
    made = (alice.post("/v1/responses", json=ASK).json or {})["id"]

    unknown = alice.get(f"/v1/responses/{UNKNOWN}")
    assert (404, None, "responses.not_found") == refused(unknown)
    assert (404, None, "responses.not_found") == refused(alice.get("/v1/responses/resp_7"))
    assert (404, None, "responses.not_found") == refused(alice.get(f"/v1/responses/{made}_1"))
    assert (404, None, "responses.not_found") == refused(register().get(f"/v1/responses/{made}"))
    cancel = register().post(f"/v1/responses/{made}/cancel")
    assert (404, None, "responses.not_found") == refused(cancel)
    nobody = alice.with_token("al_wrong").post("/v1/responses", json=ASK)
    assert (401, None, "invalid_api_key") == refused(nobody)
    assert "false" == nobody.headers["X-Should-Retry"]
    reader = alice.api_key("data.runs.read")
    assert (403, None, "auth.forbidden") == refused(reader.post("/v1/responses", json=ASK))
    text = alice.call("POST", "/v1/responses", data="Hello", content_type="text/plain")
    assert (415, None, "http.unsupported_media_type") == refused(text)
    query = alice.get(f"/v1/responses/{made}?starting_after=1")
    assert (400, "starting_after", "validation.error") == refused(query)


def test_a_response_that_its_run_has_not_reached_does_not_exist(
    alice: User, stored: StoredRuns
) -> None:
    """Its stream is refused as well as its object."""
    made = (alice.post("/v1/responses", json=ASK).json or {})["id"]
    run_id = UUID(made.removeprefix("resp_"))
    stored.finish(stored.held(run_id))

    for query in ("", "?stream=true", "?stream=true&starting_after=3"):
        response = alice.get(f"/v1/responses/{made}_99{query}")
        assert (404, None, "responses.not_found") == refused(response), query


def test_to_cancel_a_response_that_does_not_exist_leaves_its_run_alone(
    alice: User, stored: StoredRuns
) -> None:
    """The response is looked for first."""
    made = (alice.post("/v1/responses", json=ASK).json or {})["id"]

    response = alice.post(f"/v1/responses/{made}_1/cancel")

    assert (404, None, "responses.not_found") == refused(response)
    assert stored.held(UUID(made.removeprefix("resp_")))


def test_a_queued_response_can_be_read_and_cancelled(alice: User) -> None:
    """Both spellings of a cancel end a response that has not been started."""
    for spelling in ("/cancel", ":cancel"):
        made = alice.post("/v1/responses", json=ASK).json or {}
        assert made == alice.get(f"/v1/responses/{made['id']}").json
        cancelled = alice.post(f"/v1/responses/{made['id']}{spelling}").json or {}
        assert ("cancelled", made["id"]) == (cancelled["status"], cancelled["id"])


def test_data_within_a_message_is_stored(alice: User) -> None:
    """A data URL or `file_data` becomes a file of the org."""
    url = f"data:image/png;base64,{b64encode(png()).decode()}"
    parts = [
        {"type": "input_file", "filename": "a.txt", "file_data": "SGVsbG8="},
        {"type": "input_image", "image_url": url},
    ]
    earlier = {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    items = [earlier, {"role": "user", "content": parts}]
    made = alice.post("/v1/responses", json={**ASK, "input": items}).json or {}
    [thread] = alice.get("/v1/threads").json or []
    [said] = alice.get(f"/v1/threads/{thread['id']}/messages").json or []
    text, *files = said["content"]
    stored = [alice.get(f"/v1/files/{p['file_id']}/content").data for p in files]

    assert "queued" == made["status"]
    assert ["text", "file", "image"] == [part["type"] for part in (text, *files)]
    assert [b"Hello", png()] == stored


def test_data_of_a_request_that_is_sent_again_is_stored_once(
    alice: User, connections: Connections
) -> None:
    """Data of a request that is refused is not stored at all."""
    file = {"type": "input_file", "file_data": "SGVsbG8="}
    body = {**ASK, "input": [{"role": "user", "content": [file]}]}
    sent = [alice.post("/v1/responses", json=body, headers=KEY).json["id"] for _ in range(2)]
    for fields, headers in (({"model": "nothing"}, {}), ({"metadata": {"a": "b"}}, KEY)):
        assert (
            400 <= alice.post("/v1/responses", json={**body, **fields}, headers=headers).status_code
        )

    assert sent[0] == sent[1]
    assert 1 == kept_files(connections, alice)


def kept_files(connections: Connections, user: User) -> int | None:
    """Count the files of the user's org that do not expire."""
    with connections.reading() as sql:
        of_org = (files.c.org_id == user.org_id) & files.c.stored_at.is_not(None)
        return sql.scalar(select(func.count()).where(of_org, files.c.expires_at.is_(None)))


@pytest.mark.parametrize("by_id", [True, False])
def test_an_answer_behind_data_that_is_sent_again_counts_once(
    alice: User, stored: StoredRuns, connections: Connections, by_id: bool
) -> None:
    """Its file is another one each time, so the content of the request is compared."""
    run_id = stored.create(UUID(alice.thread()))
    claim = stored.held(run_id)
    stored.park(claim, new_id())
    asked = {"role": "assistant", "id": f"msg_{run_id.hex}_{claim.last_seq + 1}", "content": "?"}
    shown = {"role": "user", "content": [{"type": "input_file", "file_data": "SGVsbG8="}]}
    answer = [shown, {"role": "user", "content": "The second one."}]
    body = {**ASK, "input": answer if by_id else [asked, *answer]}
    if by_id:
        body["previous_response_id"] = f"resp_{run_id.hex}"

    sent = [alice.post("/v1/responses", json=body) for _ in range(2)]

    ids = [(one.json or {}).get("id") for one in sent]
    assert 2 * [f"resp_{run_id.hex}_1"] == ids, [one.text for one in sent]
    assert [None, "true"] == [one.headers.get("Idempotency-Replayed") for one in sent]
    assert 1 == len(alice.get("/v1/runs").json or [])
    assert 1 == kept_files(connections, alice)


def test_nothing_is_kept_of_a_message_whose_last_file_cannot_be_stored(
    alice: User, connections: Connections
) -> None:
    """A storage that fails at the second file gets a 503, and the first one is removed."""
    parts = [
        {"type": "input_file", "file_data": b64encode(b"a" * size).decode()}
        for size in (5, 2_000_000)
    ]
    body = {**ASK, "input": [{"role": "user", "content": parts}]}
    with full_disk(1_000_000):
        status, _, code = refused(alice.post("/v1/responses", json=body))

    assert (503, "files.storage_unavailable") == (status, code)
    assert 0 == kept_files(connections, alice)


def test_data_before_an_earlier_response_is_not_stored_again(
    alice: User, stored: StoredRuns, connections: Connections
) -> None:
    """Each step of a loop of tools sends it again; a key for results needs no scope for files."""
    tool = {"type": "function", "name": "t", "parameters": {"type": "object"}}
    file = {"type": "input_file", "file_data": "SGVsbG8="}
    said = {"role": "user", "content": [file]}
    body = {**ASK, "input": [said], "tools": [tool]}
    run_id = UUID(alice.post("/v1/responses", json=body).json["id"].removeprefix("resp_"))
    claim = stored.held(run_id)
    with connections.transaction() as tx:
        claims.begin_tool_call(tx, claim, "c", ResultSource.CLIENT)
    call = {"tool_call_id": "c", "name": "t", "arguments": {}}
    asked = {"kind": "tool_results", "calls": [call]}
    stored.write(claim, ToolCallRequested(**call))
    stored.park(replace(claim, last_seq=stored.last_seq(run_id)), new_id(), **asked)
    output = {"type": "function_call_output", "call_id": "c", "output": "x"}
    called = {"type": "function_call", "id": f"fc_{run_id.hex}_2", "call_id": "c", "name": "t"}
    key = alice.api_key("data.runs.write", "data.runs.read", "data.threads.write")

    sent = key.post("/v1/responses", json={**body, "input": [said, called, output]})

    assert (200, f"resp_{run_id.hex}_1") == (sent.status_code, (sent.json or {}).get("id")), (
        sent.text
    )
    assert 1 == kept_files(connections, alice)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "data:image/png;base64,&"},
        {"type": "input_image", "image_url": "data:image/png,1"},
        {"type": "input_file", "file_data": "SGVsbG8=", "filename": "a/b"},
        {"type": "input_file", "file_data": "AA=="},
        {"type": "input_file"},
    ],
)
def test_data_that_is_no_file_is_refused(alice: User, part: dict[str, Any]) -> None:
    """What is no base64, or of no accepted type, is named by its place."""
    items = [{"role": "user", "content": [part]}]
    status, param, _ = refused(alice.post("/v1/responses", json={**ASK, "input": items}))
    assert (400, "input[0].content[0]") == (status, param)


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_is_sent_again_with_its_key_creates_nothing(
    alice: User, streams: bool
) -> None:
    """An `Idempotency-Key` names the response of the first request, and a header says so."""
    body = {**ASK, "stream": streams}
    first, again = (alice.post("/v1/responses", json=body, headers=KEY) for _ in range(2))
    marks = [answer.headers.get("Idempotency-Replayed") for answer in (first, again)]
    first.close()
    again.close()

    assert [200, 200] == [first.status_code, again.status_code]
    assert [None, "true"] == marks
    if not streams:
        assert (first.json or {})["id"] == (again.json or {})["id"]
    assert 1 == len(alice.get("/v1/runs").json or [])
