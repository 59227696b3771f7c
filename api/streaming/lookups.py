"""Questions to Postgres that many streams ask at once, answered together.

When a process ends, thousands of clients come to another one within a moment.
Whatever is asked while a query is under way is asked together in the next one.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from arkloop.shared.errors import Unavailable

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Question(Generic[V]):
    """A question, shared by all who ask it at the same time."""

    answered: threading.Event = field(default_factory=threading.Event)
    answer: V | None = None
    error: Exception | None = None


class Lookups(Generic[K, V]):
    """Asks `read` for at most `at_once` keys at a time, and once at a time.

    The first that comes asks in its own thread; for those that come meanwhile a thread is started.
    """

    def __init__(
        self, name: str, read: Callable[[Sequence[K]], Mapping[K, V]], *, at_once: int = 500
    ) -> None:
        self._name = name
        self._read = read
        self._at_once = at_once
        self._lock = threading.Lock()
        self._asked: dict[K, _Question[V]] = {}
        self._is_asking = False

    def get(self, key: K) -> V | None:
        """Return what is read for the key now or later, None if nothing is.

        Raises:
            Unavailable: Postgres is out of reach.
        """
        with self._lock:
            question = self._asked.get(key)
            if question is None:
                question = self._asked[key] = _Question()
            must_ask, self._is_asking = not self._is_asking, True
        if must_ask:
            try:
                self._ask()
            finally:
                self._hand_over()
        question.answered.wait()
        if question.error is not None:
            # One of its own for each: a traceback grows with each thread that raises it.
            raise type(question.error)() from question.error
        return question.answer

    def _hand_over(self) -> None:
        """Let a thread ask for those that have come meanwhile: this request has its answer."""
        if not self._is_more():
            return
        try:
            threading.Thread(target=self._ask_all, name=self._name, daemon=True).start()
        except BaseException:  # there may be no more threads
            with self._lock:
                asked, self._asked, self._is_asking = self._asked, {}, False
            _refuse(asked.values())
            raise

    def _ask_all(self) -> None:
        """Query the database until no request is left."""
        try:
            while self._is_more():
                self._ask()
        except BaseException:
            self._hand_over()
            raise

    def _is_more(self) -> bool:
        with self._lock:
            self._is_asking = is_more = bool(self._asked)
        return is_more

    def _ask(self) -> None:
        """Query the database once, for those that have asked until now."""
        with self._lock:
            asked = {key: self._asked.pop(key) for key in list(self._asked)[: self._at_once]}
        try:
            answers = self._read(list(asked))
            for key, question in asked.items():
                question.answer = answers.get(key)
        except Unavailable as error:
            for question in asked.values():
                question.error = error
        except Exception as error:
            log.exception(self._name)
            for question in asked.values():
                question.error = RuntimeError(str(error))
        except BaseException:
            # This thread is being ended; what the others have asked for is not known.
            _refuse(asked.values())
            raise
        finally:
            for question in asked.values():
                question.answered.set()


def _refuse(questions: Iterable[_Question[V]]) -> None:
    for question in questions:
        question.error = Unavailable()
        question.answered.set()
