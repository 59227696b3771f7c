"""Requests for responses whose messages have images and files."""

from base64 import b64encode
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from arkloop.shared.events.types import MessageDelta, RunError
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.files import files
from tests.api.protocols import late_calls
from tests.api.protocols.said import earlier_of, message_of
from tests.api.protocols.test_responses_input import calling
from tests.clients import User
from tests.contents import PDF, png
from tests.stored_runs import StoredRuns

#: Of every request.
MODEL = {"model": "scripted", "background": True}
FAILED = RunError("worker.crashed", "The worker was lost.", retryable=True)

IMAGE = {
    "type": "input_image",
    "image_url": f"data:image/png;base64,{b64encode(png()).decode()}",
}
FILE = {"type": "input_file", "filename": "a.txt", "file_data": "SGVsbG8="}
QUESTION = {"type": "input_text", "text": "What is this?"}


def user_says(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def newest_message(alice: User) -> Any:
    """Return the content of the newest message of the org's one thread."""
    [thread] = alice.get("/v1/threads").json or []
    *_, said = alice.get(f"/v1/threads/{thread['id']}/messages").json or []
    return said["content"]


def uploaded_pdf(alice: User) -> str:
    form = {"file": (BytesIO(PDF), "a.pdf")}
    made = alice.call("POST", "/v1/files", data=form, content_type="multipart/form-data")
    return str((made.json or {})["id"])


def kept_files(stored: StoredRuns) -> int | None:
    with stored.connections.reading() as sql:
        of_org = (files.c.org_id == stored.actor.org_id) & files.c.expires_at.is_(None)
        return sql.scalar(select(func.count()).where(of_org))


@pytest.mark.parametrize("question", [[QUESTION], "What is this?"])
@pytest.mark.parametrize("continues", [False, True])
def test_files_of_all_new_messages_are_attached_to_the_last(
    stored: StoredRuns, alice: User, continues: bool, question: Any
) -> None:
    """A prompt may be several messages, such as an image and the question about it."""
    shown = [answered(stored, alice)] if continues else []
    items = [*shown, user_says(IMAGE, FILE), {"role": "user", "content": question}]
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    assert 200 == made.status_code, made.text
    *attached, text = newest_message(alice)
    assert ({"type": "text", "text": "What is this?"}, 2) == (text, kept_files(stored))
    contents = [alice.get(f"/v1/files/{part['file_id']}/content").data for part in attached]
    assert (["image", "file"], [png(), b"Hello"]) == ([p["type"] for p in attached], contents)


def test_an_image_by_its_address_is_attached_too(alice: User) -> None:
    """The model sees it as well as one in base64."""
    image = {"type": "input_image", "image_url": "https://example.com/a.png"}
    alice.post("/v1/responses", {**MODEL, "input": [user_says(image), user_says(QUESTION)]})
    assert ["image", "text"] == [part["type"] for part in newest_message(alice)]


def test_a_turn_with_a_file_that_is_tried_again_has_it_once(
    stored: StoredRuns, alice: User
) -> None:
    """The client sends the message again behind the one whose run has failed."""
    turn = user_says(IMAGE, QUESTION)
    made = alice.post("/v1/responses", {**MODEL, "input": [answered(stored, alice), turn, turn]})

    assert 200 == made.status_code, made.text
    assert ["image", "text"] == [part["type"] for part in newest_message(alice)]
    assert 1 == kept_files(stored)


def test_a_turn_with_a_file_may_fail_more_than_once(stored: StoredRuns, alice: User) -> None:
    """The same request is another attempt then; until it fails it counts once."""
    body = {**MODEL, "input": [answered(stored, alice), user_says(FILE, QUESTION)]}

    made = []
    for end in (RunState.FAILED, RunState.CANCELLED, RunState.COMPLETED):
        ids = [(alice.post("/v1/responses", body).json or {}).get("id") for _ in range(2)]
        assert ids[0] == ids[1]
        made += ids
        run_id = UUID(str(ids[0]).removeprefix("resp_"))
        stored.finish(stored.held(run_id), end, error=FAILED if end == "failed" else None)
    last = alice.post("/v1/responses", body)

    assert 3 == len(set(made))
    assert (made[-1], "true") == ((last.json or {})["id"], last.headers["Idempotency-Replayed"])
    assert 3 == kept_files(stored)


def test_files_of_a_conversation_elsewhere_are_noted(stored: StoredRuns, alice: User) -> None:
    """The model reads that conversation as text, so its files are not stored."""
    unnamed = {"type": "input_file", "file_data": "SGVsbG8="}
    items = [
        user_says(IMAGE, FILE, unnamed, QUESTION),
        {"role": "assistant", "content": "A cat."},
        user_says({"type": "input_text", "text": "Which one?"}),
    ]
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    noted = "User: [image]\n[file: a.txt]\n[file]\nWhat is this?"
    assert [noted, "Assistant: A cat."] == earlier_of(alice, made)
    assert (["text"], 0) == ([p["type"] for p in newest_message(alice)], kept_files(stored))


@pytest.mark.parametrize(
    ("part", "note"),
    [
        ({"type": "input_image", "image_url": "data:image/png;base64,SGVsbG8"}, "[image]"),
        ({**FILE, "file_data": b64encode(b"a" * (1024 * 1024 + 1)).decode()}, "[file: a.txt]"),
        ({"type": "input_image", "file_id": "PDF"}, "[image: PDF]"),
        ({"type": "input_file", "file_id": "MISSING"}, "[file: MISSING]"),
    ],
    ids=["malformed", "too long", "of another kind", "missing"],
)
def test_a_file_that_was_refused_does_not_block_its_conversation(
    stored: StoredRuns, alice: User, part: Any, note: str
) -> None:
    """The client keeps the message, and sends it in front of the next one."""
    ids = {"PDF": uploaded_pdf(alice), "MISSING": str(new_id())}
    part = {name: ids.get(value, value) for name, value in part.items()}
    for name, file_id in ids.items():
        note = note.replace(name, file_id)
    shown, refused = answered(stored, alice), user_says(part)

    def send(*items: Any) -> TestResponse:
        return alice.post("/v1/responses", {**MODEL, "input": list(items)})

    first = send(shown, refused)
    made = send(shown, refused, user_says(IMAGE), user_says(QUESTION))

    assert [400, 200] == [first.status_code, made.status_code], made.text
    assert [f"User: {note}"] == earlier_of(alice, made)
    assert ["image", "text"] == [part["type"] for part in newest_message(alice)]
    assert 2 == kept_files(stored)


PDF_URL = f"data:application/pdf;base64,{b64encode(PDF).decode()}"
AS_FILE = {"type": "input_file", "file_data": PDF_URL}
AS_IMAGE = {"type": "input_image", "image_url": PDF_URL}


@pytest.mark.parametrize(
    ("items", "sent"),
    [
        ([user_says(AS_IMAGE), user_says(AS_FILE)], ["text", "file"]),
        ([user_says(AS_IMAGE), user_says(AS_FILE), user_says(QUESTION)], ["file", "text"]),
        ([user_says(AS_IMAGE, {**AS_IMAGE, "detail": "low"}), user_says(QUESTION)], ["text"]),
    ],
    ids=["in the last message", "in an earlier one", "not at all"],
)
def test_data_that_was_refused_in_another_part_is_sent(
    stored: StoredRuns, alice: User, items: list[Any], sent: list[str]
) -> None:
    """A client may correct the type of a part; what no part has as its file is not kept."""
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    assert 200 == made.status_code, made.text
    assert sent == [part["type"] for part in newest_message(alice)]
    assert sent.count("file") == kept_files(stored)


def test_the_newest_files_are_sent_where_not_all_fit(stored: StoredRuns, alice: User) -> None:
    """A message has at most 20 parts; the others are mentioned, and not stored."""
    older = user_says(*[{**FILE, "filename": f"{number}.txt"} for number in range(12)])
    newer = user_says(*[{**FILE, "filename": f"{number}.txt"} for number in range(12, 22)])
    items = [answered(stored, alice), older, newer, user_says(QUESTION)]
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    assert 200 == made.status_code, made.text
    *attached, _ = newest_message(alice)
    names = [(alice.get(f"/v1/files/{part['file_id']}").json or {})["name"] for part in attached]
    assert [f"{number}.txt" for number in range(3, 22)] == names
    [line] = earlier_of(alice, made)
    assert line.startswith("User: [file: 0.txt]\n[file: 1.txt]\n[file: 2.txt]\n[file: 0")
    assert 19 == kept_files(stored)


@pytest.mark.parametrize("answer", [[], [{"role": "assistant", "content": "No."}]])
def test_a_message_with_too_many_parts_is_refused_as_the_last_one_alone(
    stored: StoredRuns, alice: User, answer: list[dict[str, Any]]
) -> None:
    """Clients keep it, and send it in front of each further one."""
    lines = [{"type": "input_text", "text": f"{number}."} for number in range(21)]
    items = [user_says(QUESTION), user_says(*lines, IMAGE), *answer, user_says(QUESTION)]
    refused, made = (
        alice.post("/v1/responses", {**MODEL, "input": sent}) for sent in (items[:2], items)
    )

    assert 400 == refused.status_code and "input[1].content: must have 1 to 20" in refused.text
    assert 200 == made.status_code, made.text
    assert "User: 0.\n1.\n2." in "\n".join(earlier_of(alice, made))
    sent = [["image", "text"], ["text"]][len(answer)]
    assert (sent, 1 - len(answer)) == (
        [part["type"] for part in newest_message(alice)],
        kept_files(stored),
    )


def test_the_newest_files_are_sent_where_all_have_too_many_bytes(
    stored: StoredRuns, alice: User
) -> None:
    """The files of the last message count first."""
    ids = [uploaded_pdf(alice) for _ in range(4)]
    for file_id, mebibytes in zip(ids, (4, 8, 6, 10), strict=True):
        size = update(files).where(files.c.id == file_id).values(size=mebibytes * 1024 * 1024)
        with stored.connections.transaction() as tx:
            tx.sql.execute(size)
    said = [user_says({"type": "input_file", "file_id": file_id}) for file_id in ids]
    made = alice.post("/v1/responses", {**MODEL, "input": said})

    assert 200 == made.status_code, made.text
    sent = [part.get("file_id") for part in newest_message(alice)]
    assert [None, ids[0], ids[2], ids[3]] == sent
    assert [f"User: [file: {ids[1]}]"] == earlier_of(alice, made)


@pytest.mark.parametrize("scopes", [[], ["data.files.write"]])
def test_a_file_of_an_earlier_message_that_the_key_may_not_send_is_mentioned(
    stored: StoredRuns, alice: User, scopes: list[str]
) -> None:
    """The key requires data.files.write to store it, and data.files.read to refer to it."""
    scopes = ["data.runs.write", "data.runs.read", "data.threads.write", *scopes]
    body = {**MODEL, "input": [user_says(IMAGE), user_says(QUESTION)]}
    made = alice.api_key(*scopes).post("/v1/responses", body)

    assert 200 == made.status_code, made.text
    assert (["text"], 0) == ([p["type"] for p in newest_message(alice)], kept_files(stored))


def test_files_of_the_last_message_are_sent_or_refused(alice: User) -> None:
    """Only files of earlier messages are mentioned instead."""
    missing = {"type": "input_image", "file_id": str(new_id())}
    refused = alice.post(
        "/v1/responses", {**MODEL, "input": [user_says(IMAGE), user_says(missing)]}
    )
    assert 400 == refused.status_code
    assert "file not found" in refused.text


@pytest.mark.parametrize("question", [[QUESTION], "What is this?"])
def test_files_of_a_message_that_the_thread_has_are_not_sent_again(
    stored: StoredRuns, alice: User, question: Any
) -> None:
    """The message of a run that has failed stays in the history that the model gets."""
    by_address = {"type": "input_image", "image_url": "https://example.com/a.png"}
    pdf = {"type": "input_file", "file_id": uploaded_pdf(alice)}
    items = [answered(stored, alice)]

    def send(*said: dict[str, Any]) -> Any:
        items.extend(said)
        made = alice.post("/v1/responses", {**MODEL, "input": items})
        assert 200 == made.status_code, made.text
        body, content = made.json or {}, newest_message(alice)
        run_id = UUID(body["id"].removeprefix("resp_"))
        stored.finish(stored.held(run_id), RunState.FAILED, error=FAILED)
        kinds = ["text"] if isinstance(content, str) else [part["type"] for part in content]
        return kinds, message_of(alice, made)

    first, _ = send(user_says(IMAGE, by_address), user_says(pdf, QUESTION))
    second, noted = send({"role": "user", "content": question})
    third, _ = send(user_says(FILE), user_says(QUESTION))
    fourth, _ = send(user_says(QUESTION))

    assert ["image", "image", "file", "text"] == first
    assert (["text"], ["file", "text"], ["text"]) == (second, third, fourth)
    assert "User: [image]\n  [image: https://example.com/a.png]\nUser: [file: 0" in noted
    assert 3 == kept_files(stored)


def test_another_file_than_the_one_of_a_failed_run_is_sent(stored: StoredRuns, alice: User) -> None:
    """Files in base64 are compared by their content."""
    other = {**IMAGE, "image_url": f"data:image/png;base64,{b64encode(png(0)).decode()}"}
    items = [answered(stored, alice), user_says(IMAGE)]
    made = alice.post("/v1/responses", {**MODEL, "input": items})
    run_id = UUID((made.json or {})["id"].removeprefix("resp_"))
    stored.finish(stored.held(run_id), RunState.FAILED, error=FAILED)
    items += [user_says(other), user_says(QUESTION)]
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    assert 200 == made.status_code, made.text
    [image, _] = newest_message(alice)
    assert png(0) == alice.get(f"/v1/files/{image['file_id']}/content").data


@pytest.mark.parametrize("shows_calls", [False, True])
def test_files_in_outputs_of_functions_are_mentioned(
    stored: StoredRuns, alice: User, shows_calls: bool
) -> None:
    """An output that were refused would leave the run waiting, and block its conversation."""
    run_id, calls = calling(stored, alice, "c", "d")
    linked = {"type": "input_image", "image_url": "https://example.com/a.png"}
    contents = ([QUESTION, IMAGE], [FILE, linked])
    outputs = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": content}
        for call, content in zip(calls, contents, strict=True)
    ]
    body = {**MODEL, "previous_response_id": f"resp_{run_id.hex}", "input": outputs}
    if shows_calls:  # those in front of the last call are among the items that the server has
        items = [item for pair in zip(calls, outputs, strict=True) for item in pair]
        body = {**MODEL, "input": items}

    for _ in range(2):
        made = alice.post("/v1/responses", body)
        assert f"resp_{run_id.hex}_1" == (made.json or {}).get("id"), made.text
    texts = late_calls.outputs(stored, run_id)
    assert "What is this?\n[image: without a name]" == texts["c"]
    assert "[file: a.txt]\n[image: https://example.com/a.png]" == texts["d"]


def answered(stored: StoredRuns, alice: User) -> dict[str, Any]:
    """Create a run that says something, and return that item of its response."""
    run_id = stored.create(UUID(alice.thread()))
    claim = stored.held(run_id)
    stored.write(claim, MessageDelta("Hello."))
    stored.finish(claim)
    [item] = (alice.get(f"/v1/responses/resp_{run_id.hex}").json or {})["output"]
    assert isinstance(item, dict)
    return item
