"""Seeded bugs: a row of the table that is wrong, or a care that the code does not take.

Each must be caught by the invariant that it is named with, in the smallest model that shows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from arkloop.shared.runs.thread_queue import RULES, Effect, Holder, OnBusy, Rule
from chaos.model.effects import Care, Table
from chaos.model.explorer import STUCK
from chaos.model.steps import Bounds

Spoil = Callable[[Sequence[Rule]], Sequence[Rule]]


class NoSuchRule(Exception):
    """The table has changed: the bug would be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """A bug of the table (`spoil`) or of the code (`without`)."""

    name: str
    caught_by: str
    bounds: Bounds
    spoil: Spoil | None = None
    without: frozenset[Care] = frozenset()
    max_waiting: int = 3

    def table(self) -> Table:
        """Return the table with the bug in it.

        Raises:
            NoSuchRule
        """
        rules = RULES if self.spoil is None else self.spoil(RULES)
        return Table(tuple(rules), self.without, self.max_waiting)


def _changed(name: str, change: Callable[[Rule], Rule]) -> Spoil:
    def spoil(rules: Sequence[Rule]) -> Sequence[Rule]:
        spoilt = [change(rule) if rule.name == name else rule for rule in rules]
        if spoilt == [*rules]:
            raise NoSuchRule(name)
        return spoilt

    return spoil


def _lacking(name: str, effect: Effect) -> Spoil:
    def change(rule: Rule) -> Rule:
        return replace(rule, effects=tuple(one for one in rule.effects if one is not effect))

    return _changed(name, change)


def _instead(name: str, *effects: Effect) -> Spoil:
    return _changed(name, lambda rule: replace(rule, effects=effects))


def _gone(name: str) -> Spoil:
    def spoil(rules: Sequence[Rule]) -> Sequence[Rule]:
        left = [rule for rule in rules if rule.name != name]
        if len(left) == len(rules):
            raise NoSuchRule(name)
        return left

    return spoil


def _bounds(*on_busy: OnBusy, requests: tuple[int, int] = (1, 1), **others: int) -> Bounds:
    crashes, parks = others.get("crashes", 0), others.get("parks", 0)
    has_times, has_revocations = bool(others.get("times")), bool(others.get("revocations"))
    return Bounds(requests, crashes, parks, on_busy, has_times, has_revocations)


def _cares(*without: Care) -> frozenset[Care]:
    return frozenset(without)


_O, _E = OnBusy, Effect
_TWO = (2, 1)

BUGS: tuple[Bug, ...] = (
    Bug(
        name="a request trusts its first look at the active run",
        caught_by="no lost wake-up",
        without=_cares(Care.LOOKS_AGAIN),
        bounds=_bounds(_O.ENQUEUE),
    ),
    Bug(
        name="a request does not flag the active run",
        caught_by="no lost wake-up",
        spoil=_lacking("enqueue", _E.FLAG),
        bounds=_bounds(_O.ENQUEUE),
    ),
    Bug(
        name="the grouped end does not look at the flag",
        caught_by="no lost wake-up",
        without=_cares(Care.READS_FLAG),
        bounds=_bounds(_O.ENQUEUE),
    ),
    Bug(
        name="an end starts no other run",
        caught_by="no lost wake-up",
        spoil=_lacking("end before others", _E.START_FIRST),
        bounds=_bounds(_O.ENQUEUE),
    ),
    Bug(
        name="the next run is started in a transaction of its own",
        caught_by="no lost wake-up",
        without=_cares(Care.ONE_TRANSACTION),
        bounds=_bounds(_O.ENQUEUE, crashes=1),
    ),
    Bug(
        name="an offered message does not flag the active run",
        caught_by="no lost wake-up",
        spoil=_lacking("steer", _E.FLAG),
        bounds=_bounds(_O.STEER),
    ),
    Bug(
        name="an end forgets the offered messages",
        caught_by="no lost wake-up",
        spoil=_lacking("end before others", _E.TURN_INTO_RUNS),
        bounds=_bounds(_O.STEER),
    ),
    Bug(
        name="an offered message is delivered at each step",
        caught_by="one run for each message",
        without=_cares(Care.KEEPS_OFFERS),
        bounds=_bounds(_O.STEER),
    ),
    Bug(
        name="an offered message that becomes a run goes to the end of the queue",
        caught_by="runs start in turn",
        without=_cares(Care.KEEPS_PLACE),
        bounds=_bounds(_O.STEER, _O.ENQUEUE, requests=_TWO),
    ),
    Bug(
        name="interrupt goes to the end of the queue",
        caught_by="first in, first out",
        spoil=_instead("interrupt a held run", _E.PEND_LAST, _E.FLAG, _E.SUPERSEDE_ACTIVE),
        bounds=_bounds(_O.ENQUEUE, _O.INTERRUPT, requests=_TWO),
    ),
    Bug(
        name="enqueue goes to the front of the queue",
        caught_by="first in, first out",
        spoil=_instead("enqueue", _E.PEND_FIRST, _E.FLAG),
        bounds=_bounds(_O.ENQUEUE, requests=_TWO),
    ),
    Bug(
        name="merge joins anybody's run",
        caught_by="merge joins the caller's last waiting run",
        without=_cares(Care.OWN_RUN),
        bounds=_bounds(_O.ENQUEUE, _O.MERGE, requests=_TWO),
    ),
    Bug(
        name="merge joins the caller's first run",
        caught_by="merge joins the caller's last waiting run",
        without=_cares(Care.LAST_RUN),
        bounds=_bounds(_O.ENQUEUE, _O.MERGE, requests=(4, 0)),
    ),
    Bug(
        name="rollback keeps the output",
        caught_by="interrupt and rollback replace the active run",
        spoil=_lacking("rollback a held run", _E.DISCARD_OUTPUT),
        bounds=_bounds(_O.ROLLBACK),
    ),
    Bug(
        name="an answer appears after it was discarded",
        caught_by="rollback removes output",
        without=_cares(Care.HIDES_DISCARDED),
        bounds=_bounds(_O.ROLLBACK),
    ),
    Bug(
        name="interrupt lets the active run finish",
        caught_by="interrupt and rollback replace the active run",
        spoil=_lacking("interrupt a held run", _E.SUPERSEDE_ACTIVE),
        bounds=_bounds(_O.INTERRUPT),
    ),
    Bug(
        name="an interrupted run completes",
        caught_by="what is superseded is reported",
        without=_cares(Care.CANCEL_FIRST),
        bounds=_bounds(_O.INTERRUPT),
    ),
    Bug(
        name="a run starts that is to be cancelled",
        caught_by="runs start in turn",
        without=_cares(Care.SKIPS_CANCELLED),
        bounds=_bounds(_O.ENQUEUE, requests=_TWO, revocations=1),
    ),
    Bug(
        name="a waiting run is cancelled that has just started",
        caught_by="a waiting run can be cancelled",
        without=_cares(Care.STILL_WAITS),
        bounds=_bounds(_O.ENQUEUE, requests=_TWO),
    ),
    Bug(
        name="a waiting run cannot be cancelled",
        caught_by="a waiting run can be cancelled",
        spoil=_lacking("cancel a waiting run", _E.WITHDRAW),
        bounds=_bounds(_O.ENQUEUE, requests=_TWO),
    ),
    Bug(
        name="a run starts beside the active one",
        caught_by="one active run",
        spoil=_instead("enqueue", _E.START),
        without=_cares(Care.UNIQUE_INDEX),
        bounds=_bounds(_O.ENQUEUE),
    ),
    Bug(
        name="a run that is due starts beside the active one",
        caught_by="one active run",
        spoil=_instead("due while busy", _E.START),
        without=_cares(Care.UNIQUE_INDEX),
        bounds=_bounds(_O.ENQUEUE, times=1),
    ),
    Bug(
        name="two requests find the thread free",
        caught_by="one active run",
        without=_cares(Care.UNIQUE_INDEX),
        bounds=_bounds(_O.ENQUEUE),
    ),
    Bug(
        name="the queue has no bound",
        caught_by="the queue is bounded",
        spoil=_gone("full"),
        bounds=_bounds(_O.ENQUEUE, requests=_TWO),
        max_waiting=1,
    ),
    Bug(
        name="a request decides without the lock of the thread",
        caught_by="no lost wake-up",
        without=_cares(Care.LOCKS_THREAD),
        bounds=_bounds(_O.ENQUEUE, requests=_TWO),
        max_waiting=1,
    ),
    Bug(
        name="steer reaches a run that waits for a person",
        caught_by="human input takes precedence",
        spoil=_gone("steer one that waits for input"),
        bounds=_bounds(_O.STEER, requests=_TWO, parks=1),
    ),
    Bug(
        name="a new run ends one that waits for a person",
        caught_by="human input takes precedence",
        spoil=_changed(
            "enqueue",
            lambda rule: replace(rule, effects=(*rule.effects, _E.END_ACTIVE), becomes=Holder.NONE),
        ),
        bounds=_bounds(_O.ENQUEUE, parks=1),
    ),
    Bug(
        name="the thread is locked before the active run",
        caught_by="no deadlock",
        without=_cares(Care.RUN_BEFORE_THREAD),
        bounds=_bounds(_O.ENQUEUE, requests=_TWO),
    ),
    Bug(
        name="nobody looks for lost runs",
        caught_by=STUCK,
        without=_cares(Care.FINDS_LOST),
        bounds=_bounds(_O.ENQUEUE, crashes=1),
    ),
)
