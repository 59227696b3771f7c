"""The load of a chaos run, against a service that nothing happens to: all must go as planned."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from chaos.clients.event_stream import BrokenAnswer, Chunks, Frame, frames_of
from chaos.clients.load import Load
from chaos.clients.plans import WEIGHTS, plan
from chaos.journal import Entry, Journal
from tests.caller import text_of
from tests.system import System

RUNS = 18
#: One of the two servers sends a ping after 10 s of silence only, and later on a busy machine.
SILENCE_SECONDS = 60
#: The time limit of a request.
TIMEOUT_SECONDS = 60
#: Every kind comes, whatever the seed.
KINDS = dict.fromkeys(WEIGHTS, 1.0)


@pytest.fixture(scope="module")
def load(system: System, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A load that has ended and was looked at; `load.journal` has what was seen."""
    journal = Journal()
    load = Load(
        [web.url for web in system.web],
        system.caller().token,
        journal,
        seed=5,
        sink=tmp_path_factory.mktemp("load") / "sink",
        runs=RUNS,
        concurrency=9,
        kinds=KINDS,
        silence=SILENCE_SECONDS,
        timeout=TIMEOUT_SECONDS,
    )
    load.start()
    assert load.join(150)
    load.finish(deadline=100, other_token=system.caller().token)
    return load


@pytest.fixture(scope="module")
def journal(load: Load) -> dict[str, list[Entry]]:
    """The entries by kind."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in load.journal.entries:
        found[entry["kind"]].append(entry)
    return found


def accepted(journal: dict[str, list[Entry]]) -> dict[str, Entry]:
    """Return the first response of each run."""
    return {entry["run_id"]: entry for entry in reversed(journal["accepted"])}


def events_of(journal: dict[str, list[Entry]], run_id: str) -> list[dict[str, Any]]:
    """Return what any client saw of the run, each number once."""
    seen = {e["id"]: json.loads(e["line"]) for e in journal["event"] if e["run_id"] == run_id}
    return [seen[number] for number in sorted(seen)]


def test_every_run_ends_as_its_plan_expects(journal: dict[str, list[Entry]]) -> None:
    """Each accepted run is looked at in the end, and has one of the statuses of its plan."""
    ended = {entry["run_id"]: entry["body"]["status"] for entry in journal["run"]}
    expected = {run_id: entry["expect"] for run_id, entry in accepted(journal).items()}
    assert set(expected) == set(ended)
    assert [] == [
        (run_id, status)
        for run_id, status in ended.items()
        if status not in expected[run_id]["statuses"]
    ]


def test_the_text_in_the_journal_is_the_expected_one(journal: dict[str, list[Entry]]) -> None:
    """What follows from the frames is what the plan's author knew before."""
    completed = {e["run_id"] for e in journal["run"] if e["body"]["status"] == "completed"}
    texts = {run_id: entry["expect"]["text"] for run_id, entry in accepted(journal).items()}
    known = [run_id for run_id in completed if texts[run_id] is not None]
    assert known
    for run_id in known:
        assert texts[run_id] == text_of(events_of(journal, run_id))


def test_live_frames_are_the_lines_of_every_replay(
    load: Load, journal: dict[str, list[Entry]], system: System
) -> None:
    """Each server replays, byte for byte, what was followed."""
    replays = [(e["run_id"], e["url"], e["lines"]) for e in journal["replay"]]
    assert load.accepted * len(system.web) == len(replays)
    for run_id, _, lines in replays:
        seen = {e["id"]: e["line"] for e in journal["event"] if e["run_id"] == run_id}
        assert lines == [seen[number] for number in sorted(seen)]


def test_every_follower_sees_the_end_and_comes_back_on_the_way(
    load: Load, journal: dict[str, list[Entry]]
) -> None:
    """Streams are cut, resumed after the last whole frame, and end with the run."""
    ends = defaultdict(set)
    for entry in journal["stream_end"]:
        ends[entry["why"]].add(entry["stream"])
    opened = {entry["stream"]: entry for entry in journal["stream_open"]}
    assert set(opened) == ends["cut"] | ends["ended"]
    assert load.summary()["reconnects"] >= load.accepted
    assert any(entry["after_seq"] > 0 for entry in opened.values())
    after = {name: entry["after_seq"] for name, entry in opened.items()}
    for entry in journal["event"]:
        after[entry["stream"]] += 1
        assert after[entry["stream"]] == entry["id"]


def test_each_effect_is_there_once(journal: dict[str, list[Entry]]) -> None:
    """The sink of the tools has the lines of the plans and no others."""
    planned = [key for entry in accepted(journal).values() for key in entry["expect"]["effects"]]
    assert planned
    assert sorted(planned) == sorted(entry["key"] for entry in journal["effect"])


def test_questions_are_answered_once(journal: dict[str, list[Entry]]) -> None:
    """One content is accepted for each question, and the run uses that one."""
    answers = {(e["run_id"], e["request_id"]): e["content"] for e in journal["input_accepted"]}
    assert len(answers) == len(journal["input_accepted"])
    used = {
        (run_id, event["data"]["request_id"]): event["data"]["content"]
        for run_id in accepted(journal)
        for event in events_of(journal, run_id)
        if event["type"] == "run.input_received"
    }
    assert answers
    assert answers == used


def test_cancelled_runs_are_cancelled(journal: dict[str, list[Entry]]) -> None:
    """Each accepted cancel ends a run here, where none ends by itself before."""
    ended = {entry["run_id"]: entry["body"]["status"] for entry in journal["run"]}
    wished = {entry["run_id"] for entry in journal["cancel_accepted"]}
    assert wished
    assert wished == {run_id for run_id, status in ended.items() if status == "cancelled"}


def test_strangers_learn_nothing(journal: dict[str, list[Entry]]) -> None:
    """Another org's token gets for our objects what it gets for none."""
    assert journal["foreign"]
    for entry in journal["foreign"]:
        assert 404 == entry["status"]
        assert (entry["unknown_status"], entry["unknown_body"]) == (entry["status"], entry["body"])


def test_ended_streams_do_not_begin_again(journal: dict[str, list[Entry]]) -> None:
    """A reconnect after the end gets a response that stops it."""
    assert len(accepted(journal)) == len(journal["reconnect_after_end"])
    assert {204} == {entry["status"] for entry in journal["reconnect_after_end"]}


def test_nothing_surprises_the_clients(load: Load, journal: dict[str, list[Entry]]) -> None:
    """No fault, no refusal that was not planned, and the summary counts what the journal has."""
    summary = load.summary()
    assert [] == summary["surprises"]
    assert [] == journal["no_answer"]
    assert summary["events"] == len(journal["event"])
    assert summary["accepted"] == len(accepted(journal))
    assert {"input.stale", "runs.thread_busy", ""} >= {
        entry["code"] for entry in journal["answer"] if entry["path"].endswith(("runs", "input"))
    } - {"threads.not_found", "runs.not_found"}


def test_the_first_runs_are_of_the_given_kinds(system: System, tmp_path: Path) -> None:
    """A kind that must come for certain does, whatever the seed makes of the others."""
    load = Load(
        [web.url for web in system.web],
        system.caller().token,
        Journal(),
        seed=5,
        sink=tmp_path / "sink",
        runs=3,
        concurrency=3,
        kinds={"talk": 1},
        first=("ask",),
        silence=SILENCE_SECONDS,
        timeout=TIMEOUT_SECONDS,
    )
    load.run()

    asks = [e["expect"]["asks"] > 0 for e in load.journal.entries if e["kind"] == "accepted"]
    assert 1 == len({e["run_id"] for e in load.journal.entries if e["kind"] == "input_accepted"})
    assert {True, False} == set(asks)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_plans_are_made_by_the_seed(kind: str, tmp_path: Path) -> None:
    """The same seed makes the same plan, so that a failure can be played again."""
    for seed in range(20):
        first, second = (plan(kind, "name", tmp_path, random.Random(seed)) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_frames_come_whole_however_the_bytes_are_cut(size: int) -> None:
    """Chunks and frames that are cut anywhere come out byte for byte."""
    body = ': ok\nretry: 1000\ndata: {"a":"\u2028é"}\nid: 1\n\n: ping\ndata: {}\nid: 2\n\n'.encode()
    pieces = [body[i : i + 9] for i in range(0, len(body), 9)]
    sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    chunks, got = Chunks(), b""
    for i in range(0, len(sent), size):
        got += chunks.feed(sent[i : i + size])
    assert (True, body) == (chunks.ended, got)
    assert [Frame(1, '{"a":"\u2028é"}'), Frame(2, "{}")] == frames_of(got)


def test_a_frame_that_is_cut_does_not_count() -> None:
    """What came before the cut is kept, the half frame is left out."""
    assert [Frame(1, "{}")] == frames_of(b'data: {}\nid: 1\n\ndata: {"x":1}\nid: 2\n')


def test_bytes_that_are_no_chunks_are_a_broken_answer() -> None:
    """A client takes nonsense for a lost connection, and lives on."""
    with pytest.raises(BrokenAnswer):
        Chunks().feed(b"nonsense\r\n")
