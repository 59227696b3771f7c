"""The queue of a thread, as data: what happens to its runs, and what comes of it.

A thread has at most one active run. Runs that were accepted meanwhile are pending: they wait in
the thread's queue. A scheduled run waits outside of it until its time has come. An offered message
waits for the next step of the active run. `RULES` says for everything that can happen what comes
of it, and the code that writes the rows asks `rule_for`; nothing here reads or writes any. What a
worker makes of the active run alone (it claims it, parks it, lets it go) is no matter of the queue.

Each happening is one transaction. It holds the row of the active run, then that of the thread,
then those of pending runs, always in this order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

#: Pending and scheduled runs and offered messages of a thread, together.
MAX_WAITING = 50


class OnBusy(StrEnum):
    """The values of `on_busy`: what a request asks for where its thread has an active run."""

    REJECT = "reject"
    ENQUEUE = "enqueue"
    MERGE = "merge"
    STEER = "steer"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class Holder(StrEnum):
    """The state of the active run, which holds the thread."""

    NONE = "none"  # no run is active
    QUEUED = "queued"
    EXECUTING = "executing"
    WAITING = "waiting"  # for a person, or for results of tool calls
    SUSPENDED = "suspended"  # it waits for sub-runs
    CANCELLING = "cancelling"  # it was asked to end, and a worker or the sweep will end it


class Happening(StrEnum):
    """The things that can happen to the runs of a thread."""

    CREATE = "create"  # a request, with an `on_busy`
    DUE = "due"  # the time of a scheduled run has come
    CANCEL_WAITING = "cancel_waiting"  # of a pending or scheduled run
    CANCEL_ACTIVE = "cancel_active"
    STEP = "step"  # the worker is about to call the model
    END = "end"  # of the active run: by its worker, by a cancel, by expiry, by the sweep


class Guard(StrEnum):
    """Facts besides the holder on which a rule may depend."""

    HAS_TIME = "has_time"  # the request has a `not_before` that is ahead
    IS_FULL = "is_full"  # `MAX_WAITING` is reached
    MAY_JOIN = "may_join"  # the caller has a pending run that can take the message, too
    TAKES_MESSAGES = "takes_messages"  # the active run is carried out by the service's own loop
    IS_SUPERSEDED = "is_superseded"  # the first pending run has interrupted the active one
    HAS_OFFERED = "has_offered"  # at least one message waits for the active run's next step
    IS_FOLLOWED = "is_followed"  # the flag of the active run: see `Effect.FLAG`
    IS_GONE = "is_gone"  # the thread was deleted, or is private and its creator has left the org


class Effect(StrEnum):
    """Changes that a rule makes, in its order, in one transaction.

    "The run" is the one of the happening: that which is created, due or cancelled.
    """

    # The request gets an error, and nothing is stored.
    REJECT_BUSY = "reject_busy"  # 409 runs.thread_busy
    REJECT_FULL = "reject_full"  # 429 threads.queue_full
    REJECT_NOT_ACTIVE = "reject_not_active"  # 409 runs.not_active

    START = "start"  # the run becomes active, as queued; its message is the thread's last one
    PEND_LAST = "pend_last"  # the run is pending, behind all others
    PEND_FIRST = "pend_first"  # the run is pending, before all others
    SCHEDULE = "schedule"  # the run is scheduled
    JOIN = "join"  # the message becomes one of the caller's last pending run; there is no new run
    OFFER = "offer"  # the message is offered to the active run; there is no run so far

    #: The active run is marked as one with followers: its end looks for the next run.
    #: Its worker ends it without a look at the thread otherwise.
    FLAG = "flag"
    #: The active run is to be cancelled, because of the new run: `superseded_by` is that.
    SUPERSEDE_ACTIVE = "supersede_active"
    #: The active run's turns and its answer, past and to come, are no part of the thread.
    DISCARD_OUTPUT = "discard_output"
    #: The first pending run ends as cancelled, `superseded_by` the new run, whose messages its own
    #: precede from now on.
    SUPERSEDE_FIRST = "supersede_first"
    #: The active run, which no worker holds, ends as cancelled: what END says follows at once.
    END_ACTIVE = "end_active"
    #: The active run is asked to end.
    REQUEST_CANCEL = "request_cancel"

    #: The offered messages become part of the active run's conversation: `run.steered`.
    DELIVER = "deliver"
    #: Each offered message becomes a pending run, at the place where it was accepted.
    TURN_INTO_RUNS = "turn_into_runs"
    #: The first pending run that is not to be cancelled becomes active, as queued, and its messages
    #: the thread's last ones. It is flagged if others are pending.
    START_FIRST = "start_first"
    #: The run, which has not started, ends as cancelled; its messages leave the thread.
    WITHDRAW = "withdraw"
    #: All pending runs end as cancelled.
    WITHDRAW_PENDING = "withdraw_pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row of the table.

    It applies where each of its conditions does; an empty one always does. `becomes` is the state
    of the run that was active; None: that stays as it is.
    """

    name: str
    happening: Happening
    on_busy: frozenset[OnBusy] = frozenset()
    holder: frozenset[Holder] = frozenset()
    guards: frozenset[Guard] = frozenset()
    effects: tuple[Effect, ...] = ()
    becomes: Holder | None = None

    def applies(
        self,
        happening: Happening,
        holder: Holder,
        facts: frozenset[Guard],
        on_busy: OnBusy | None,
    ) -> bool:
        """Return whether the rule is one for this case; others before it may be, too."""
        return (
            self.happening is happening
            and (not self.on_busy or on_busy in self.on_busy)
            and (not self.holder or holder in self.holder)
            and self.guards <= facts
        )


def _rule(
    name: str,
    happening: Happening,
    *effects: Effect,
    on_busy: Iterable[OnBusy] = (),
    holder: Iterable[Holder] = (),
    guards: Iterable[Guard] = (),
    becomes: Holder | None = None,
) -> Rule:
    return Rule(
        name=name,
        happening=happening,
        on_busy=frozenset(on_busy),
        holder=frozenset(holder),
        guards=frozenset(guards),
        effects=effects,
        becomes=becomes,
    )


_BUSY = frozenset(Holder) - {Holder.NONE}
_UNHELD = (Holder.QUEUED, Holder.WAITING, Holder.SUSPENDED)
_E, _G, _H, _W = Effect, Guard, Holder, Happening

#: The first rule that applies is the one that counts.
RULES: tuple[Rule, ...] = (
    # ---- a request creates a run --------------------------------------------------------
    _rule("full for later", _W.CREATE, _E.REJECT_FULL, guards=[_G.HAS_TIME, _G.IS_FULL]),
    _rule("later", _W.CREATE, _E.SCHEDULE, guards=[_G.HAS_TIME]),
    _rule("free", _W.CREATE, _E.START, holder=[_H.NONE]),
    _rule("reject", _W.CREATE, _E.REJECT_BUSY, on_busy=[OnBusy.REJECT], holder=_BUSY),
    _rule("merge", _W.CREATE, _E.JOIN, on_busy=[OnBusy.MERGE], guards=[_G.MAY_JOIN]),
    _rule(
        "steer one that waits for input",
        *(_W.CREATE, _E.REJECT_NOT_ACTIVE),
        on_busy=[OnBusy.STEER],
        holder=[_H.WAITING],
    ),
    *(
        _rule(
            f"{on_busy} again",
            *(_W.CREATE, *discard, _E.SUPERSEDE_FIRST, _E.PEND_FIRST, _E.FLAG),
            on_busy=[on_busy],
            holder=[_H.CANCELLING],
            guards=[_G.IS_SUPERSEDED],
        )
        for on_busy, discard in (
            (OnBusy.INTERRUPT, ()),
            (OnBusy.ROLLBACK, (_E.DISCARD_OUTPUT,)),
        )
    ),
    _rule("full", _W.CREATE, _E.REJECT_FULL, holder=_BUSY, guards=[_G.IS_FULL]),
    _rule(
        "steer",
        *(_W.CREATE, _E.OFFER, _E.FLAG),
        on_busy=[OnBusy.STEER],
        holder=[_H.QUEUED, _H.EXECUTING, _H.SUSPENDED],
        guards=[_G.TAKES_MESSAGES],
    ),
    _rule(
        "enqueue",
        *(_W.CREATE, _E.PEND_LAST, _E.FLAG),
        on_busy=[OnBusy.ENQUEUE, OnBusy.MERGE, OnBusy.STEER],
        holder=_BUSY,
    ),
    *(
        rule
        for on_busy, discard in (
            (OnBusy.INTERRUPT, ()),
            (OnBusy.ROLLBACK, (_E.DISCARD_OUTPUT,)),
        )
        for rule in (
            _rule(
                f"{on_busy} one that is being cancelled",
                *(_W.CREATE, *discard, _E.PEND_FIRST, _E.FLAG),
                on_busy=[on_busy],
                holder=[_H.CANCELLING],
            ),
            _rule(
                f"{on_busy} a held run",
                *(_W.CREATE, *discard, _E.PEND_FIRST, _E.FLAG, _E.SUPERSEDE_ACTIVE),
                on_busy=[on_busy],
                holder=[_H.EXECUTING],
                becomes=_H.CANCELLING,
            ),
            _rule(
                f"{on_busy} an unheld run",
                *(_W.CREATE, *discard, _E.PEND_FIRST, _E.FLAG),
                *(_E.SUPERSEDE_ACTIVE, _E.END_ACTIVE),
                on_busy=[on_busy],
                holder=_UNHELD,
                becomes=_H.NONE,
            ),
        )
    ),
    # ---- a scheduled run ----------------------------------------------------------------
    _rule("due in a thread that is gone", _W.DUE, _E.WITHDRAW, guards=[_G.IS_GONE]),
    _rule("due", _W.DUE, _E.START, holder=[_H.NONE]),
    _rule("due while busy", _W.DUE, _E.PEND_LAST, _E.FLAG, holder=_BUSY),
    # ---- cancels ------------------------------------------------------------------------
    _rule("cancel a waiting run", _W.CANCEL_WAITING, _E.WITHDRAW),
    _rule(
        "cancel a held run",
        *(_W.CANCEL_ACTIVE, _E.REQUEST_CANCEL),
        holder=[_H.EXECUTING],
        becomes=_H.CANCELLING,
    ),
    _rule(
        "cancel an unheld run",
        *(_W.CANCEL_ACTIVE, _E.END_ACTIVE),
        holder=_UNHELD,
        becomes=_H.NONE,
    ),
    _rule("cancel again", _W.CANCEL_ACTIVE, holder=[_H.CANCELLING]),
    # ---- the active run -----------------------------------------------------------------
    # The worker of a run that is being cancelled may not know it yet.
    _rule(
        "step",
        *(_W.STEP, _E.DELIVER),
        holder=[_H.EXECUTING, _H.CANCELLING],
        guards=[_G.HAS_OFFERED],
    ),
    _rule("step alone", _W.STEP, holder=[_H.EXECUTING, _H.CANCELLING]),
    # ---- its end ------------------------------------------------------------------------
    # A sub-run may outlive the thread of its parent, with which its own was deleted.
    _rule(
        "end in a thread that is gone",
        *(_W.END, _E.TURN_INTO_RUNS, _E.WITHDRAW_PENDING),
        holder=_BUSY,
        guards=[_G.IS_FOLLOWED, _G.IS_GONE],
        becomes=_H.NONE,
    ),
    _rule(
        "end before others",
        *(_W.END, _E.TURN_INTO_RUNS, _E.START_FIRST),
        holder=_BUSY,
        guards=[_G.IS_FOLLOWED],
        becomes=_H.NONE,
    ),
    _rule("end alone", _W.END, holder=_BUSY, becomes=_H.NONE),
)


def rule_for(
    happening: Happening,
    holder: Holder,
    facts: Iterable[Guard] = (),
    on_busy: OnBusy | None = None,
    *,
    rules: Iterable[Rule] | None = None,
) -> Rule:
    """Return the rule for this case, of `RULES` by default; `on_busy` is that of a request.

    Raises:
        LookupError: it cannot happen.
    """
    known = frozenset(facts)
    for rule in RULES if rules is None else rules:
        if rule.applies(happening, holder, known, on_busy):
            return rule
    raise LookupError(f"{happening} with {holder}")
