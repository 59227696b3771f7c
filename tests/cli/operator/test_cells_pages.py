"""`arkloop orgs copy`, and pages of MCP servers that people have not visited when the org moves."""

from dataclasses import replace
from urllib.parse import urlencode
from uuid import UUID

import pytest
from sqlalchemy import select, update

from arkloop.shared.catalog import mcp_access, mcp_configs, mcp_secrets
from arkloop.shared.errors import McpStateInvalid, OrgSuspended
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.catalog import mcp_configs as configs
from arkloop.shared.storage.tables.runs import runs
from tests.full_org import Run

pytestmark = pytest.mark.processes

ACME, CELL_1, CELL_2 = (f"https://{name}.runs.example.com" for name in ("acme", "cell-1", "cell-2"))
OWNER = "end_user:ann"


def ask(
    cell: Connections, public_url: str, org_id: UUID, state: str, *, by_run: bool = True
) -> str | None:
    """Ask for access as a worker of a cell with this `ARKLOOP_PUBLIC_URL`; returns the page.

    It is for a run, or else for discoveries.
    """
    settings = replace(cell.settings, public_url=public_url)
    with cell.transaction() as tx:
        plain = update(configs).where(configs.c.org_id == org_id)
        tx.sql.execute(plain.values(oauth={"client_id": None}, client_secret_encrypted=None))
        config_id = tx.sql.scalars(select(configs.c.id).where(configs.c.org_id == org_id)).one()
        run_id = tx.sql.scalars(select(runs.c.id).where(runs.c.org_id == org_id)).one()
        [row] = mcp_configs.of_names(
            tx.sql, org_id, tx.sql.scalars(select(configs.c.name).where(configs.c.id == config_id))
        )
        redirect_uri = (mcp_secrets.oauth_of(settings, row) or {})["redirect_uri"]
        url = f"https://login.example.com/?{urlencode({'redirect_uri': redirect_uri})}"
        made = {"url": f"{url}&state={state}", "state": state, "client": None}
        if not by_run:
            return mcp_access.request(tx, org_id, config_id, mcp_access.OPERATOR, None, made)
        return mcp_access.request(tx, org_id, config_id, OWNER, run_id, made)


def shown(cell: Connections, public_url: str, org_id: UUID) -> list[str]:
    """Return the pages that an admin of the org is shown."""
    with cell.reading() as sql:
        rows = mcp_configs.list_(sql, org_id, limit=10, before=None)
        settings = replace(cell.settings, public_url=public_url)
        return [*mcp_access.open_pages(sql, settings, rows).values()]


def answered(cell: Connections, state: str) -> str:
    with cell.transaction() as tx:
        return mcp_access.answer(tx, state, "code", None)[1]


def test_a_page_that_is_open_is_completed_in_the_new_cell(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """It leads back to the public URL of the org, which the map then leads to the new cell."""
    assert 0 == run("set", "--public-url", ACME).exit_code
    page = ask(connections, CELL_1, org_id, "first")
    assert 0 == run("copy").exit_code
    assert 0 == run("resume", at=target).exit_code

    assert ACME in (page or "").replace("%3A", ":").replace("%2F", "/")
    with pytest.raises(OrgSuspended):
        answered(connections, "first")
    assert page == ask(target, CELL_2, org_id, "second")
    assert page == answered(target, "first")


def test_a_page_that_leads_back_to_the_former_cell_is_replaced(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """An org without a public URL of its own has that of its cell, whose pages lead nowhere."""
    assert 0 == run("set", "--public-url", "default").exit_code
    first = ask(connections, CELL_1, org_id, "former")
    assert first == ask(connections, CELL_1, org_id, "repeated")
    assert 0 == run("copy").exit_code
    assert 0 == run("resume", at=target).exit_code

    page = ask(target, CELL_2, org_id, "new")
    assert "cell-2" in (page or "")
    assert page == ask(target, CELL_2, org_id, "again")
    with pytest.raises(McpStateInvalid):
        answered(target, "former")
    assert page == answered(target, "new")


def test_an_admin_is_shown_no_page_that_leads_back_to_the_former_cell(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """The next discovery asks for access again."""
    assert 0 == run("set", "--public-url", "default").exit_code
    page = ask(connections, CELL_1, org_id, "of cell 1", by_run=False)
    assert [page] == shown(connections, CELL_1, org_id)
    assert 0 == run("copy").exit_code
    assert 0 == run("resume", at=target).exit_code

    assert [] == shown(target, CELL_2, org_id)
    page = ask(target, CELL_2, org_id, "of cell 2", by_run=False)
    assert [page] == shown(target, CELL_2, org_id)
