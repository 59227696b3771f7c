"""Code of others in native threads, with calls back into the thread that started it."""

import contextlib
import threading
from typing import Any

import pytest
from gevent.event import Event
from gevent.exceptions import LoopExit

from arkloop.shared.native_threads import ForeignCode
from tests.waiting import eventually


def finished(code: ForeignCode[Any]) -> ForeignCode[Any]:
    """Make the code's calls until it has ended."""
    while not code.has_ended:
        code.serve(10)
    code.close(RuntimeError)
    code.release()
    return code


def test_calls_back_are_made_where_the_code_was_started() -> None:
    """The code runs elsewhere, and gets what its calls return and raise."""
    here = threading.get_ident()

    def code(own: ForeignCode[Any]) -> list[Any]:
        with pytest.raises(ZeroDivisionError):
            own.call_back(lambda: 1 // 0)
        return [threading.get_ident() == here, own.call_back(threading.get_ident) == here]

    assert [False, True] == finished(ForeignCode(code)).result


def test_an_error_of_the_code_is_kept() -> None:
    """An exception ends the code, and no other thread."""

    def code(_own: ForeignCode[Any]) -> None:
        raise KeyError("x")

    assert isinstance(finished(ForeignCode(code)).error, KeyError)


def test_code_that_waits_for_what_no_other_can_bring_about_ends() -> None:
    """A wait that only another native thread could end is an error, as gevent reports it."""
    threads: set[int] = set()

    def code(_own: ForeignCode[Any]) -> None:
        threads.add(threading.get_ident())
        with pytest.raises(LoopExit):
            Event().wait()
        Event().wait()

    for _ in range(5):
        started = ForeignCode(code)
        assert started.serve(60), "it waits forever"
        assert isinstance(finished(started).error, LoopExit)

    # One that is not yet idle when the next code starts is used again by later code.
    assert 5 > len(threads), "they are used again"


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_code_that_waits_again_takes_no_processor(caught: type[BaseException]) -> None:
    """Such waits get slower, and once the code is closed they end, unless it catches that, too."""
    waits = [0]

    def code(_own: ForeignCode[Any]) -> None:
        while waits[0] < 1_000:
            waits[0] += 1
            with contextlib.suppress(caught):
                Event().wait()

    started = ForeignCode(code)
    assert not started.serve(0.3)
    started.close(RuntimeError)

    has_ended = started.serve(60 if caught is Exception else 0.3)

    assert has_ended == (caught is Exception)
    assert waits[0] < 50
    started.release()
    waits[0] = 1_000


def test_threads_are_used_again() -> None:
    """Code that follows other code has its native thread, if that is idle by then."""
    threads = [finished(ForeignCode(lambda _own: threading.get_ident())).result for _ in range(20)]

    assert 10 > len(set(threads))


def test_closed_code_can_neither_call_nor_sleep() -> None:
    """Code that was abandoned learns it at its next call, or within its sleep."""
    raised: list[str] = []

    def code(own: ForeignCode[Any]) -> None:
        for call in (lambda: own.sleep(60), lambda: own.call_back(int)):
            try:
                call()
            except RuntimeError:
                raised.append("closed")

    started = ForeignCode(code)
    started.close(RuntimeError)
    while not started.serve(10):
        pass
    started.release()

    assert ["closed", "closed"] == raised


def test_calls_that_must_not_get_lost_are_made_until_the_release() -> None:
    """Closed code has a moment to end, in which it reports what it has done."""
    results: list[Any] = []

    def code(own: ForeignCode[Any]) -> None:
        with pytest.raises(RuntimeError):
            own.sleep(60)
        results.append(own.call_back(lambda: "late", when_closed=True))
        released.wait(30)
        with pytest.raises(RuntimeError):
            own.call_back(lambda: "too late", when_closed=True)
        results.append("ended")

    released = threading.Event()
    started = ForeignCode(code)
    started.close(RuntimeError)
    while not results:
        started.serve(10)
    started.release()
    released.set()

    eventually(lambda: results == ["late", "ended"])
