"""A silent server is asked by one caller at a time."""

from arkloop.shared.storage.outage import Outage
from tests.waiting import eventually, in_parallel


def test_a_server_that_answers_is_asked_by_everyone() -> None:
    """Every caller may use an available server, which keeps no state."""
    outage = Outage(60)
    outage.answered()

    assert [True] * 20 == in_parallel(20, lambda _: outage.may_try())
    assert not outage.is_on


def test_while_a_server_is_silent_nobody_asks() -> None:
    """A silent server is not used until the pause is over."""
    outage = Outage(60)
    outage.failed()

    assert [False] * 20 == in_parallel(20, lambda _: outage.may_try())
    assert outage.is_on


def test_an_outage_is_remembered_for_a_time() -> None:
    """The end of an outage does not end that."""
    outage = Outage(60)
    assert not outage.was_within(60)
    outage.failed()
    outage.answered()

    assert outage.was_within(60)
    assert not outage.was_within(0)


def test_after_the_pause_one_caller_tries() -> None:
    """The other callers still fail at once."""
    outage = Outage(0)
    outage.failed()
    outage._pause = 60

    assert [False] * 19 + [True] == sorted(in_parallel(20, lambda _: outage.may_try()))


def test_the_first_answer_lets_everyone_ask_again() -> None:
    """The first response to any caller ends the outage for all."""
    outage = Outage(0.01)
    outage.failed()
    eventually(outage.may_try)
    outage.answered()

    assert [True] * 20 == in_parallel(20, lambda _: outage.may_try())


def test_who_waited_while_it_began_is_stopped() -> None:
    """Callers that waited when the outage began are stopped, except the one that tries."""
    outage = Outage(0.01)
    assert not outage.began_meanwhile
    outage.failed()
    assert outage.began_meanwhile
    eventually(outage.may_try)

    assert not outage.began_meanwhile
    assert [True] == in_parallel(1, lambda _: outage.began_meanwhile)
