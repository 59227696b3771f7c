"""The rotation of signing secrets in the console, in a real Chromium."""

import pytest
from playwright.sync_api import BrowserContext, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import hold, killed, lose, refused
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def test_a_second_rotation_warns_that_it_ends_the_former_secret(
    context: BrowserContext, user: Caller
) -> None:
    """A person whose new secret was lost does not end the one in use unawares."""
    url = "http://127.0.0.1:9"
    endpoint = user.made("/v1/webhook-endpoints", {"url": url, "event_types": ["run.failed"]})
    tool = user.made("/v1/tools", {"name": "order", "description": "Look it up.", "url": url})
    page = signed_in(context, user, f"/webhooks/{endpoint['id']}")
    dialog = page.get_by_role("dialog")
    lose(context, "**/v1/webhook-endpoints/*:rotate-secret", killed)
    press(page, "Rotate secret")
    expect(dialog).to_contain_text("For 24 hours messages are signed by both secrets")
    press(dialog, "Rotate secret")
    expect(dialog.get_by_role("alert")).to_contain_text("Your service can keep the secret before")
    press(dialog, "Done")
    press(page, "Rotate secret")
    expect(dialog).to_contain_text("it again ends the former secret at once")
    expect(dialog).not_to_contain_text("For 24 hours")

    # The list was read before somebody else has rotated the secret.
    go(page, "/tools")
    expect(page.get_by_role("button", name="Rotate secret of order")).to_be_visible()
    assert user.http.post(f"/v1/tools/{tool['id']}:rotate-secret").is_success
    press(page, "Rotate secret of order")
    expect(dialog).to_contain_text("it again ends the former secret at once")
    press(dialog, "Rotate secret")
    expect(page.get_by_label("Signing secret", exact=True)).to_contain_text("whsec_")


def test_a_rotation_after_a_failed_one_waits_for_what_it_ends(
    context: BrowserContext, user: Caller
) -> None:
    """The first may have arrived: the promise that was shown before may no longer hold."""
    url = "http://127.0.0.1:9"
    tool = user.made("/v1/tools", {"name": "refund", "description": "Pay it back.", "url": url})
    page = signed_in(context, user, "/tools")
    dialog = page.get_by_role("dialog")
    press(page, "Rotate secret of refund")
    promise = "For 24 hours calls are signed"
    expect(dialog).to_contain_text(promise)

    def arrived(route: Route) -> None:
        assert route.fetch().ok
        refused(500)(route)

    lose(context, "**/v1/tools/*:rotate-secret", arrived)
    held = hold(context, f"**/v1/tools/{tool['id']}")
    press(dialog, "Rotate secret")
    again = dialog.get_by_role("button", name="Rotate secret")
    until_held(page, held, 1)
    expect(dialog).to_contain_text("Come back later")
    expect(again).to_be_disabled()
    expect(dialog).not_to_contain_text(promise)

    refused(500)(held[0])
    expect(dialog.get_by_role("alert")).to_have_count(2)
    expect(again).to_be_disabled()
    expect(dialog).not_to_contain_text(promise)

    press(dialog, "Try again")
    until_held(page, held, 2)
    expect(again).to_be_disabled()
    held[1].continue_()
    expect(dialog).to_contain_text("it again ends the former secret at once")
    expect(again).to_be_enabled()
