"""The broker's transport of a worker: kombu's for Redis, but it takes several messages at a time.

kombu asks for one message, waits for the socket, reads it, delivers it and asks again, which takes
a third of the time that Celery spends on a message.
"""

import logging
import math
import select
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, ClassVar

from kombu import transport
from kombu.transport import redis as kombus
from kombu.transport.virtual import Empty
from kombu.utils import compat, eventio
from kombu.utils import json as kombus_json
from redis.exceptions import NoPermissionError, ResponseError

log = logging.getLogger(__name__)

MOST_TAKEN = 10

_KombusChannel: Any = kombus.Channel  # half of it has types
_loads: Any = kombus_json.loads  # it has none
_kombus: Any = kombus  # the name that `use` changes has none
_kombus_poll: Any = eventio.poll
_environment: Any = compat.detect_environment


class Channel(_KombusChannel):  # type: ignore[misc]  # for mypy any value, by the line above
    """A channel that takes up to `MOST_TAKEN` messages at once, where the server can give them.

    It begins with one, and takes twice as many each time when the list had all that it asked for:
    of a burst that is shorter than `MOST_TAKEN`, other workers have their part.
    """

    #: By the transport options: the installation by whose name keys begin, which can change. None:
    #: they begin with no name.
    installation: Callable[[], str] | None = None
    #: By the transport options: how many messages the process can begin with now. Celery's limit of
    #: messages in advance does not say that, and those of an answer wait until the pool has a slot.
    free_slots: Callable[[], int] | None = None
    from_transport_options: ClassVar[tuple[str, ...]] = (
        *_KombusChannel.from_transport_options,
        "free_slots",
        "installation",
    )
    #: Redis has BLMPOP since 7.0.
    _gives_several = True
    _most = 1

    @property
    def global_keyprefix(self) -> str:
        """The beginning of all keys, as kombu calls it."""
        return "" if self.installation is None else f"{self.installation()}:"

    def _brpop_start(self, timeout: float | None = None) -> None:
        # Here alone, where no question is open: its answer has the name that was asked for.
        if self.client.global_keyprefix != self.global_keyprefix:
            self.Client = self._get_client()  # of later clients, which give messages back
            self.client.global_keyprefix = self.global_keyprefix
        if not self._gives_several:
            super()._brpop_start(timeout)
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        keys = [
            self.client.global_keyprefix + self._q_for_pri(queue, priority)
            for priority in self.priority_steps
            for queue in queues
        ]
        room = self._most if self.free_slots is None else self.free_slots()
        in_advance = self.qos.can_consume_max_estimate()
        self._asked = max(
            1, min(self._most, room, MOST_TAKEN if in_advance is None else in_advance)
        )
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command(
            *("BLMPOP", timeout or self.brpop_timeout or 0, len(keys), *keys),
            *("RIGHT", "COUNT", self._asked),
        )

    def _brpop_read(self, **options: Any) -> bool:
        if not self._gives_several:
            return bool(super()._brpop_read(**options))
        try:
            answer = self.client.connection.read_response()
        except self.connection_errors:
            self.client.connection.disconnect()  # the next cycle connects anew
            raise
        except ResponseError as error:
            if not isinstance(error, NoPermissionError) and "unknown command" not in str(error):
                raise
            log.warning("the broker gives messages one at a time: %s", error)
            type(self)._gives_several = False
            raise Empty from None
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if not answer:
            self._most = 1
            raise Empty
        key, messages = answer
        self._most = min(2 * self._asked, MOST_TAKEN) if len(messages) == self._asked else 1
        queue = _text(key).removeprefix(self.client.global_keyprefix).rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        for text in map(_text, messages):
            try:
                message = _loads(text)
            except ValueError:  # the others of the answer are good
                log.warning("a message of the broker is not JSON: %.100r", text)
                continue
            self.connection._deliver(message, queue)
        # The tasks begin before more is asked for: where they are greenlets, none runs until now.
        sleep(0)
        return True


class Transport(kombus.Transport):
    """kombu's transport, with our channels."""

    Channel = Channel


class Poller:
    """A poller as kombu's, for sockets of any number.

    With greenlets kombu uses select(), which raises ValueError for a descriptor of 1,024 or more:
    a worker with as many connections would end at the next one to its broker. kombu's own poll()
    is no substitute: a closed socket has lost its number, and cannot be unregistered there.
    """

    def __init__(self) -> None:
        self._sockets: set[Any] = set()

    def register(self, sock: Any, events: int) -> None:
        self._sockets.add(sock)

    def unregister(self, sock: Any) -> None:
        """Forget a socket, or the one with this number."""
        self._sockets = {one for one in self._sockets if one is not sock and one.fileno() != sock}

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait until a socket is readable or has failed, for at most `timeout` seconds."""
        poller = select.poll()
        for sock in self._sockets:
            if sock.fileno() >= 0:
                poller.register(sock, select.POLLIN)
        ready = poller.poll(None if timeout is None else math.ceil(timeout * 1000))
        return [(number, eventio.READ) for number, _ in ready]

    def close(self) -> None:
        self._sockets.clear()


def _poller() -> Any:
    return _kombus_poll() if _environment() == "default" else Poller()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def use() -> None:
    """Let connections to a `redis://` or `rediss://` broker that are made from now on use it."""
    _kombus.poll = _poller
    for scheme in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
        # kombu keeps the class that it found for a scheme the first time.
        transport._transport_cache.pop(scheme, None)
