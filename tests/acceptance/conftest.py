"""A run that waits, for the tests of streams, a browser and the origin of a server, for those of
the console, and a month that does not end, for those of budgets.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.caller import Caller
from tests.system import System

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

#: A test of what a month costs takes less.
MONTH_SECONDS = 120
#: Reports what the page's policy has refused.
NOTE_VIOLATIONS = """
window.violations = []
addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`)
})
"""


@pytest.fixture(scope="module")
def waiting_run(user: Caller) -> str:
    run_id = user.run({"say": "Well."}, {"tool": "ask_user", "args": {"question": "?"}})
    user.until(run_id, "status", "waiting_for_input")
    return run_id


@pytest.fixture
def owner(system: System) -> Caller:
    """The owner of an org of the test's own."""
    return system.caller()


@pytest.fixture(scope="module")
def home(system: System) -> Iterator[str]:
    """The origin of a web server to which identity providers lead back."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    with system.one_more_web_server(ARKLOOP_PORT=str(port), ARKLOOP_PUBLIC_URL=origin):
        yield origin


@pytest.fixture
def within_a_month() -> None:
    """Wait for the next month if this one, by UTC, is over in a moment: budgets begin anew."""
    now = datetime.now(UTC)
    following = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    midnight = following.replace(hour=0, minute=0, second=0, microsecond=0)
    left = (midnight - now).total_seconds()
    if left < MONTH_SECONDS:
        threading.Event().wait(left + 1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Most tests of this folder need none, and its library is slow to import.
    from playwright.sync_api import sync_playwright

    from tests.acceptance.test_browser import ARGUMENTS, CHROMIUM

    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=Path(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser of its own, whose pages note what their policy refuses."""
    context = browser.new_context()
    context.add_init_script(NOTE_VIOLATIONS)
    yield context
    context.close()
