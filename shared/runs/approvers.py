"""The right to approve the call that a run waits with, and to change its arguments."""

from sqlalchemy import Connection, RowMapping

from arkloop.shared.actors import Actor
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.catalog import personas, published_personas
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import Forbidden
from arkloop.shared.runs import overrides


class ApprovalReserved(Forbidden):
    code = "approvals.reserved"
    message = "Only members and API keys of the organization may approve or deny this call."


class EditReserved(Forbidden):
    code = "approvals.edit_reserved"
    message = (
        "Only members and API keys of the organization may change the arguments of this call;"
        " approve or deny it as it is."
    )


def check(sql: Connection, actor: Actor, run: RowMapping, reply: ApprovalReply) -> None:
    """Check that the actor may give this reply to the request for approval of a locked run.

    Members and keys may, which costs no query. An end user may change the arguments of client
    tools alone, whose calls are made by their own page.

    Raises:
        ApprovalReserved: the persona reserves approvals for the org.
        EditReserved: the call is made by the service, or by a program of the org.
    """
    if actor.end_user_id is None:
        return
    persona = _persona_of(sql, run)
    if persona is None or persona.approved_by == "org":
        raise ApprovalReserved()
    if reply.arguments is not None:
        of_run = (overrides.given(run["options"]) or {}).get("tools", ())
        names = {tool.name for tool in persona.client_tools} | {tool["name"] for tool in of_run}
        if run["pending_input"].get("tool_name") not in names:
            raise EditReserved()


def _persona_of(sql: Connection, run: RowMapping) -> Persona | None:
    """Return the persona of a run, as far as this release can read it.

    None if it cannot read who may approve: another release has published or removed the persona.
    """
    key, _, version = run["persona_id"].partition("@")
    row = published_personas.find(sql, run["org_id"], key, version)
    if row is None:
        return personas.builtin().get(run["persona_id"])
    definition = personas.from_stored(row.definition)
    persona, problems = personas.understood(key, version, definition)
    return None if "approved_by" in problems else persona
