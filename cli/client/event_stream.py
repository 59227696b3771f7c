"""A run's events as the command line reads them: in order, none lost, none twice."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2

from arkloop.cli.client.client import AWAY, Client, Refused, Unreachable, refusal

TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled"})
ENDED = frozenset({"completed", "failed", "cancelled"})
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
#: Seconds without any contact after which the command ends; the run itself continues.
GIVE_UP_SECONDS = 300.0
#: Answers that are worth another try: something is away, or there were too many requests.
LATER = AWAY | {429}


class RunEvent(NamedTuple):
    """`text` is the event's JSON exactly as it was sent."""

    seq: int
    type: str
    data: dict[str, Any]
    created_at: str
    text: str

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL


class Connection(NamedTuple):
    """An open stream."""

    response: httpx2.Response
    events: Iterator[RunEvent]

    @property
    def has_begun(self) -> bool:
        """True once the comment that the service sends at once has arrived: a proxy may hold the
        body back.
        """
        return self.response.num_bytes_downloaded > 0


@contextmanager
def opened(client: Client, run_id: str, after_seq: int, *, wait: bool) -> Iterator[Connection]:
    """Open one connection for the events with seq > `after_seq`; without `wait`, only existing
    ones.

    Raises:
        Refused: the server answers with an error.
        httpx2.HTTPError: the connection broke; also while the events are read.
    """
    path = f"/runs/{run_id}/events"
    params = {"after_seq": after_seq, "follow": "true" if wait else "false"}
    # The head of a compressed body, which a proxy sends before the events, would count as contact.
    headers = {"Accept-Encoding": "identity"}
    # No limit on an event's size: a long answer is one event, and the server is the caller's own.
    with client.http.sse(path, params=params, headers=headers, max_event_size=None) as source:
        response = source.response
        is_stream = response.headers.get("Content-Type", "").startswith("text/event-stream")
        if response.status_code != httpx2.codes.OK or not is_stream:
            response.read()
            raise refusal(response)
        connection = Connection(response, (_event(sent.data) for sent in source))
        try:
            yield connection
        except httpx2.ReadTimeout as error:
            if connection.has_begun:
                raise
            hint = "headers arrived, but no body: a proxy on the way may buffer it"
            raise httpx2.ReadTimeout(hint) from error


def follow(
    client: Client,
    run_id: str,
    after_seq: int = 0,
    *,
    wait: bool = True,
    tell: Callable[[str], None],
) -> Iterator[RunEvent]:
    """Yield all events with seq > `after_seq` as they arrive, up to the run's last one; without
    `wait`, only existing ones.

    A connection that breaks is opened again after the last event that was
    yielded, with a growing pause; `tell` gets a word for the person about it.

    Raises:
        Refused: an error that is not in `LATER`; without `wait`, any error as the first response.
        Unreachable: nothing of a stream, or without `wait` no event, has arrived for
            `GIVE_UP_SECONDS`.
    """
    cursor = after_seq
    contact = time.monotonic()
    failures = 0
    while True:
        before, was_open = cursor, False
        reason = "the stream ended before the run"
        try:
            with opened(client, run_id, cursor, wait=wait) as connection:
                try:
                    for event in connection.events:
                        cursor, failures = event.seq, 0
                        yield event
                        if event.is_terminal:
                            return
                finally:
                    # Existing events follow the comment at once: alone it is no contact there.
                    was_open = connection.has_begun if wait else cursor > before
            # It ended without the run's end: a token ran out, a server stops; or there is no more.
            if not wait or (cursor == before and _is_over(client, run_id, cursor)):
                return
        except (httpx2.HTTPError, Unreachable, Refused) as error:
            is_patient = wait or failures > 0
            if isinstance(error, Refused) and not (is_patient and error.status in LATER):
                raise
            reason = str(error) or type(error).__name__
            if failures == 0:
                tell(f"Connection lost ({reason}); resuming after event {cursor}.")
        if was_open:
            contact = time.monotonic()
        elif time.monotonic() - contact > GIVE_UP_SECONDS:
            raise Unreachable(
                f"No events from the server for {GIVE_UP_SECONDS:.0f} s ({reason}). The run may"
                f" still be executing; follow it with: arkloop runs events {run_id}"
                f" --after-seq {cursor}"
            )
        # Clients of a server that comes back do not all return at the same moment.
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(failures, 10))
        time.sleep(pause * random.uniform(0.5, 1.0))
        failures += 1


def _event(text: str) -> RunEvent:
    event = json.loads(text)
    return RunEvent(event["seq"], event["type"], event["data"], event["created_at"], text)


def _is_over(client: Client, run_id: str, cursor: int) -> bool:
    run = client.get(f"/runs/{run_id}")
    return run["status"] in ENDED and cursor >= run["last_seq"]
