"""Pictures of the console for the README: `make screenshots`, with a service of its own.

It starts what the tests start, lets an agent talk to a customer, and takes two pictures by
Chromium.
"""

import io
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image  # matplotlib brings it
from playwright.sync_api import Page, sync_playwright
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.storage import schema
from tests.acceptance.test_browser import ARGUMENTS, CHROMIUM
from tests.caller import Caller
from tests.clients import PASSWORD
from tests.system import running_system

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SIZE = {"width": 1200, "height": 740}
QUESTION = "Where is my order 4821? And I think you have charged me twice."
OTHERS = ("Opening hours at Christmas", "Invoice for November", "Warranty of my kettle")
#: An agent as a plugin: it says and does the same each time, and asks before it refunds.
AGENT = '''
import time
from arkloop.agents import AgentRun

REPLY = """Your order **#4821** left our warehouse on Tuesday and is with the carrier.

| Step | When | Where |
|---|---|---|
| Packed | Mon 14:05 | Leipzig |
| Shipped | Tue 09:12 | Leipzig |
| Expected | Thu | Vienna |

You are right about the charge: `129.90 EUR` was taken twice. I can refund one of the two."""
REFUND = {"charge": "ch_91", "amount": "129.90 EUR"}


def slow(seconds, output):
    time.sleep(seconds)
    return output


def support(run: AgentRun) -> str:
    if "4821" not in str(run.messages[0]["content"]):
        run.cost(input_tokens=2100, output_tokens=140)
        return "Of course. I have sent it to you by mail."
    if run.checkpoint_data is None:
        run.thinking("Two questions: where the parcel is, and whether the charge is doubled.")
        time.sleep(0.5)
        run.text("Let me look at the order and at your payments.")
        order = {"order": "4821"}
        run.step("find_order", order, lambda: slow(0.7, "shipped"), tool_call_id="order-1")
        time.sleep(0.2)
        run.step("list_charges", order, lambda: slow(0.4, "2"), tool_call_id="charges-1")
        time.sleep(0.8)
        run.cost(input_tokens=18420, output_tokens=912, cache_read_tokens=12000)
        run.text(REPLY)
        run.checkpoint({"looked": True})
    run.approve("refund_charge", REFUND, tool_call_id="refund-1")
    time.sleep(0.3)
    run.step("refund_charge", REFUND, lambda: slow(0.6, "ok"), tool_call_id="refund-1")
    time.sleep(0.6)
    run.cost(input_tokens=19600, output_tokens=210, cache_read_tokens=18000)
    return "Done: you get 129.90 EUR back within three days."
'''


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        environ = {"ARKLOOP_PLUGINS": str(plugins(folder))}
        system = stack.enter_context(
            running_system(lambda: new_database(postgres), folder, web=1, environ=environ)
        )
        caller = system.caller()
        with system.connections.transaction() as tx:
            tx.sql.execute(text("UPDATE users SET login = 'ada' WHERE id = :id"), {"id": caller.id})
            tx.sql.execute(
                text("UPDATE orgs SET name = 'Kettles' WHERE id = :id"), {"id": caller.org_id}
            )
        thread_id, run_id = conversations(caller)
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS
        )
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]  # Playwright's
        sign_in(page, caller)
        take(page, caller, f"/threads/{thread_id}", "Approve the call", "console-thread.png")
        page.emulate_media(color_scheme="dark")
        take(page, caller, f"/runs/{run_id}", "Timeline", "console-run.png")
        browser.close()


def plugins(folder: Path) -> Path:
    """Write the agent as a plugin, and return its folder."""
    path = folder / "plugins" / "agents" / "support.py"
    path.parent.mkdir(parents=True)
    path.write_text(AGENT)
    return folder / "plugins"


def new_database(postgres: EmbeddedPostgres) -> str:
    """Create a database with the schema, and return its URL."""
    name = f"pictures_{secrets.token_hex(4)}"
    admin = create_engine(postgres.url_of("postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    engine = create_engine(postgres.url_of(name))
    schema.migrate(engine)
    engine.dispose()
    return postgres.url_of(name)


def conversations(caller: Caller) -> tuple[str, str]:
    """Make threads; return the id of one that waits for an approval, and of a run that had one."""
    caller.made("/v1/personas", {"key": "support", "agent": "support", "route_id": "scripted"})
    for title in OTHERS:
        caller.ended(start(caller, title, title)["run_id"])
    approved, waiting = (start(caller, QUESTION, "Order 4821, charged twice") for _ in range(2))
    for run in (approved, waiting):
        caller.until(run["run_id"], "phase", "waiting", seconds=60)
    assert 200 == caller.answer(approved["run_id"], "approve").status_code
    assert "completed" == caller.ended(approved["run_id"])["status"]
    return waiting["thread_id"], approved["run_id"]


def start(caller: Caller, message: str, title: str) -> dict[str, Any]:
    thread = {"title": title, "end_user_id": "ada@example.com"}
    body = {"thread": thread, "message": message, "persona_id": "support"}
    return caller.made("/v1/runs", body)


def sign_in(page: Page, caller: Caller) -> None:
    page.goto(f"{caller.url}/console")
    page.get_by_label("User name or email").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("navigation").wait_for()


def take(page: Page, caller: Caller, address: str, wanted: str, name: str) -> None:
    """Take a picture of a page once it shows the wanted text."""
    page.goto(f"{caller.url}/console#{address}")
    page.get_by_text(wanted).first.wait_for()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1_000)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    PICTURES.mkdir(exist_ok=True)
    picture.quantize(128, dither=Image.Dither.NONE).save(PICTURES / name, optimize=True)


if __name__ == "__main__":
    main()
