"""The rotation of signing secrets in the console, in a real Chromium."""

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import killed, lose
from tests.acceptance.test_console_settings import go, press, signed_in
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
