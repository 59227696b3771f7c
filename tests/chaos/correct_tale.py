"""The tale that the tests of the checker spoil: nothing in it is wrong."""

from tests.chaos.correct_journal import EPOCH, Tale, Told, fault, post, request
from tests.chaos.told_events import (
    call,
    cancelled,
    completed,
    completed_turn,
    cost,
    deltas,
    expect,
    failed,
    received,
    reset,
    result,
    resumed,
    started,
    used,
    waiting,
)


def correct_tale() -> Tale:
    """Build runs of every kind, two of them in one thread, under a worker that is killed once."""
    runs = [
        Told(
            "talk",
            [
                started(),
                *deltas("w ", "w "),
                completed_turn("m1", "w w "),
                cost(1),
                completed("m1", 1),
            ],
            expect("completed", text="w w "),
            looks=[1, 3],
        ),
        Told(
            "tools",
            [
                started(),
                *deltas("a "),
                completed_turn("m1", "a "),
                call("c1", "append_line", path="p", line="e1"),
                cost(1),
                result("c1"),
                completed_turn("m2", ""),
                call("c2", "append_line", path="p", line="e2"),
                call("c3", "sleep", seconds=1),
                cost(2),
                resumed(2),
                result("c2", "The outcome of this call is unknown: …", True),
                result("c3", "slept"),
                *deltas("b ", "b"),
                resumed(3),
                reset(14),
                *deltas("b ", "b ", "b "),
                completed_turn("m3", "b b b "),
                cost(3, more=7),
                completed("m3", 3, more=7),
            ],
            expect("completed", text="a b b b ", effects=["e1", "e2"]),
            looks=[4, 11, 15],
        ),
        Told(
            "ask",
            [
                started(),
                completed_turn("m1", ""),
                call("c1", "ask_user", question="?"),
                call("c2", "ask_user", question="?"),
                cost(1),
                waiting("r1", "c1"),
                resumed(1, "input"),
                received("r1", "Rome"),
                waiting("r2", "c2"),
                resumed(1, "input"),
                received("r2", "Paris"),
                result("c1", "Rome"),
                result("c2", "Paris"),
                *deltas("so"),
                completed_turn("m2", "so"),
                cost(2),
                completed("m2", 2),
            ],
            expect("completed", text="so", asks=2),
            inputs=[("r1", "Rome"), ("r1", "Rome"), ("r2", "Paris")],
            looks=[6, 7, 9],
        ),
        Told(
            "cancel",
            [
                started(),
                *deltas("x ", "x "),
                ("run.cancel_requested", {"by_user_id": "u"}),
                cost(0, more=3),
                ("run.cancelled", used(0, more=3)),
            ],
            expect("completed", "cancelled"),
            cancel_before=4,
            looks=[3],
        ),
        Told(
            "unanswered",
            [
                started(),
                completed_turn("m1", ""),
                call("c1", "ask_user", question="?"),
                cost(1),
                waiting("r1", "c1"),
                cancelled(1),
            ],
            expect("cancelled"),
            cancel_before=6,
            looks=[5],
        ),
        Told("unclaimed", [cancelled()], expect("completed"), cancel_before=1),
        Told(
            "too_late",
            [started(), *deltas("x"), completed_turn("m", "x"), cost(1), completed("m", 1)],
            expect("completed", "cancelled"),
            cancel_before=6,
        ),
        Told(
            "retry",
            [
                started(),
                *deltas("p "),
                reset(2, "provider.connection"),
                *deltas("p ", "q"),
                completed_turn("m1", "p q"),
                cost(1, more=2),
                completed("m1", 1, more=2),
            ],
            expect("completed", text="p q"),
        ),
        Told(
            "poison",
            [started(), resumed(2), resumed(3), failed("worker.crashed")],
            expect("failed", poison=True),
        ),
        Told(
            "invalid",
            [started(), cost(0), failed("provider.invalid_request")],
            expect("failed"),
        ),
        Told(
            "first",
            [started(), *deltas("1"), completed_turn("m1", "1"), cost(1), completed("m1", 1)],
            expect("completed", text="1"),
            thread="shared",
        ),
        Told(
            "second",
            [started(), *deltas("2"), completed_turn("m1", "2"), cost(1), completed("m1", 1)],
            expect("completed", text="2"),
            thread="shared",
        ),
    ]
    for number, run in enumerate(runs):
        run.begins = 20.0 * number
    gone = {"code": "runs.not_found", "message": "Run not found."}
    return Tale(
        runs={run.name: run for run in runs},
        effects=["e1"],
        foreign=[
            {
                "path": path,
                "status": 404,
                "body": gone,
                "unknown_status": 404,
                "unknown_body": gone,
            }
            for path in ("/v1/runs/{id}", "/v1/runs/{id}/events")
        ],
        faults=[
            fault(20.2, "worker-kill", "begin"),
            {"at": EPOCH + 20.3, "kind": "process", "role": "worker", "pid": 1, "what": "died"},
            {"at": EPOCH + 20.6, "kind": "process", "role": "worker", "pid": 2, "what": "started"},
            fault(20.7, "worker-kill", "end"),
        ],
        requests=[
            post(EPOCH + 22, status=503, code="service.unavailable", retry_after="1"),
            {**request(EPOCH + 23, "no_answer"), "error": "ConnectionResetError"},
            {**request(EPOCH + 60), "status": 409, "code": "runs.thread_busy"},
        ],
    )
