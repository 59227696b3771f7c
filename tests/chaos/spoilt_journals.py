"""Journals that no correct service leads to, each with the invariant that it breaks."""

from collections.abc import Callable
from typing import Any

from tests.chaos.correct_journal import EPOCH, NOT_ENDED, Record, of_kind, post, request, wire
from tests.chaos.told_events import usage

SpoilJournal = Callable[[list[Record]], object]


def _frames(journal: list[Record], run: str = "tools") -> list[Record]:
    return of_kind(journal, "event", run_id=run)


def _drop_a_frame(journal: list[Record]) -> None:
    stream = max(
        {frame["stream"] for frame in _frames(journal)},
        key=lambda name: len(of_kind(journal, "event", stream=name)),
    )
    journal.remove(of_kind(journal, "event", stream=stream)[1])


def _repeat_a_frame(journal: list[Record]) -> None:
    frame = _frames(journal)[5]
    journal.insert(journal.index(frame) + 1, dict(frame))


def _other_bytes(journal: list[Record]) -> None:
    frame = _frames(journal)[3]
    frame["line"] = frame["line"].replace('"data":', '"data": ')


def _wrong_id(journal: list[Record]) -> None:
    frame = _frames(journal, "talk")[0]
    frame["line"] = frame["line"].replace('"seq":1', '"seq":2')


def _no_event(journal: list[Record]) -> None:
    _frames(journal)[0]["line"] = '{"seq":1,"ty'


def _client_skips(journal: list[Record]) -> None:
    of_kind(journal, "stream_open", run_id="tools")[-1]["after_seq"] = 999


def _short_replay(journal: list[Record]) -> None:
    of_kind(journal, "replay", run_id="ask")[1]["lines"].pop()


def _replay_with_a_hole(journal: list[Record]) -> None:
    del of_kind(journal, "replay", run_id="ask")[0]["lines"][4]


def _replay_in_another_order(journal: list[Record]) -> None:
    of_kind(journal, "replay", run_id="ask")[0]["lines"].reverse()


def _more_than_last_seq(journal: list[Record]) -> None:
    for record in of_kind(journal, "run", run_id="talk"):
        record["body"]["last_seq"] = min(5, record["body"]["last_seq"])


def _last_body(journal: list[Record], run: str, **fields: Any) -> None:
    of_kind(journal, "run", run_id=run)[-1]["body"].update(fields)


def _looked_again(journal: list[Record], run: str, **fields: Any) -> None:
    last = of_kind(journal, "run", run_id=run)[-1]
    journal.append({**last, "at": last["at"] + 5, "body": {**last["body"], **fields}})


def _set(journal: list[Record], kind: str, where: Record, **fields: Any) -> None:
    record, *_ = of_kind(journal, kind, **where)
    record.update(fields)


def _accepted_as(journal: list[Record], run: str, **fields: Any) -> None:
    for record in of_kind(journal, "accepted", run_id=run):
        record.update(fields)


def _two_new(journal: list[Record]) -> None:
    record, *_ = of_kind(journal, "accepted", run_id="talk", replayed=False)
    journal.append(dict(record))


def _unknown_in_thread(journal: list[Record]) -> None:
    thread, *_ = of_kind(journal, "messages", thread_id="thread-talk")
    thread["body"].append({"run_id": "who", "role": "assistant", "content": "x", "partial": False})


def _drop(journal: list[Record], kind: str, **where: Any) -> None:
    for record in of_kind(journal, kind, **where):
        journal.remove(record)


def _thread_message(journal: list[Record], thread: str, **fields: Any) -> None:
    record, *_ = of_kind(journal, "messages", thread_id=thread)
    record["body"][-1].update(fields)


def _answer(journal: list[Record], **fields: Any) -> None:
    journal.append({**post(EPOCH + 100, status=200), **fields})


def _nobody_reconnects(journal: list[Record]) -> None:
    for record in of_kind(journal, "stream_open"):
        record["after_seq"] = 0


def _creates_are_refused(journal: list[Record]) -> None:
    for record in of_kind(journal, "answer", status=201)[:5]:
        record.update(status=404, code="threads.not_found")


JOURNALS: list[tuple[str, str, SpoilJournal]] = [
    ("I1", "a frame is missing", _drop_a_frame),
    ("I1", "a frame comes twice", _repeat_a_frame),
    ("I1", "two clients see other bytes", _other_bytes),
    ("I1", "the id is not the seq", _wrong_id),
    ("I1", "half an event", _no_event),
    ("I1", "a follower jumps ahead", _client_skips),
    ("I2", "a replay lacks the end", _short_replay),
    ("I2", "a replay has a hole", _replay_with_a_hole),
    ("I2", "a replay is in another order", _replay_in_another_order),
    ("I2", "somebody saw more than last_seq", _more_than_last_seq),
    ("I3", "the body is not terminal", lambda j: _last_body(j, "talk", **NOT_ENDED)),
    ("I3", "the wrong end date", lambda j: _last_body(j, "talk", failed_at=wire(EPOCH))),
    ("I3", "no end date", lambda j: _last_body(j, "talk", completed_at=None)),
    ("I3", "another status than the event's", lambda j: _last_body(j, "talk", status="failed")),
    ("I3", "the end is in the body alone", lambda j: _last_body(j, "talk", last_seq=9)),
    ("I3", "the message is not the text", lambda j: _thread_message(j, "thread-ask", content="-")),
    ("I3", "a whole message is partial", lambda j: _thread_message(j, "thread-ask", partial=True)),
    ("I4", "the end is taken back", lambda j: _looked_again(j, "talk", **NOT_ENDED)),
    ("I4", "the end changes", lambda j: _looked_again(j, "talk", cost_usd=5)),
    ("I4", "a status of no kind", lambda j: _last_body(j, "talk", status="lost")),
    ("I4", "a phase of another status", lambda j: _last_body(j, "talk", phase="queued")),
    ("I5", "nobody knows the end", lambda j: _drop(j, "run", run_id="talk")),
    ("I5", "it still runs", lambda j: _last_body(j, "talk", **NOT_ENDED)),
    ("I5", "no cancel was sent", lambda j: _drop(j, "cancel_accepted", run_id="unclaimed")),
    ("I6", "one key, two runs", lambda j: _accepted_as(j, "second", key="key-first")),
    ("I6", "two keys, one run", lambda j: _accepted_as(j, "talk", key="k") or _two_new(j)),
    ("I6", "the key is not known again", _two_new),
    ("I6", "a run that no response named", _unknown_in_thread),
    ("I8", "claims without events", lambda j: _last_body(j, "tools", attempt=4)),
    ("I9", "an effect twice", lambda j: j.append(dict(of_kind(j, "effect")[0]))),
    ("I9", "no effect", lambda j: _drop(j, "effect", key="e1")),
    (
        "I12",
        "two answers accepted",
        lambda j: _set(j, "input_accepted", {"request_id": "r1"}, content="Bonn"),
    ),
    (
        "I12",
        "another answer used",
        lambda j: _set(j, "input_accepted", {"request_id": "r2"}, content="Bonn"),
    ),
    (
        "I12",
        "an answer to nothing",
        lambda j: _set(j, "input_accepted", {"request_id": "r2"}, request_id="r9"),
    ),
    ("I13", "a pending input in the end", lambda j: _last_body(j, "ask", pending_input={})),
    ("I15", "a stranger gets it", lambda j: _set(j, "foreign", {}, status=200, body={"a": 1})),
    ("I15", "forbidden, so it exists", lambda j: _set(j, "foreign", {}, status=403)),
    ("I15", "another text", lambda j: _set(j, "foreign", {}, body={"code": "runs.gone"})),
    ("I18", "the body has other usage", lambda j: _last_body(j, "talk", usage=usage(1, 1))),
    ("I18", "the body has another cost", lambda j: _last_body(j, "talk", cost_usd=9)),
    ("I19", "a stream again", lambda j: _set(j, "reconnect_after_end", {}, status=200)),
    ("A1", "a slow answer", lambda j: _answer(j, seconds=6)),
    ("A1", "no answer", lambda j: j.append({**request(EPOCH + 90, "no_answer"), "error": "x"})),
    ("A1", "503 without a fault", lambda j: _answer(j, status=503, retry_after="1")),
    ("A1", "a lost stream", lambda j: _set(j, "stream_end", {"run_id": "ask"}, why="lost")),
    ("A2", "a server error", lambda j: _answer(j, status=500, code="internal.error")),
    ("A2", "503 without Retry-After", lambda j: _answer(j, status=503)),
    ("A2", "a bad gateway", lambda j: _answer(j, status=502)),
    ("A3", "a refusal", lambda j: j.append({"at": EPOCH, "kind": "surprise", "what": "403"})),
    ("NV", "nobody reconnects", _nobody_reconnects),
    ("NV", "creates are refused", _creates_are_refused),
    ("NV", "nothing was accepted", lambda j: _drop(j, "accepted")),
]
