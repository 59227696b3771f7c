"""Lookups of names that orgs and models choose, apart from those of the service's own names.

Nothing interrupts a lookup whose name server does not respond, and gevent makes all those of a
process in ten native threads: behind a few such names, connections to Postgres, Redis and the
operator's vendors would wait.
"""

import socket
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from arkloop.shared.native_threads import NativeThreads

#: Lookups of a process at a time, and those of one name: an endpoint that fails is attempted again
#: while its former lookups are still in progress. All endpoints of an org leave places free. Two
#: are enough for a popular name, since those that wait share an answer.
MAX_LOOKUPS = 64
MAX_LOOKUPS_OF_NAME = 2

Found = list[tuple[Any, ...]]


class _Name:
    """A name that is being looked up, and the last answer with its port.

    Only callers that have waited for the answer share it: for them it is fresh.
    """

    def __init__(self) -> None:
        self.places = threading.BoundedSemaphore(MAX_LOOKUPS_OF_NAME)
        self.last: tuple[int, Found] | None = None


_places = threading.BoundedSemaphore(MAX_LOOKUPS)
_names: WeakValueDictionary[str, _Name] = WeakValueDictionary()
_lock = threading.Lock()  # of `_names`


def look_up(host: str, port: int, is_given_up: Callable[[], bool] | None = None) -> Found:
    """Return what `socket.getaddrinfo` finds for TCP.

    Raises:
        OSError: the name has no address, the resolver failed, or the lookup was given up before its
            turn.
    """
    new = _Name()
    with _lock:
        name = _names.setdefault(host, new)
    before = name.last
    with name.places:
        last = name.last
        if last is not None and last is not before and last[0] == port:
            return last[1]
        with _places:
            if is_given_up is not None and is_given_up():
                raise TimeoutError("The lookup was given up.")
            # Where gevent is not loaded, as in the sidecars of MCP, the caller's thread may wait.
            if "gevent.monkey" in sys.modules:
                found = _in_native_thread(host, port)
            else:
                found = _found(socket.getaddrinfo, host, port)
        # An error is not shared: lost packets of one lookup would fail all the others.
        if isinstance(found, OSError):
            raise found
        name.last = port, found
    return found


def _in_native_thread(host: str, port: int) -> Found | OSError:
    from gevent import monkey

    return _threads().call(_found, monkey.get_original("socket", "getaddrinfo"), host, port)


@cache
def _threads() -> "NativeThreads":
    from arkloop.shared.native_threads import NativeThreads

    return NativeThreads(MAX_LOOKUPS)


def _found(getaddrinfo: Callable[..., Found], host: str, port: int) -> Found | OSError:
    """Look the name up; returns an error, since gevent prints what a native thread raises."""
    try:
        return getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except OSError as error:
        return error
