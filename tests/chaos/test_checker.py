"""The checker finds nothing in a correct journal, and every kind of spoilt one out."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.scenarios import BY_NAME
from chaos.verdict.checker import CHECKED_ELSEWHERE, INVARIANTS, Allow, check, report
from tests.chaos.correct_journal import EPOCH, Record, fault, of_kind, post, request
from tests.chaos.correct_tale import correct_tale
from tests.chaos.spoilt_journals import JOURNALS, SpoilJournal
from tests.chaos.spoilt_tales import TALES, SpoilTale, insert, slow_cancel, tell, update
from tests.chaos.told_events import (
    cancelled,
    completed,
    completed_turn,
    cost,
    deltas,
    received,
    resumed,
    started,
    waiting,
)

MANY_FAIL = Allow(acknowledged=0.5)


def test_a_correct_journal_has_no_violation() -> None:
    """Runs of every kind, a killed worker and lost requests in its window are all right."""
    assert [] == check(correct_tale().render())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_clients_may_come_and_go_as_they_like(seed: int) -> None:
    """A correct journal stays clean, whatever is disconnected or read again."""
    assert [] == check(correct_tale().render(random.Random(seed)))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), kept=st.floats(0.0, 1.0))
def test_an_incomplete_journal_is_checked_all_the_same(seed: int, kept: float) -> None:
    """Records that are missing, or miss fields, make violations at most, never an exception."""
    rng = random.Random(seed)
    journal = [dict(record) for record in correct_tale().render(rng) if rng.random() < kept]
    for record in journal:
        if rng.random() < 0.1:
            del record[rng.choice(sorted(record))]

    check(journal)


def test_where_the_load_is_too_much_503_with_a_time_is_an_answer() -> None:
    """Without a time it is none, and without that allowance either."""
    journal = correct_tale().render()
    [spoil] = [spoil for _, why, spoil in JOURNALS if why == "503 without a fault"]
    spoil(journal)

    assert {"A1"} == {v.invariant for v in check(journal, allow=Allow(acknowledged=0.5))}
    assert [] == check(journal, allow=Allow(sheds=True, acknowledged=0.5))


def test_every_invariant_is_checked_or_says_why_not() -> None:
    """I1 to I19 are all there."""
    named = {*INVARIANTS, *CHECKED_ELSEWHERE} - {"A1", "A2", "A3", "NV"}

    assert {f"I{number}" for number in range(1, 20)} == named


def test_the_report_counts_and_quotes() -> None:
    """It names the promise, how often it was broken, and where."""
    tale = correct_tale()
    tale.effects += ["e1", "e2", "e2"]

    text = report(check(tale.render()))

    assert text.startswith("I9 × 2: A side effect happens at most once")
    assert "the effect e1 happened 2 times" in text
    assert "No violation." == report([])


@pytest.mark.parametrize(
    ("invariant", "spoil"),
    [pytest.param(name, spoil, id=f"{name}: {what}") for name, what, spoil in JOURNALS],
)
def test_what_one_client_sees_wrongly_is_found(invariant: str, spoil: SpoilJournal) -> None:
    """A record that a correct service would not have led to is reported."""
    journal: list[Record] = json.loads(json.dumps(correct_tale().render()))

    spoil(journal)

    assert invariant in {violation.invariant for violation in check(journal)}


@pytest.mark.parametrize(
    ("invariant", "spoil"),
    [pytest.param(name, spoil, id=f"{name}: {what}") for name, what, spoil in TALES],
)
def test_what_a_service_does_wrongly_is_found(invariant: str, spoil: SpoilTale) -> None:
    """A fault that all clients see alike is reported under its invariant."""
    tale = correct_tale()

    spoil(tale)

    assert invariant in {violation.invariant for violation in check(tale.render())}


def test_a_pending_input_of_another_request_is_found() -> None:
    """A body that waits names the request of the last event."""
    journal = correct_tale().render()
    look, *_ = of_kind(journal, "run", run_id="ask")
    look["body"]["pending_input"] = {"request_id": "r2"}

    assert {"I13"} == {violation.invariant for violation in check(journal)}


# ---- what is allowed -----------------------------------------------------------------


def test_a_cancel_may_take_longer_near_a_fault() -> None:
    """Five seconds, and 25 where a fault was not long ago."""
    tale = correct_tale()
    slow_cancel(tale)
    begins = tale.runs["cancel"].begins
    tale.faults += [fault(begins, "redis", "begin"), fault(begins + 1, "redis", "end")]

    assert [] == check(tale.render())
    assert {"I11"} == {v.invariant for v in check(tale.render(), allow=Allow(cancel_in_fault=6))}


def test_a_fault_that_does_not_end_excuses_to_the_end() -> None:
    """Begin without end is a window up to the end of the journal."""
    tale = correct_tale()
    tale.requests.append({**request(EPOCH + 90, "no_answer"), "error": "refused"})
    tale.faults.append(fault(80, "web", "begin"))

    assert [] == check(tale.render())


def test_a_fault_excuses_for_its_grace_alone() -> None:
    """After a fault the service must be back within the grace."""
    tale = correct_tale()
    tale.requests.append({**request(EPOCH + 85, "no_answer"), "error": "refused"})
    tale.faults += [fault(80, "web", "begin"), fault(81, "web", "end")]

    assert [] == check(tale.render())
    found = check(tale.render(), allow=Allow(grace=3, acknowledged=0.5))
    assert {"A1"} == {violation.invariant for violation in found}


@pytest.mark.parametrize("name", ["redis frozen", "broker refuses"])
@pytest.mark.parametrize(
    "missed",
    [
        post(EPOCH + 85, status=503, code="service.unavailable", retry_after="1"),
        {**request(EPOCH + 85, "no_answer"), "error": "TimeoutError"},
    ],
    ids=["503", "no answer"],
)
def test_a_fault_of_redis_excuses_no_request(name: str, missed: Record) -> None:
    """Everything is answered without Redis; a fault of Postgres at the same time excuses."""
    tale = correct_tale()
    tale.requests += [missed, post(EPOCH + 86, status=201)]
    tale.faults += [fault(84, name, "begin"), fault(87, name, "end")]

    found = {violation.invariant for violation in check(tale.render(), allow=MANY_FAIL)}
    tale.faults += [fault(83, "postgres stopped", "begin"), fault(84, "postgres stopped", "end")]

    assert {"A1"} == found
    assert [] == check(tale.render(), allow=MANY_FAIL)


def test_creates_must_be_acknowledged_while_redis_is_away() -> None:
    """Six seconds without Redis in which nothing was created prove nothing."""
    tale = correct_tale()
    tale.faults += [fault(84, "redis frozen", "begin"), fault(90, "redis frozen", "end")]

    assert {"NV"} == {violation.invariant for violation in check(tale.render())}
    tale.requests.append(post(EPOCH + 86, status=201))
    assert [] == check(tale.render())


def test_a_poison_run_may_lose_more_workers_to_postgres() -> None:
    """A worker that could not renew its lease does not count."""
    tale = correct_tale()
    insert(tale, "poison", 4, resumed(4))
    begins = tale.runs["poison"].begins
    tale.faults += [
        fault(begins, "postgres-stop", "begin"),
        fault(begins + 1, "postgres-stop", "end"),
    ]

    assert [] == check(tale.render())


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_run_may_be_given_up_whose_workers_were_killed_by_chance(deaths: int) -> None:
    """Three of them, while it was executed: fewer are no reason to give it up."""
    tale = correct_tale()
    told = tale.runs["poison"]
    told.expect = {**told.expect, "poison": False, "statuses": ["completed"]}
    died = {"kind": "process", "role": "worker", "pid": 1, "what": "died"}
    tale.faults += [{"at": told.at(1) + 0.01 * number, **died} for number in range(1, deaths + 1)]

    found = {violation.invariant for violation in check(tale.render())}

    assert (set() if deaths == 3 else {"I5", "I17"}) == found


def test_kills_must_lead_to_recoveries_where_the_scenario_says_so() -> None:
    """A parameter: a kill that nobody noticed proves nothing."""
    journal = correct_tale().render()

    assert [] == check(journal, allow=Allow(resumes_per_worker_death=4))
    assert {"NV"} == {v.invariant for v in check(journal, allow=Allow(resumes_per_worker_death=5))}


def test_a_bound_on_the_whole_run_is_checked_where_it_is_given() -> None:
    """A run is measured from creation to end where a bound is given; without one it may take any
    time.
    """
    tale = correct_tale()
    update(tale, "talk", pause=2.0)

    assert [] == check(tale.render())
    assert {"I5"} == {v.invariant for v in check(tale.render(), allow=Allow(end=10))}


@pytest.mark.parametrize("name", ["plain", "rolling-restart"])
def test_a_run_that_hangs_is_found_where_workers_do_not_die(name: str) -> None:
    """A run that ends only by its persona's time is too late there."""
    tale = correct_tale()
    update(tale, "talk", pause=20.0)

    assert {"I5"} == {v.invariant for v in check(tale.render(), allow=BY_NAME[name].allow)}


@pytest.mark.parametrize("name", ["worker-kills", "storm"])
def test_kills_of_idle_workers_are_found(name: str) -> None:
    """The scenarios that kill workers at random have runs that lose theirs."""
    tale = correct_tale()
    died = {"kind": "process", "role": "worker", "pid": 1, "what": "died"}
    tale.faults += [{"at": EPOCH + 20.3, **died} for _ in range(9)]

    assert {"NV"} == {v.invariant for v in check(tale.render(), allow=BY_NAME[name].allow)}


def test_a_broken_off_call_without_numbered_text_costs_more() -> None:
    """No reset is there to tell of it, but the usage is estimated."""
    tale = correct_tale()
    events = [started(), *deltas("x"), completed_turn("m", "x"), cost(1, 3), completed("m", 1, 3)]
    tell(tale, *events)

    assert [] == check(tale.render())


def test_a_question_that_a_cancel_ends_needs_no_answer() -> None:
    """An accepted answer of a cancelled run may be used or not."""
    tale = correct_tale()
    unanswered = tale.runs["unanswered"]
    unanswered.inputs.append(("r1", "Rome"))
    unanswered.events[-1:] = [resumed(1, "input"), received("r1", "Rome"), cancelled(1)]
    unanswered.looks = [5]

    assert [] == check(tale.render())
    assert waiting("r1", "c1") == unanswered.events[4]
