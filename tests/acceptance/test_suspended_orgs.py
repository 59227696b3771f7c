"""An org that the operator suspends and resumes, in the whole service."""

import time

from arkloop.shared.accounts import suspensions
from tests.acceptance.streamed_runs import BROKEN_OFF_SECONDS
from tests.caller import Caller, client, error_of, until_broken_off
from tests.system import System
from tests.waiting import eventually


def test_a_suspended_org_is_closed_and_opened_again(system: System, user: Caller) -> None:
    """Open streams end within 5 s and executed runs are cancelled; the others are continued later,
    by the same credentials.
    """
    _, key = user.api_key()
    by_key = user.at(token=key)
    waiting = by_key.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "Thanks"})
    user.until(waiting, "status", "waiting_for_input")
    executing = by_key.run({"say": "A part"}, {"hang": 100})
    user.seen(executing, "message.delta")
    ticket = by_key.ticket(waiting)
    path, browser = f"/v1/runs/{waiting}/events", client(system.web[0].url)
    with (
        browser.stream("GET", path, params={"ticket": ticket}) as by_ticket,
        user.http.stream("GET", path) as by_login,
    ):
        with system.connections.transaction() as tx:
            suspensions.suspend(tx, user.org_id, "Unpaid bills")
        suspended = time.monotonic()
        for answer in (by_ticket, by_login):
            until_broken_off(answer)
        assert time.monotonic() - suspended < BROKEN_OFF_SECONDS
    for caller in (user, by_key):
        assert (401, "org.suspended") == error_of(caller.http.get("/v1/me"))
    refused = browser.get(path, params={"ticket": ticket, "follow": "false"})
    assert (401, "org.suspended") == error_of(refused)

    with system.connections.transaction() as tx:
        suspensions.resume(tx, user.org_id)
    eventually(lambda: 200 == by_key.http.get("/v1/me").status_code)

    assert "cancelled" == user.ended(executing)["status"]
    last = user.events(executing)[-1]
    assert ("run.cancelled", "org_suspended") == (last["type"], last["data"]["cancel_reason"])
    by_key.answer(waiting, "Yes")
    assert "completed" == user.ended(waiting)["status"]
