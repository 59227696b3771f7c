"""Messages of AG-UI that are sent again after the org has changed what answers them."""

from tests.api.endpoints.made_providers import PATH, made
from tests.api.protocols.test_agui_runs import SAID, all_runs, first_cursor, send
from tests.clients import User
from tests.stored_runs import StoredRuns


def test_a_message_is_sent_again_though_the_default_route_has_changed(
    alice: User, stored: StoredRuns
) -> None:
    """The agent of no route has the run that it began; one that names the new route has its own."""
    send(alice, SAID).close()
    [run_id] = all_runs(stored)
    models = f"{PATH}/{made(alice)['id']}/models"
    new = made(alice, models, is_default=True)["route_id"]

    shown = [first_cursor(send(alice, SAID, query=q)) for q in ("", f"?route_id={new}", "")]

    [known, other] = all_runs(stored)
    assert known == run_id
    assert [f"{one}.0.1" for one in (run_id, other, run_id)] == shown
