"""Native threads for calls that would stop every greenlet of a process."""

import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import gevent
from gevent import GreenletExit, monkey
from gevent.event import Event
from gevent.exceptions import LoopExit
from gevent.threadpool import ThreadPool

T = TypeVar("T")
R = TypeVar("R")

start_thread = monkey.get_original("_thread", "start_new_thread")
new_lock = monkey.get_original("_thread", "allocate_lock")
_sleep = monkey.get_original("time", "sleep")

#: The pauses of code that waits again and again for what its thread cannot bring about.
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.001, 1.0


class NativeThreads:
    """A pool of at most `count` native threads, started at the first call that needs one."""

    def __init__(self, count: int) -> None:
        self._count = count

    def call(self, function: Callable[..., T], *args: Any, seconds: float | None = None) -> T:
        """Call the function in a native thread where threads are greenlets, else here.

        Raises:
            TimeoutError: it takes longer than `seconds`, in a native thread, which stays with it.
        """
        if monkey.is_module_patched("threading"):
            with gevent.Timeout(seconds, TimeoutError("a call in a native thread hangs")):
                outcome = self._pool.apply(_Outcome.of, (function, args))
            if outcome.error is not None:
                try:
                    raise outcome.error
                finally:
                    del outcome  # the error's traceback would keep both, until garbage is collected
            result: T = outcome.result
            return result
        return function(*args)

    def finish(self, function: Callable[..., object], *args: Any, seconds: float) -> None:
        """Make a call that must not be left out: it is waited for `seconds`, and made even later.

        The function raises nothing.
        """
        if monkey.is_module_patched("threading"):
            gevent.spawn(self._pool.apply, function, args).join(seconds)
        else:
            function(*args)

    @cached_property
    def _pool(self) -> ThreadPool:
        return ThreadPool(self._count)


class _Outcome(NamedTuple):
    """The result or the error of a function; gevent also reports what a thread of a pool raises."""

    result: Any = None
    error: BaseException | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], args: Iterable[Any]) -> "_Outcome":
        """Call the function."""
        try:
            return cls(result=function(*args))
        except BaseException as error:
            return cls(error=error)


class _Call:
    """A call that waits to be made in another thread; the lock is free once it was."""

    def __init__(self, function: Callable[[], Any], *, when_closed: bool) -> None:
        self.function = function
        self.when_closed = when_closed
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = new_lock()
        self.is_done.acquire()

    def make(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error
        self.is_done.release()


def call_within(seconds: float, function: Callable[..., T], *args: Any) -> T:
    """Call the function in a native thread of its own, also where threads are no greenlets.

    All greenlets wait for it: it is for commands and for the start of a process.

    Raises:
        TimeoutError: it takes longer. Its thread stays with it, and the process can end.
    """
    call = _Call(partial(function, *args), when_closed=False)
    start_thread(call.make, ())
    if not call.is_done.acquire(timeout=seconds):
        raise TimeoutError(f"it does not respond within {seconds:g} s")
    if call.error is not None:
        raise call.error
    result: T = call.result
    return result


class _Thread:
    """A native thread that is used again: gevent keeps some memory of each one that ends."""

    idle: ClassVar[list["_Thread"]] = []

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._has_job = new_lock()
        self._has_job.acquire()
        start_thread(self._run, ())

    @classmethod
    def start(cls, job: "_Job") -> None:
        """Do the job in an idle thread, or in a new one."""
        try:
            thread = cls.idle.pop()
        except IndexError:
            thread = cls()
        thread._job = job
        thread._has_job.release()

    def _run(self) -> None:
        while True:
            self._has_job.acquire()
            job, self._job = self._job, None
            assert job is not None
            # In a greenlet of its own: what is local to a thread ends with it.
            _join(gevent.spawn(job.function), job.is_closed_within)
            del job
            _Thread.idle.append(self)


class _Job(NamedTuple):
    """The work of a thread; `is_closed_within` waits, for up to these seconds, until its code is
    closed.
    """

    function: Callable[[], None]
    is_closed_within: Callable[[float], bool]


def _join(greenlet: gevent.Greenlet, is_closed_within: Callable[[float], bool]) -> None:
    """Wait for the greenlet; raise in it that nothing in this thread can end what it waits for.

    gevent raises that here, and the greenlet would never end. Its code may catch that and wait
    again, which would take a whole processor: the pauses grow. Once the code is closed, what is
    raised in it is not derived from Exception.
    """
    pause = 0.0
    while not greenlet.ready():
        try:
            greenlet.join()
        except LoopExit as error:
            is_closed = is_closed_within(pause)
            pause = min(max(FIRST_PAUSE_SECONDS, 2 * pause), MAX_PAUSE_SECONDS)
            greenlet.kill(GreenletExit() if is_closed else error, block=False)


class ForeignCode(Generic[T]):
    """A function of others in a native thread, whose calls back are made where it was started.

    Between greenlets such code could block the whole process, and event loops of asyncio exclude
    each other in one native thread. All methods but `call_back`, `sleep` and `wake`
    are called by the thread that made this, which may be a greenlet.
    """

    def __init__(self, function: Callable[["ForeignCode[T]"], T]) -> None:
        """Start the function, with this thread's context."""
        self.has_ended = False
        self.result: T
        self.error: BaseException | None = None
        self._calls: deque[_Call] = deque()
        self._closed: Callable[[], BaseException] | None = None
        self._is_released = False
        self._lock = new_lock()  # of `_calls` and `_closed`; never held for longer than a moment
        self._is_open = new_lock()  # free once it is closed
        self._is_open.acquire()
        self._ready = Event()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._ready.set)
        context = contextvars.copy_context()
        _Thread.start(_Job(lambda: context.run(self._run, function), self._is_closed_within))

    def _run(self, function: Callable[["ForeignCode[T]"], T]) -> None:
        self._execute(function)
        with self._lock:
            self.has_ended = True
            if not self._is_released:
                self._wake.send()

    def _execute(self, function: Callable[["ForeignCode[T]"], T]) -> None:
        try:
            self.result = function(self)
        except BaseException as error:
            self.error = error

    # ---- in the native thread ----

    def call_back(self, function: Callable[[], R], *, when_closed: bool = False) -> R:
        """Call the function in the thread that made this. With `when_closed` it is also called
        between `close` and `release`.

        Raises: as the function, or what `close` was given.
        """
        call = _Call(function, when_closed=when_closed)
        with self._lock:
            if self._closed is not None and (self._is_released or not when_closed):
                raise self._closed()
            self._calls.append(call)
            self._wake.send()
        call.is_done.acquire()
        if call.error is not None:
            raise call.error
        result: R = call.result
        return result

    def sleep(self, seconds: float) -> None:
        """Sleep; raises the reason as soon as this is closed."""
        if self._is_open.acquire(timeout=max(0.0, min(seconds, 10**6))):
            self._is_open.release()
        if self._closed is not None:
            raise self._closed()

    def _is_closed_within(self, seconds: float) -> bool:
        if self._closed is not None:
            _sleep(seconds)
        elif self._is_open.acquire(timeout=seconds):
            self._is_open.release()
        return self._closed is not None

    # ---- in the thread that made this ----

    def wake(self) -> None:
        """Let `serve` return; may be called in any thread."""
        with self._lock:
            if not self._is_released:
                self._wake.send()

    def serve(self, seconds: float | None = None) -> bool:
        """Make calls until the function ends, `wake` is called or the time is over.

        Returns whether the function has ended.
        """
        self._ready.wait(seconds)
        self._ready.clear()
        while self._calls:
            self._calls.popleft().make()
        return self.has_ended

    def close(self, reason: Callable[[], BaseException]) -> None:
        """Raise what `reason` returns wherever the function calls back or sleeps, from now on."""
        with self._lock:
            if self._closed is None:
                self._closed = reason
                self._is_open.release()
            self._refuse([call for call in self._calls if not call.when_closed])

    def release(self) -> None:
        """Release what waiting takes; the function may still be there, but makes no calls."""
        with self._lock:
            assert self._closed is not None
            self._is_released = True
            self._wake.close()
            self._refuse([*self._calls])

    def _refuse(self, calls: Iterable[_Call]) -> None:
        assert self._closed is not None
        for call in calls:
            self._calls.remove(call)
            call.error = self._closed()
            call.is_done.release()
