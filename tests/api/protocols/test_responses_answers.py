"""Answers and approvals of several messages, and of images."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from arkloop.api.protocols.responses_answers import TEXT_ALONE
from arkloop.shared.events.types import ToolCallRequested
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims
from arkloop.shared.storage.tables.runs import inputs
from tests.api.protocols.test_responses_input import MODEL, output_of, runs_of
from tests.api.protocols.test_responses_repeats import IMAGE, said
from tests.clients import User
from tests.stored_runs import StoredRuns


class Asking:
    """A run that asks its client, and requests with messages behind what it asks."""

    def __init__(self, stored: StoredRuns, user: User, *, by_name: bool = False) -> None:
        self.stored, self.user, self.by_name = stored, user, by_name
        self.run_id = stored.create(UUID(user.thread()))
        self.request_id = new_id()

    def ask(self, **asked: Any) -> "Asking":
        """Ask a question, or what is given."""
        self.stored.park(self.stored.held(self.run_id), self.request_id, **asked)
        return self

    def ask_for_approval(self) -> "Asking":
        claim = self.stored.held(self.run_id)
        with self.stored.connections.transaction() as tx:
            claims.begin_tool_call(tx, claim, "c", None)
        self.stored.write(claim, ToolCallRequested("c", "refund", {"eur": 50}))
        at_end = replace(claim, last_seq=self.stored.last_seq(self.run_id))
        asked = {"kind": "tool_confirmation", "prompt": "Refund?", "tool_call_id": "c"}
        self.stored.park(at_end, self.request_id, **asked)
        return self

    def items(self) -> list[dict[str, Any]]:
        """Return the items of the response that ends with what the run asks."""
        return output_of(self.user, f"resp_{self.run_id.hex}")

    def send(self, *contents: Any) -> TestResponse:
        """Send messages with these contents behind what the run asks."""
        messages = list(map(said, contents))
        named = {"previous_response_id": f"resp_{self.run_id.hex}", "input": messages}
        if not self.by_name:
            named = {"input": [said("Hi"), *self.items(), *messages]}
        return self.user.post("/v1/responses", {**MODEL, **named})

    def answers(self) -> list[str]:
        of_run = inputs.c.run_id == self.run_id
        with self.stored.connections.reading() as sql:
            return list(sql.scalars(select(inputs.c.content).where(of_run)))


def is_answered(asking: Asking, *made: TestResponse) -> bool:
    """Return whether these requests got the response that continues the run."""
    ids = {(one.json or {}).get("id") for one in made}
    return {f"resp_{asking.run_id.hex}_1"} == ids and {asking.run_id} == runs_of(asking.user)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("is_approval", [True, False])
def test_an_answer_is_the_last_message_alone(
    stored: StoredRuns, alice: User, is_approval: bool, by_name: bool
) -> None:
    """Messages before it are often ones that were refused or lost; the same request counts once."""
    asking = Asking(stored, alice, by_name=by_name)
    if is_approval:
        asking.ask_for_approval()
    else:
        asking.ask(prompt="Go on?")

    made = [asking.send("Hm.", "yes") for _ in range(2)]

    assert is_answered(asking, *made), made[1].text
    assert ["yes"] == asking.answers()


@pytest.mark.parametrize("by_name", [True, False])
def test_an_answer_with_an_image_is_refused(stored: StoredRuns, alice: User, by_name: bool) -> None:
    """It would not be seen; a later answer that has the message before it is taken."""
    asking = Asking(stored, alice, by_name=by_name).ask(prompt="Which one?")
    shown = [{"type": "input_text", "text": "This one:"}, IMAGE]

    refused = asking.send("Hm.", shown)

    assert (400, True) == (refused.status_code, TEXT_ALONE in refused.text), refused.text
    assert ("waiting", []) == (stored.state(asking.run_id), asking.answers())
    made = asking.send("Hm.", shown, "The red one.")
    assert is_answered(asking, made), made.text
    assert ["The red one."] == asking.answers()


def test_a_message_with_an_image_after_another_answer_is_the_next_run(
    stored: StoredRuns, alice: User
) -> None:
    """It answers nothing any more, and a run takes images."""
    asking = Asking(stored, alice).ask(prompt="Which one?")
    stored.answer(asking.run_id, "The red one.", asking.request_id)

    made = asking.send([{"type": "input_text", "text": "This one:"}, IMAGE])

    assert (200, 2) == (made.status_code, len(runs_of(alice))), made.text
