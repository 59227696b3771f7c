"""The violations that the checker reports, and those that a scenario allows."""

from dataclasses import dataclass

#: Invariants that no scenario's load can break, and what checks them.
CHECKED_ELSEWHERE = {
    "I14": "Webhooks: make webhooks.",
    "I16": "Limits and budgets: make overspend, tests/api/auth/test_request_limits.py.",
}

#: Every name that a violation may carry, with the promise in a few words.
INVARIANTS = {
    "I1": "Ids have no gap and no repeat, and every client gets the same bytes.",
    "I2": "A replay from any web process is what the streams showed.",
    "I3": "There is one terminal event, the last, exactly when the status is terminal.",
    "I4": "A status moves only along the graph; the end never changes.",
    "I5": "Every accepted run ends, and as expected.",
    "I6": "One Idempotency-Key is one run.",
    "I7": "A thread has at most one active run.",
    "I8": "Claims do not overlap: attempts rise by one, texts are whole.",
    "I9": "A side effect happens at most once, and once if nothing says otherwise.",
    "I10": "A finished step is not repeated; unfinished text is declared void.",
    "I11": "An accepted cancel ends the run, in time.",
    "I12": "An accepted input is used exactly once.",
    "I13": "A waiting run writes nothing, and says what it waits for.",
    "I15": "Another organization sees what it would see of an id that does not exist.",
    "I17": "A run that kills its workers is given up, and only such a run.",
    "I18": "Usage and cost are counted once.",
    "I19": "A stream that has ended answers 204 to a reconnect.",
    "A1": "Without a fault, and also without Redis, everything is answered, in time.",
    "A2": "No answer is a server error but 503 with Retry-After.",
    "A3": "No client is refused, and none gives up.",
    "NV": "The load was real: it created, reconnected and saw recoveries.",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold; `run_id` is None if it concerns no single run."""

    invariant: str
    run_id: str | None
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """The bounds of a scenario; all times are in seconds.

    A fault's window is from its begin to its end and `grace` more: until then
    the service may be out of reach.
    """

    grace: float = 5.0
    answer: float = 5.0
    answer_in_fault: float = 5.0
    cancel: float = 5.0
    #: Where a fault or the death of a process was not longer ago than `recovery`.
    cancel_in_fault: float = 25.0
    recovery: float = 20.0
    #: From creation to end, without waiting for people; None: not looked at.
    end: float | None = None
    #: Transactions take the time of their begin, so creation and end of two runs may cross.
    overlap: float = 1.0
    acknowledged: float = 0.95
    reconnects_per_run: float = 1.0
    resumes_per_worker_death: float = 0.0
    #: The load is more than this machine carries: a 503 that says when to come back is an answer.
    sheds: bool = False
    #: Runs of our threads that no response named, say of a client that gave up.
    unknown_runs: bool = False
