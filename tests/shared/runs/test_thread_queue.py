"""The table of what happens to the runs of a thread."""

from collections.abc import Iterator
from itertools import combinations, product

import pytest

from arkloop.shared.runs.thread_queue import (
    RULES,
    Effect,
    Guard,
    Happening,
    Holder,
    OnBusy,
    Rule,
    rule_for,
)

BUSY = [holder for holder in Holder if holder is not Holder.NONE]
OF_CREATE = [
    Guard.HAS_TIME,
    Guard.IS_FULL,
    Guard.MAY_JOIN,
    Guard.TAKES_MESSAGES,
    Guard.IS_SUPERSEDED,
]
#: The places where an accepted message can be.
KEEPS = {
    Effect.START,
    Effect.PEND_LAST,
    Effect.PEND_FIRST,
    Effect.SCHEDULE,
    Effect.JOIN,
    Effect.OFFER,
}
REJECTS = {Effect.REJECT_BUSY, Effect.REJECT_FULL, Effect.REJECT_NOT_ACTIVE}


def _creates() -> Iterator[tuple[Holder, OnBusy, tuple[Guard, ...], Rule]]:
    subsets = [s for n in range(len(OF_CREATE) + 1) for s in combinations(OF_CREATE, n)]
    for holder, on_busy, facts in product(Holder, OnBusy, subsets):
        yield holder, on_busy, facts, rule_for(Happening.CREATE, holder, facts, on_busy)


def test_each_request_is_refused_or_its_message_is_in_one_place() -> None:
    """Every request, in every state of its thread, is refused or puts its message in one place."""
    for *case, rule in _creates():
        effects = set(rule.effects)

        assert 1 == len(effects & (KEEPS | REJECTS)), case
        assert not effects & REJECTS or 1 == len(effects), case


def test_a_run_that_waits_for_an_active_one_flags_it() -> None:
    """The end of the active run sees everything that waits for it."""
    waits = {Effect.PEND_LAST, Effect.PEND_FIRST, Effect.OFFER}
    for holder, *case, rule in _creates():
        if holder is not Holder.NONE and waits & set(rule.effects):
            assert Effect.FLAG in rule.effects, (holder, *case)


@pytest.mark.parametrize(
    ("on_busy", "holder", "facts", "effects"),
    [
        ("reject", Holder.EXECUTING, [], [Effect.REJECT_BUSY]),
        ("reject", Holder.NONE, [], [Effect.START]),
        ("enqueue", Holder.WAITING, [], [Effect.PEND_LAST, Effect.FLAG]),
        ("enqueue", Holder.EXECUTING, [Guard.IS_FULL], [Effect.REJECT_FULL]),
        ("merge", Holder.EXECUTING, [Guard.MAY_JOIN, Guard.IS_FULL], [Effect.JOIN]),
        ("merge", Holder.EXECUTING, [], [Effect.PEND_LAST, Effect.FLAG]),
        ("steer", Holder.EXECUTING, [Guard.TAKES_MESSAGES], [Effect.OFFER, Effect.FLAG]),
        ("steer", Holder.EXECUTING, [], [Effect.PEND_LAST, Effect.FLAG]),
        ("steer", Holder.CANCELLING, [Guard.TAKES_MESSAGES], [Effect.PEND_LAST, Effect.FLAG]),
        ("steer", Holder.WAITING, [Guard.TAKES_MESSAGES], [Effect.REJECT_NOT_ACTIVE]),
        (
            "interrupt",
            Holder.EXECUTING,
            [],
            [Effect.PEND_FIRST, Effect.FLAG, Effect.SUPERSEDE_ACTIVE],
        ),
        (
            "interrupt",
            Holder.CANCELLING,
            [Guard.IS_SUPERSEDED],
            [Effect.SUPERSEDE_FIRST, Effect.PEND_FIRST, Effect.FLAG],
        ),
        (
            "rollback",
            Holder.WAITING,
            [],
            [
                Effect.DISCARD_OUTPUT,
                Effect.PEND_FIRST,
                Effect.FLAG,
                Effect.SUPERSEDE_ACTIVE,
                Effect.END_ACTIVE,
            ],
        ),
        ("interrupt", Holder.EXECUTING, [Guard.HAS_TIME], [Effect.SCHEDULE]),
    ],
)
def test_each_value_does_what_it_is_documented_to_do(
    on_busy: str, holder: Holder, facts: list[Guard], effects: list[Effect]
) -> None:
    """The six values of `on_busy` have the effects that the documentation names."""
    assert effects == list(rule_for(Happening.CREATE, holder, facts, OnBusy(on_busy)).effects)


def test_whoever_ends_a_followed_run_starts_the_next_one() -> None:
    """Each kind of busy thread has the next run started by the end of its active one."""
    for holder in BUSY:
        rule = rule_for(Happening.END, holder, [Guard.IS_FOLLOWED])

        assert (Effect.TURN_INTO_RUNS, Effect.START_FIRST) == rule.effects
        assert () == rule_for(Happening.END, holder).effects


def test_the_end_of_a_run_in_a_deleted_thread_starts_no_other() -> None:
    """A sub-run whose thread went with that of its parent has messages waiting for it."""
    for holder in BUSY:
        rule = rule_for(Happening.END, holder, [Guard.IS_FOLLOWED, Guard.IS_GONE])

        assert (Effect.TURN_INTO_RUNS, Effect.WITHDRAW_PENDING) == rule.effects
        assert () == rule_for(Happening.END, holder, [Guard.IS_GONE]).effects


def test_every_rule_is_the_first_one_for_some_case() -> None:
    """No rule is hidden by those before it."""
    used = {rule.name for *_, rule in _creates()}
    facts = [*Guard]
    subsets = [s for n in (0, 1, 2) for s in combinations(facts, n)]
    for happening, holder, known in product(set(Happening) - {Happening.CREATE}, Holder, subsets):
        try:
            used.add(rule_for(happening, holder, known).name)
        except LookupError:
            continue
    assert {rule.name for rule in RULES} == used
    assert len(RULES) == len({rule.name for rule in RULES})
