"""A run's outbox: numbers without holes, text gathered, batches taken whole or given back."""

import json
import threading
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import MessageDelta, MessageThinking, RunCancelled, RunResumed
from arkloop.shared.events.usage import Usage
from arkloop.worker.contract.outcomes import CancelRequested, LimitExceeded
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process import run_log
from arkloop.worker.process.run_log import (
    GATHER_CHARACTERS,
    MAX_BACKLOG_BYTES,
    MAX_EVENT_CHARACTERS,
    MAX_TAKEN_BYTES,
    ArgumentsOf,
    RunLog,
)
from tests.waiting import eventually

FIRST, SECOND = ArgumentsOf("a", "f"), ArgumentsOf("b", "g")
END = RunCancelled(Usage(), 0)


class Log(RunLog):
    """A log after seq 10, and how often its writer was notified."""

    def __init__(self) -> None:
        self.told = 0
        super().__init__(uuid4(), 1, 10, StopSignal(), self._tell)

    def _tell(self, _: RunLog) -> None:
        self.told += 1

    def commit(self) -> list[tuple[int, str]]:
        """Commit as one tick of a writer, and return what it stored."""
        taken, _ = self.take()
        self.committed()
        return shown(taken)


def shown(stored: list[StoredEvent]) -> list[tuple[int, str]]:
    """Return (seq, text or type) of events."""
    data = [(event, json.loads(event.payload)) for event in stored]
    return [(event.seq, body["data"].get("content", event.type)) for event, body in data]


def arguments_of(stored: list[StoredEvent]) -> list[tuple[str, str]]:
    """Return (id, piece) of the deltas of calls."""
    data = [json.loads(event.payload)["data"] for event in stored]
    return [(one["tool_call_id"], one["arguments_delta"]) for one in data]


@pytest.fixture
def log() -> Log:
    return Log()


def test_the_first_text_goes_at_once_and_the_rest_is_gathered(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event has the first piece, one has all that came within the next moment."""
    now = 100.0
    monkeypatch.setattr(
        run_log, "time", SimpleNamespace(monotonic=lambda: now, sleep=lambda _: None)
    )
    log.add_text(MessageDelta, "a")
    assert [(11, "a")] == log.commit()
    log.add_text(MessageDelta, "b")
    log.add_text(MessageDelta, "c")
    taken, due_in = log.take()
    assert [] == taken
    assert due_in is not None
    assert 0.04 == pytest.approx(due_in)

    now += 0.039
    assert [] == log.commit()
    now += 0.002
    assert [(12, "bc")] == log.commit()


def test_much_text_does_not_wait(log: Log) -> None:
    """Beyond 2 KiB it is an event of its own."""
    log.add_text(MessageDelta, "a")
    log.commit()
    log.add_text(MessageDelta, "b" * GATHER_CHARACTERS)

    assert [(12, "b" * GATHER_CHARACTERS)] == log.commit()


def test_a_huge_piece_becomes_many_events(log: Log) -> None:
    """Followers get it in frames of a size that they can take."""
    text = "".join(map(str, range(30_000)))
    log.add_text(MessageDelta, text)

    stored = [*log.commit(), *log.commit()]

    assert text == "".join(piece for _, piece in stored)
    assert MAX_EVENT_CHARACTERS == max(len(piece) for _, piece in stored)


def test_text_and_reasoning_are_not_mixed(log: Log) -> None:
    """Each change of kind begins a new event."""
    for kind, text in (
        (MessageThinking, "a"),
        (MessageThinking, "b"),
        (MessageDelta, "c"),
        (MessageDelta, "d"),
        (MessageThinking, "e"),
    ):
        log.add_text(kind, text)
    log.add(RunResumed(2, "deploy"))

    assert [(11, "ab"), (12, "cd"), (13, "e"), (14, "run.resumed")] == log.commit()


def test_empty_text_is_no_event(log: Log) -> None:
    """Some providers begin with it."""
    log.add_text(MessageDelta, "")

    assert ([], 0) == (log.commit(), log.told)


def test_events_stand_after_the_text_before_them(log: Log) -> None:
    """The order in which they were made is the order of their numbers."""
    log.add_text(MessageDelta, "a")
    log.add(RunResumed(2, "deploy"), RunResumed(3, "deploy"))
    log.add_text(MessageDelta, "b")
    log.add(RunResumed(4, "deploy"))

    assert [11, 12, 13, 14, 15] == [seq for seq, _ in log.commit()]


def test_what_could_not_be_stored_comes_first_the_next_time(log: Log) -> None:
    """Events that could not be stored come first in the next commit, with the same numbers and
    bytes.
    """
    log.add(RunResumed(2, "deploy"))
    taken, _ = log.take()
    log.add(RunResumed(3, "deploy"))
    log.give_back()
    again, _ = log.take()

    assert taken == again[:1]
    assert [11, 12] == [event.seq for event in again]


def test_flush_returns_when_all_is_stored(log: Log) -> None:
    """`flush` returns when everything is stored, including text that was still being gathered."""
    log.add_text(MessageDelta, "a")
    log.commit()
    log.add_text(MessageDelta, "b")
    told = log.told
    flushed = threading.Event()

    def flush() -> None:
        log.flush()
        flushed.set()

    threading.Thread(target=flush).start()
    eventually(lambda: log.told > told)
    taken, _ = log.take()
    assert not flushed.is_set()
    log.committed()

    assert flushed.wait(60)
    assert [(12, "b")] == shown(taken)


def test_flush_ends_when_the_run_has_to_stop(log: Log) -> None:
    """A run whose events cannot be stored does not hang in it."""
    log.add(RunResumed(2, "deploy"))
    log.stop.set(CancelRequested())

    with pytest.raises(CancelRequested):
        log.flush()


def test_the_last_events_are_the_callers_to_commit(log: Log) -> None:
    """Everything not stored yet, and nothing of it is left for the writer."""
    log.add(RunResumed(2, "deploy"))
    log.add_text(MessageDelta, "a")

    assert [(11, "run.resumed"), (12, "a"), (13, "run.cancelled")] == shown(log.withdraw(END))
    assert [] == log.commit()


@pytest.mark.parametrize("_again", range(20))
def test_a_writer_in_the_middle_of_a_commit_is_waited_for(log: Log, _again: int) -> None:
    """A commit in progress is waited for, and the writer cannot take the last events, which are the
    caller's.
    """
    log.add(RunResumed(2, "deploy"))
    first, _ = log.take()
    withdrawn: list[Any] = []
    thread = threading.Thread(target=lambda: withdrawn.extend(log.withdraw(END)))
    thread.start()
    log.committed()
    # A writer that looks again at once, before the caller is awake.
    second = log.commit()
    thread.join(60)

    assert ([(11, "run.resumed")], []) == (shown(first), second)
    assert [(12, "run.cancelled")] == shown(withdrawn)


def test_withdrawn_events_that_were_not_stored_leave_no_hole(log: Log) -> None:
    """The run ends otherwise: the end is forgotten, what came before it is kept."""
    log.add(RunResumed(2, "deploy"))
    withdrawn = log.withdraw(RunResumed(3, "deploy"), END)
    log.retract(withdrawn, 2)

    assert [(11, "run.resumed"), (12, "run.cancelled")] == shown(log.withdraw(END))


def test_nothing_is_added_behind_the_last_events(log: Log) -> None:
    """What an abandoned call adds is dropped, unless the run does not end with them."""
    withdrawn = log.withdraw(END, closes=True)
    log.add(RunResumed(2, "deploy"))
    assert [] == log.commit()

    log.retract(withdrawn, 1)
    log.add(RunResumed(3, "deploy"))

    assert [(11, "run.resumed"), (12, "run.cancelled")] == shown(log.withdraw(END, closes=True))


@pytest.mark.parametrize("numbered", [True, False])
def test_void_text_is_named_if_anybody_can_have_seen_it(log: Log, numbered: bool) -> None:
    """It is named from the first event of the turn; text without a number yet is just dropped."""
    log.add_text(MessageDelta, "a")
    if numbered:
        log.commit()
        log.add_text(MessageDelta, "b")
    log.void_text("provider.connection")
    log.add_text(MessageDelta, "c")
    rest = shown(log.withdraw())

    expected = [(12, "message.reset"), (13, "c")] if numbered else [(11, "c")]
    assert expected == rest


def test_only_the_open_turn_is_void(log: Log) -> None:
    """Text before the last event belongs to a finished turn."""
    log.add_text(MessageDelta, "a")
    log.add(RunResumed(2, "deploy"))
    log.commit()
    log.add_text(MessageDelta, "b")
    eventually(lambda: log.commit() == [(13, "b")])

    log.void_text("x")

    [reset] = log.withdraw()
    assert {"from_seq": 13, "reason": "x"} == json.loads(reset.payload)["data"]


def test_a_run_may_write_only_so_much() -> None:
    """The bytes of all its events count, those of earlier attempts too."""
    log = RunLog(uuid4(), 1, 10, StopSignal(), lambda _: None, max_bytes=3000)
    log.written_bytes = 1000
    log.add(MessageDelta("世" * 500))
    log.check_size()

    log.add(MessageDelta("世" * 200))

    with pytest.raises(LimitExceeded) as failed:
        log.check_size()
    assert "run.output_limit" == failed.value.code


def test_one_commit_has_only_so_much_of_a_run(log: Log) -> None:
    """The rest comes at once in the next one, in order: other runs' events are between them."""
    large = MAX_TAKEN_BYTES // 3
    for _ in range(5):
        log.add(MessageDelta("x" * large))
    log.add(MessageDelta("y" * (2 * MAX_TAKEN_BYTES)))

    taken: list[list[int]] = []
    again: float | None = 0.0
    while again is not None:
        events, again = log.take()
        log.committed()
        taken.append([event.seq for event in events])

    assert [[11, 12], [13, 14], [15], [16]] == taken


def test_events_that_were_added_together_are_committed_together(log: Log) -> None:
    """A turn without its calls would be the last word of the run whose worker dies then."""
    large = MessageDelta("x" * (MAX_TAKEN_BYTES // 2))
    log.add(large)
    log.add(large, large, large)
    log.add(large)

    assert [[11], [12, 13, 14], [15]] == [
        [seq for seq, _ in log.commit()],
        [seq for seq, _ in log.commit()],
        [seq for seq, _ in log.commit()],
    ]


def test_a_model_that_writes_much_waits_for_what_it_wrote(log: Log) -> None:
    """A model that writes fast waits for its uncommitted events, by bytes and by number."""
    piece = "x" * MAX_EVENT_CHARACTERS
    added = threading.Event()

    def write() -> None:
        for _ in range(3 * MAX_BACKLOG_BYTES // MAX_EVENT_CHARACTERS):
            log.add_text(MessageDelta, piece)
        added.set()

    writer = threading.Thread(target=write)
    writer.start()
    eventually(lambda: log._waiting_bytes > MAX_BACKLOG_BYTES)
    most = log._waiting_bytes
    while not added.wait(0.01):
        most = max(most, log._waiting_bytes)
        log.commit()
    writer.join(10)

    assert most < 1.2 * MAX_BACKLOG_BYTES


def test_arguments_of_each_call_are_gathered_like_text(log: Log) -> None:
    """An event has pieces of one call; they are void with the text of their turn."""
    log.add_text(MessageDelta, "so: ")
    for kind, text in ((FIRST, "{"), (FIRST, "}"), (SECOND, "[1"), (FIRST, " "), (SECOND, "]")):
        log.add_text(kind, text)
    log.void_text("provider.connection")

    said, *written, reset = log.take()[0]
    assert "message.delta" == said.type
    assert [("a", "{}"), ("b", "[1"), ("a", " ")] == arguments_of(written)
    assert ("message.reset", said.seq) == (
        reset.type,
        json.loads(reset.payload)["data"]["from_seq"],
    )


def test_prompts_go_with_the_next_event() -> None:
    """All that were sent since the event before; with an end that was not stored, they wait on."""
    log = Log()
    log.add_prompt(b"1")
    log.add_prompt(b"2")
    log.add_text(MessageDelta, "a")
    taken, _ = log.take()
    log.committed()
    log.add_prompt(b"3")
    withdrawn = log.withdraw(END)
    log.retract(withdrawn, 1)
    log.add_prompt(b"4")

    assert [b"12"] == [event.prompts for event in taken]
    assert [b"3"] == [event.prompts for event in withdrawn]
    assert [b"34", None] == [event.prompts for event in log.withdraw(END, END)]
    assert [0, 0] == [log._waiting_bytes, len(log._ready)]


def test_prompts_count_for_what_one_commit_takes() -> None:
    """The events of others wait for it."""
    log = Log()
    for _ in range(3):
        log.add_prompt(bytes(MAX_TAKEN_BYTES))
        log.add(RunResumed(2, "deploy"))
    assert 3 * MAX_TAKEN_BYTES < log._waiting_bytes

    for _ in range(3):
        taken, again = log.take()
        assert (1, MAX_TAKEN_BYTES) == (len(taken), len(taken[0].prompts or b""))
        log.committed()
    assert again is None
