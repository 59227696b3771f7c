"""Nudges from the API to the worker process that holds a run: a key and a channel message.

The message is fast, the key covers a subscription that was down for a moment,
and Postgres has the fact itself: each batch of events and each heartbeat brings
it along.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from arkloop.shared.ids import parse_id
from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage import keys
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.redis_commands import Commands, form, word

log = logging.getLogger(__name__)

_PUBLISH, _SET = form("PUBLISH", None, None), form("SET", None, None, "EX", None)
#: How the detail of a plain `Cancel` ends. Without it, the row may say more than the user.
_PLAIN = " plain"

RECONNECT_SECONDS = 0.5
#: How often a new process looks whether it knows the names of channels yet.
EPOCH_SECONDS = 0.02
#: A subscription that is silent for this long is pinged,
PING_SECONDS = 1.0
#: and has this long to respond.
PONG_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Cancel:
    """A request to stop a run, for the worker process that executes it.

    `is_plain`: the row names no cause, and never will: neither another run nor a reason.
    """

    kind: ClassVar[str] = "cancel"
    subject: UUID  # the run
    worker_id: UUID
    by_user_id: UUID
    is_plain: bool = False

    @property
    def detail(self) -> str:
        """Return what the signal says of the request."""
        return f"{self.by_user_id}{_PLAIN if self.is_plain else ''}"

    @staticmethod
    def send(connections: Connections, group: "Sequence[Cancel]") -> None:
        """Publish the requests, and keep each under a key for a while."""
        _send(
            connections,
            [(one, connections.keys.cancel(one.subject), one.detail) for one in group],
            keys.CANCEL_TTL_SECONDS,
        )


def canceller_of(detail: str) -> UUID | None:
    """Return the user who made a plain request to cancel; None if the run's row has to be read."""
    return parse_id(detail.removesuffix(_PLAIN)) if detail.endswith(_PLAIN) else None


@dataclass(frozen=True, slots=True)
class Input:
    """A person's answer to a run, for the process that executed the run until it had to wait."""

    kind: ClassVar[str] = "input"
    subject: UUID  # the run
    worker_id: UUID

    @staticmethod
    def send(connections: Connections, group: "Sequence[Input]") -> None:
        """Publish that the answers are there, and keep that under a key for a while."""
        _send(
            connections,
            [(one, connections.keys.input_(one.subject), "") for one in group],
            keys.INPUT_TTL_SECONDS,
        )


@dataclass(frozen=True, slots=True)
class Wake:
    """Work for a long poll that waits for its topic, or with `everyone` news for all of them.

    Neither the topic nor the detail contains a space. A poll that waits for certain details is
    woken by these alone.
    """

    kind: ClassVar[str] = "wake"
    subject: str  # the topic
    detail: str
    everyone: bool = False

    @staticmethod
    def send(connections: Connections, group: "Sequence[Wake]") -> None:
        """Publish to all web processes, in one round trip."""
        channel = connections.keys.polls()

        def publish(redis: Any) -> None:
            pipeline = redis.pipeline(transaction=False)
            for one in group:
                whom = "all" if one.everyone else "one"
                pipeline.publish(channel, f"{whom} {one.subject} {one.detail}")
            pipeline.execute()

        connections.ask_redis(publish)


def _send(
    connections: Connections, signals: Sequence[tuple[Cancel | Input, str, str]], ttl: int
) -> None:
    commands = Commands()
    for signal, key, detail in signals:
        channel = connections.keys.worker_signals(signal.worker_id)
        text = f"{signal.kind} {signal.subject} {detail}".rstrip()
        commands.add(_PUBLISH, word(channel), word(text))
        commands.add(_SET, word(key), word(detail), word(ttl))

    def send(redis: Any) -> None:
        for answer in commands.send(redis):
            if isinstance(answer, ResponseError):
                raise answer

    connections.ask_redis(send)


class SignalListener:
    """A subscription for all the runs of a worker process, in a thread of its own.

    `on_signal(kind, run_id, detail)` is called for each signal; `held()` tells the runs
    whose keys are looked at when the subscription is (again) there.
    """

    def __init__(
        self,
        connections: Connections,
        worker_id: UUID,
        held: Callable[[], Collection[UUID]],
        on_signal: Callable[[str, UUID, str], None],
    ) -> None:
        self._client = listening_client(connections.settings.redis_url)
        self._keys = connections.keys
        self._worker_id = worker_id
        self._held = held
        self._on_signal = on_signal
        self._stopped = threading.Event()
        self._outage = OutageLog(log, "the signal subscription")
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        # A subscription under names without an epoch would hear nothing, and take a second to end.
        while not self._keys.epoch and not self._stopped.wait(EPOCH_SECONDS):
            pass
        while not self._stopped.is_set():
            try:
                self._listen()
            except redis.RedisError as error:
                self._outage.failed("signal subscription lost; reconnecting: %s", error)
            except Exception:
                log.exception("signal subscription failed; reconnecting")
            time.sleep(RECONNECT_SECONDS)

    def _listen(self) -> None:
        with self._client.pubsub() as pubsub:
            epoch = self._keys.epoch
            pubsub.subscribe(self._keys.worker_signals(self._worker_id))
            for message in listen(pubsub, self._keys, epoch):
                if self._stopped.is_set():
                    return
                if message["type"] == "subscribe":
                    self._outage.worked()
                    self._look_at_keys()
                elif message["type"] == "message":
                    self._on_message(str(message["data"]))

    def _on_message(self, message: str) -> None:
        kind, _, rest = message.partition(" ")
        run_id, _, detail = rest.partition(" ")
        try:
            self._on_signal(kind, UUID(run_id), detail)
        except ValueError:
            log.warning("ignored a malformed message on the signal channel")

    def _look_at_keys(self) -> None:
        runs = list(self._held())
        for kind, key in (("cancel", self._keys.cancel), ("input", self._keys.input_)):
            flags = self._client.mget([key(run_id) for run_id in runs]) if runs else []
            for run_id, flag in zip(runs, flags, strict=True):
                if flag is not None:
                    self._on_signal(kind, run_id, flag)


def listening_client(url: str) -> Any:
    """Create a client for subscriptions; its user reconnects by itself."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        # For the handshake: who listens waits by a time of its own.
        socket_timeout=PONG_SECONDS,
        socket_connect_timeout=PONG_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def listen(pubsub: Any, names: keys.Keys, epoch: str) -> Iterator[dict[str, Any]]:
    """Yield the messages of a subscription, including confirmations, as long as the server lives.

    Ends when another epoch has begun than the one of `names` before anything was subscribed to:
    the channels have other names then.

    Raises:
        redis.RedisError: the connection is lost, or silent even when pinged (a
            frozen server looks like silence).
    """
    pinged = False
    while names.epoch == epoch:
        message = pubsub.get_message(timeout=PONG_SECONDS if pinged else PING_SECONDS)
        if names.epoch != epoch:
            return  # it may say, or bring, what Postgres does not have any more
        if message is None:
            if pinged:
                raise redis.ConnectionError(f"no response to a ping within {PONG_SECONDS:g} s")
            pubsub.ping()
            pinged = True
        else:
            pinged = False
            # redis-py takes the PONG of a decoding RESP3 client for a message of type "P".
            if message["type"] in ("subscribe", "message"):
                yield message
