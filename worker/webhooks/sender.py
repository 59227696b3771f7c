"""The sender of a worker process: it takes deliveries that are due and makes their attempts.

It knows of a run that has ended in its own process at once, and looks into Postgres twice a second
for all else. Each attempt has a thread, and of one endpoint there are few at a time: receivers that
do not respond keep neither runs nor other receivers waiting.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared import fault_points, metrics
from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.delivery import deliveries, endpoints, messages
from arkloop.shared.delivery.deliveries import Attempt
from arkloop.shared.errors import Unavailable
from arkloop.shared.security import exchange
from arkloop.shared.security.egress import Policy
from arkloop.shared.security.encryption import CannotOpen, NoEncryptionKey
from arkloop.shared.security.exchange import Lost, NotSent
from arkloop.shared.security.kept_connections import KeptConnections
from arkloop.shared.security.signatures import signed_headers
from arkloop.shared.storage import postgres
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
#: While attempts are in progress: deliveries that become due meanwhile share a statement. So do
#: results, for longer: a late record delays only later events of the same run.
GATHER_SECONDS = 0.005
GATHER_RESULTS_SECONDS = 0.02
#: How old the knowledge may be of who has endpoints.
ORGS_SECONDS = 2.0
#: Attempts that this process makes at a time: of all endpoints, and of one.
MAX_ATTEMPTS = 200
MAX_ATTEMPTS_OF_ENDPOINT = 8
#: For how long the process waits at its end for attempts, and after that for their records.
MAX_END_SECONDS = 15.0
RECORD_SECONDS = 2.0
#: The status says it all; more of a response is not read.
MAX_RESPONSE_BYTES = 4_096


class WebhookSender:
    """Makes attempts until it is stopped; `wait_until_ended` waits for those that have begun."""

    def __init__(self, connections: Connections, stopped: threading.Event) -> None:
        self._connections = connections
        self._policy = Policy.of(connections.settings.allowed_networks)
        self._kept = KeptConnections(self._policy)
        self._stopped = stopped
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._busy: dict[UUID, UUID] = {}  # deliveries with attempts in progress, and endpoints
        self._results: dict[Attempt, Row[Any]] = {}  # to be recorded
        self._locked: Mapping[Attempt, str] = {}  # of these; which row a record would wait for
        self._has_results = threading.Event()
        self._endpoints: Mapping[UUID, int] | None = {}  # by org
        self._endpoints_read_at = float("-inf")
        self._begun_at = float("-inf")
        self._begins_none = threading.Event()
        self._is_over = threading.Event()
        BackgroundLoop("webhooks", self._step, seconds=0.0, stopped=stopped, after=self._end)
        # By itself: what one record waits for must not keep all other messages waiting.
        BackgroundLoop("webhook-results", self._record, seconds=0.0, stopped=self._is_over)

    def wake(self, org_id: UUID) -> None:
        """Look at once if the org, of which a run has ended or waits, has endpoints."""
        if self.endpoints_of(org_id):
            self._woken.set()

    def endpoints_of(self, org_id: UUID) -> int:
        """Return how many enabled endpoints the org had a moment ago; 1 if that is not known.

        By more than it has, the ends of all orgs' runs would be too large to be written together.
        """
        return 1 if self._endpoints is None else self._endpoints.get(org_id, 0)

    def wait_until_ended(self) -> None:
        """Return once it has stopped, and all attempts are over and recorded.

        An attempt that takes longer than its time, or than `MAX_END_SECONDS`, is not waited for:
        another process repeats it when its lease is over.
        """
        self._woken.set()
        self._begins_none.wait(RECORD_SECONDS)
        seconds = min(self._connections.settings.webhook_timeout_seconds, MAX_END_SECONDS)
        deadline = self._begun_at + seconds + RECORD_SECONDS
        while self._has_unrecorded() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _end(self) -> None:
        self._begins_none.set()
        self._kept.close()

    def _in_progress(self) -> int:
        with self._lock:
            return len(self._busy)

    def _has_unrecorded(self) -> bool:
        with self._lock:
            return bool(self._busy or self._results)

    def _step(self) -> None:
        if self._woken.wait(LOOK_SECONDS) and self._in_progress():
            time.sleep(GATHER_SECONDS)
        self._woken.clear()
        self._kept.close_idle()
        if time.monotonic() - self._endpoints_read_at > ORGS_SECONDS:
            with self._connections.reading() as sql:
                self._endpoints = endpoints.counts(sql)
            self._endpoints_read_at = time.monotonic()
        if not self._stopped.is_set():
            self._begin()

    def _begin(self) -> None:
        """Begin the attempts that are due, as far as there is room: the end of each wakes this."""
        with self._lock:
            capacity, busy = MAX_ATTEMPTS - len(self._busy), Counter(self._busy.values())
            stuck = {self._results[one].endpoint_id for one in self._locked}
            unrecorded = (row.endpoint_id for row in self._results.values())
            busy.update(one for one in unrecorded if one in stuck)
            held = {*self._busy, *(one.delivery_id for one in self._results)}
        if capacity <= 0:
            return
        with self._connections.statement() as tx:
            claimed = deliveries.claim(
                tx,
                capacity=capacity,
                most_per_endpoint=MAX_ATTEMPTS_OF_ENDPOINT,
                busy=busy,
                held=held,
            )
        self._begun_at = time.monotonic()
        for row in claimed:
            thread = threading.Thread(
                target=self._attempt, args=(row,), name="webhook", daemon=True
            )
            with self._lock:
                thread.start()  # if it fails, the attempt is made when its lease is over
                self._busy[row.id] = row.endpoint_id

    def _attempt(self, row: Row[Any]) -> None:
        attempt: Attempt | None = None
        try:
            attempt = self._sent(row)
            status = attempt.response_status
            metrics.WEBHOOK_ATTEMPTS.add(1, f"{status // 100}xx" if status else "lost")
            fault_points.reach("worker.webhook_sent")
        except Exception:  # the lease ends, and the attempt is repeated
            log.exception("delivering %s failed", row.id, extra=_subject(row))
        finally:
            with self._lock:
                del self._busy[row.id]
                if attempt is not None:
                    self._results[attempt] = row
            self._has_results.set()
            self._woken.set()

    def _sent(self, row: Row[Any]) -> Attempt:
        settings = self._connections.settings
        try:
            secrets = endpoints.secrets_of(settings, row)
        except (NoEncryptionKey, CannotOpen) as error:
            message = "cannot decrypt the secret of webhook endpoint %s: %s"
            log.error(message, row.endpoint_id, error, extra=_subject(row))
            return Attempt(
                row.id, row.attempts, row.url, error="The secret cannot be decrypted here."
            )
        body = messages.body(row)
        headers = signed_headers(secrets, str(row.id), int(time.time()), body)
        try:
            response = exchange.post(
                lambda _abort: nullcontext(),
                row.url,
                self._policy,
                headers,
                body,
                settings.webhook_timeout_seconds,
                most_bytes=MAX_RESPONSE_BYTES,
                kept=self._kept.of(row.endpoint_id),
            )
        except NotSent as error:
            return Attempt(row.id, row.attempts, row.url, error=str(error))
        except Lost as lost:
            if lost.status is None:
                return Attempt(row.id, row.attempts, row.url, error=str(lost))
            return Attempt(row.id, row.attempts, row.url, lost.status)
        return Attempt(row.id, row.attempts, row.url, response.status)

    def _record(self) -> None:
        """Record the attempts that have ended: the next event of their run may be due then."""
        if self._has_results.wait(LOOK_SECONDS):
            time.sleep(GATHER_RESULTS_SECONDS if self._in_progress() else GATHER_SECONDS)
        self._has_results.clear()
        with self._lock:
            results = list(self._results)
        if self._locked:
            results = self._free(results)
        if results:
            self._write(results)
            self._woken.set()
        if self._begins_none.is_set() and not self._has_unrecorded():
            self._is_over.set()

    def _write(self, results: Sequence[Attempt]) -> None:
        """Write results; one that Postgres refuses takes no other along, and is given up: its
        attempt is repeated when its lease is over. Neither does one whose row is locked (`_free`).

        Raises:
            Unavailable: those that are not written are kept for the next time.
        """
        try:
            with self._connections.statement() as tx:
                deliveries.record(tx, results)
        except Unavailable as error:
            if not postgres.is_locked(error.__cause__):
                raise
            free = self._free(results)
            if len(free) == len(results):
                raise
            if free:
                self._write(free)
            return
        except Exception:
            if len(results) > 1:
                for one in self._free(results):
                    self._write([one])
                return
            row = self._results[results[0]]
            log.exception("recording an attempt of %s failed", row.id, extra=_subject(row))
        self._forget(results)

    def _free(self, results: Sequence[Attempt]) -> list[Attempt]:
        """Return those whose rows are free; the others wait until theirs are. Their endpoint's
        results count as attempts meanwhile, or those of one whose row is locked would pile up.
        """
        with self._connections.statement() as tx:
            rows = deliveries.find_locked(tx, results)
        locked = {one: rows[one.delivery_id] for one in results if one.delivery_id in rows}
        with self._lock:
            new = locked.keys() - self._locked.keys()
            others = {one: row for one, row in self._locked.items() if one not in results}
            self._locked = {**others, **locked}
        for one in new:
            message = "recording an attempt of %s waits: the row %s is locked"
            subject = _subject(self._results[one])
            log.warning(message, one.delivery_id, locked[one], extra=subject)
        return [one for one in results if one not in locked]

    def _forget(self, results: Collection[Attempt]) -> None:
        with self._lock:
            for one in results:
                del self._results[one]


def _subject(row: Row[Any]) -> dict[str, str]:
    """Return what a log line says of the delivery: its org, and its run if it is about one."""
    run_id = json.loads(row.data).get("run_id")
    return {"org_id": str(row.org_id), **({"run_id": run_id} if run_id else {})}
