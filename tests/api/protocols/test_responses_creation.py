"""Responses that continue others, while other requests want the same locks."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.accounts import org_settings
from arkloop.shared.ids import new_id
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.runs import commands, creation, run_limits
from arkloop.shared.storage.connections import Connections
from tests.clients import User
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

#: What the database has to be waited for.
ROW, ADVISORY = "transactionid", "advisory"


def wait_for(connections: Connections, locktype: str) -> None:
    """Wait until a session waits for such a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE NOT l.granted AND l.locktype = :locktype AND a.datname = current_database()"
    )

    def is_waiting() -> bool:
        with connections.reading() as sql:
            return bool(sql.scalar(waiting, {"locktype": locktype}))

    eventually(is_waiting)


@pytest.mark.parametrize("ends_meanwhile", [False, True])
def test_a_reply_to_an_ended_run_holds_no_lock_of_it(
    stored: StoredRuns, alice: User, ends_meanwhile: bool
) -> None:
    """While it waits for the limits of the org: a retry has those, and waits for the run."""
    connections = stored.connections
    with connections.transaction() as tx:
        org_settings.change(tx, alice.org_id, {"org_concurrent_runs": 9})
    limited = replace(stored.actor, limits=OrgLimits(org_concurrent_runs=9))
    thread_id = UUID(alice.thread())
    alice.say(str(thread_id))
    claim = stored.claim(stored.create(thread_id))
    assert claim is not None
    assert stored.park(claim, new_id())
    body = {
        "model": "scripted",
        "previous_response_id": f"resp_{claim.run_id.hex}",
        "input": "Never mind.",
        "background": True,
    }

    with ExitStack() as held, ThreadPoolExecutor(1) as threads:
        ending = held.enter_context(ExitStack())
        commands.cancel(ending.enter_context(connections.transaction()), stored.actor, claim.run_id)
        if not ends_meanwhile:
            ending.close()
        tx = held.enter_context(connections.transaction())
        run_limits.check(tx, limited)
        reply = threads.submit(alice.post, "/v1/responses", body)
        if ends_meanwhile:
            wait_for(connections, ROW)
            ending.close()
        wait_for(connections, ADVISORY)
        creation.retry(tx, limited, thread_id, stored.catalog(), trace_id="1" * 32)
        held.close()
        assert 409 == reply.result().status_code, reply.result().text
