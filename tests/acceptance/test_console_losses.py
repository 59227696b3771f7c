"""The console in a real Chromium while requests and responses are lost on their way."""

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import signed_in
from tests.caller import Caller, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
Loss = Callable[[Route], None]
CREATES = "**/v1/threads/*/runs"
TIMELINE = "**/v1/threads/*/timeline*"


def bad_gateway(route: Route) -> None:
    """Respond as nginx does while no web process is there."""
    page = "<html><h1>502 Bad Gateway</h1></html>"
    route.fulfill(status=502, content_type="text/html", body=page)


def killed(route: Route) -> None:
    """Let the service carry the request out, and lose its response."""
    assert route.fetch().ok
    bad_gateway(route)


def cut(route: Route) -> None:
    """End the body of a successful response early."""
    response = route.fetch()
    assert response.ok
    body = response.text()[:-9]
    route.fulfill(status=response.status, content_type="application/json", body=body)


def in_progress(route: Route) -> None:
    code = "idempotency.in_progress"
    route.fulfill(status=409, json={"code": code, "message": "In progress.", "details": {}})


def refused(status: int) -> Loss:
    body = {"code": "http.unavailable", "message": "Come back later.", "details": {}}
    return lambda route: route.fulfill(status=status, json=body)


def lose(context: BrowserContext, pattern: str, *losses: Loss | None) -> None:
    """Treat the first requests to an address in these ways, and pass the others on."""
    left = list(losses)

    def handle(route: Route) -> None:
        loss = left.pop(0) if left else None
        if loss is None:
            route.continue_()
        else:
            loss(route)

    context.route(pattern, handle)


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param((killed, bad_gateway), id="502"),
        pytest.param((cut,), id="cut"),
        pytest.param((killed, in_progress), id="in progress"),
    ],
)
def test_a_message_whose_response_is_lost_is_there_once(
    context: BrowserContext, user: Caller, losses: tuple[Loss, ...]
) -> None:
    """It is sent again with the same key until the service says that it has it."""
    thread_id = user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, *losses)
    say(page, script({"say": "Heard."}))

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    expect(page.locator(".said")).to_have_count(1)
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    assert 2 == len(user.messages(thread_id))


def test_a_502_of_a_proxy_ends_no_view(context: BrowserContext, user: Caller) -> None:
    """A thread and the page of a run follow on when the web processes are back."""
    run_id = user.run({"say": "one two three four five", "delay_ms": 500})
    lose(context, "**/v1/threads/*/events*", bad_gateway, bad_gateway)
    lose(context, TIMELINE, None, bad_gateway)
    lose(context, "**/v1/runs/*/events*", bad_gateway)
    thread = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    run = context.new_page()
    run.goto(f"{user.url}/console#/runs/{run_id}")

    expect(thread.locator(".run .markdown")).to_have_text(["one two three four five"])
    expect(run.locator(".events")).to_contain_text("run.completed")
    expect(run.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_thread_is_loaded_again(context: BrowserContext, user: Caller, status: int) -> None:
    """A thread that the service cannot show yet appears by itself."""
    run_id = user.run({"say": "Here."})
    lose(context, TIMELINE, bad_gateway if status == 502 else refused(status))
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")

    expect(page.locator(".run .markdown")).to_have_text(["Here."])
