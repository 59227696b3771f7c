"""Questions to Postgres that many streams ask at once, answered together.

When a process ends, thousands of clients come to another one within a moment.
Whatever is asked while a query is under way is asked together in the next one.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
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
    """Asks `read` in a thread of its own, for at most `at_once` keys at a time."""

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
            if not self._is_asking:
                self._is_asking = True
                threading.Thread(target=self._ask, name=self._name, daemon=True).start()
        question.answered.wait()
        if question.error is not None:
            # One of its own for each: a traceback grows with each thread that raises it.
            raise type(question.error)() from question.error
        return question.answer

    def _ask(self) -> None:
        """Query the database until no request is left."""
        while True:
            with self._lock:
                asked = {key: self._asked.pop(key) for key in list(self._asked)[: self._at_once]}
                if not asked:
                    self._is_asking = False
                    return
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
            finally:
                for question in asked.values():
                    question.answered.set()
