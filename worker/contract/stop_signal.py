"""The stop signal of a run: set from any thread, effective at once wherever the run waits."""

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial

from arkloop.shared.errors import LeaseLost
from arkloop.worker.contract.outcomes import TimeToLand

log = logging.getLogger(__name__)


class StopSignal:
    """A signal that raises its reason in every thread that checks, waits or reads a model's stream.

    The first reason wins, but for `LeaseLost`, which comes before every other, and `TimeToLand`,
    after which the run continues: it comes after every other, and counts only while `can_land` and
    while the model does not stream what may be its answer, `is_answering`.
    """

    def __init__(self) -> None:
        self._set = threading.Event()
        self._lock = threading.Lock()
        self._reason: BaseException | None = None
        self.can_land = self.is_answering = False
        # Tools run side by side, and each of them may have something to abort.
        self._aborts: dict[object, Callable[[], None]] = {}

    def set(self, reason: BaseException) -> None:
        with self._lock:
            if isinstance(reason, TimeToLand) and (not self.can_land or self.is_answering):
                return
            is_final = self._reason is not None and not isinstance(self._reason, TimeToLand)
            if is_final and not isinstance(reason, LeaseLost):
                return
            self._reason = reason
            aborts = list(self._aborts.values())
        self._set.set()
        for abort in aborts:
            _call(abort)

    def begin_landing(self) -> None:
        """Withdraw `TimeToLand`: the run makes its last call."""
        with self._lock:
            self.can_land = False
            if isinstance(self._reason, TimeToLand):
                self._reason = None
                self._set.clear()

    @property
    def lease_lost(self) -> bool:
        return isinstance(self._reason, LeaseLost)

    def check(self) -> None:
        """Raise the reason, if there is one."""
        if self._reason is not None:
            raise self._reason

    def wait(self, seconds: float) -> None:
        """Sleep, or raise the reason as soon as there is one."""
        self._set.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def aborting(self, abort: Callable[[], None], *, may_block: bool = False) -> Iterator[None]:
        """Call `abort` when the signal is set within this block (closes a model's connection).

        Many threads may be in blocks of theirs at once. Whatever the abort makes fail inside
        turns into the reason. An abort that `may_block` gets a thread of its own.
        """
        block = object()
        if may_block:
            abort = partial(_start, contextvars.copy_context(), abort)
        with self._lock:
            self._aborts[block] = abort
        try:
            self.check()
            yield
        except Exception:
            self.check()
            raise
        finally:
            with self._lock:
                del self._aborts[block]
        self.check()


def _call(abort: Callable[[], None]) -> None:
    """Call an abort; one that raises does not keep the signal from other blocks, or other runs."""
    try:
        abort()
    except Exception:
        log.exception("an abort raised")


def _start(context: contextvars.Context, abort: Callable[[], None]) -> None:
    """Call an abort in a thread, with the context of its block: lines that it logs name the run."""
    # In a copy: the signal can be set again meanwhile, and a context is entered once at a time.
    target = context.copy().run
    threading.Thread(target=target, args=(_call, abort), name="abort", daemon=True).start()
