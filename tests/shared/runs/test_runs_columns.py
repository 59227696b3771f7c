"""The columns of a run that its request sets, wherever a run is made."""

import re

from arkloop.shared.storage.tables.runs import offered_messages
from tests.query_plans import noted
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.test_endings import completed
from tests.stored_runs import StoredRuns

#: Columns that not all of these places set, each with the reason.
OWN = {
    "id",  # an offered message has the id of the run that it may become in its `run_id`
    "state",  # an offered message is no run yet
    "created_at",  # as above: the table has it, and sets it itself
    "queued_at",  # as above
    "visible_to",  # a trigger of the database sets it where the statement does not
    "not_before",  # of a run for later alone
    "cancel_requested_at",  # of a run whose key was revoked while its message was offered
    *("run_id", "active_run_id", "message_id"),  # of an offered message alone
}


def test_each_place_that_makes_a_run_sets_what_requests_set(stored: StoredRuns) -> None:
    """A column that one of them lacks would be null in the runs that are made there."""
    thread = BusyThread(stored)

    with noted(stored.connections) as statements:
        claim = thread.claim(thread.say("queued").run_id)  # shared/runs/sql/create.sql
        thread.say("waiting")  # shared/runs/sql/enqueue.sql
        thread.say("later", not_before=LATER)  # shared/runs/busy_threads.py, `_columns`
        thread.say("offered", "steer")  # the same, into the table `offered_messages`
        thread.end(completed(claim))  # shared/runs/offered_messages.py, `_OF_RUN`

    inserted = [
        (table, set(re.split(r",\s+", columns)))
        for sql in dict.fromkeys(sql for sql, _ in statements)
        for table, columns in re.findall(r"INSERT INTO (runs|offered_messages) \(([^)]+)\)", sql)
    ]
    assert ["runs", "runs", "runs", "offered_messages", "runs"] == [table for table, _ in inserted]
    of_requests = inserted[0][1] - OWN
    assert {"org_id", "persona_id", "options", "metadata"} <= of_requests
    assert [of_requests] * 5 == [columns - OWN for _, columns in inserted]
    assert of_requests == set(offered_messages.c.keys()) - OWN
