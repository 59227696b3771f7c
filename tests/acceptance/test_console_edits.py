"""Forms of the console, in a real Chromium, about what somebody else changes meanwhile."""

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
KEY = "sk-" + 24 * "k"
OLD, NEW = "http://127.0.0.1:9/old", "http://127.0.0.1:9/new"


def save(page: Page, label: str, value: str) -> None:
    """Change one field of the open form."""
    form = page.get_by_role("dialog")
    form.get_by_label(label, exact=True).fill(value)
    press(form, "Save")


def shown(user: Caller, path: str, *names: str) -> list[Any]:
    found = user.get(path)
    return [found[name] for name in names]


def test_a_form_saves_only_what_was_changed_in_it(context: BrowserContext, user: Caller) -> None:
    """The other fields stay as somebody else has set them since the form was opened."""
    body: dict[str, Any] = {"url": OLD, "event_types": ["run.failed"]}
    hook = user.made("/v1/webhook-endpoints", body)["id"]
    body = {"name": "Vendor", "kind": "openai", "base_url": OLD, "api_key": f"{KEY}-0001"}
    provider = user.made("/v1/llm-providers", body)["id"]
    hook, provider = f"/v1/webhook-endpoints/{hook}", f"/v1/llm-providers/{provider}"
    page = signed_in(context, user, hook.replace("/v1/webhook-endpoints", "/webhooks"))
    dialog = page.get_by_role("dialog")

    press(page, "Edit")
    body = {"url": NEW, "event_types": ["run.completed"]}
    assert user.http.patch(hook, json=body).is_success
    save(page, "Description", "Orders.")
    expect(dialog).to_have_count(0)
    found = shown(user, hook, "description", "url", "event_types")
    assert ["Orders.", NEW, ["run.completed"]] == found

    go(page, "/providers")
    press(page, "Edit Vendor")
    body = {"base_url": NEW, "api_key": f"{KEY}-0002"}
    assert user.http.patch(provider, json=body).is_success
    save(page, "Name", "Account")
    expect(dialog).to_have_count(0)
    assert ["Account", NEW] == shown(user, provider, "name", "base_url")

    # Reads of budgets take turns: on a busy machine the service refuses some of them.
    budget = {"max_cost_usd": 1, "max_cost_usd_per_month": 100, "month": "2026-11"}
    budget |= {"spent_usd": 0, "held_usd": 0}
    sent = []

    def pass_budget(route: Route) -> None:
        if route.request.method == "PUT":
            sent.append(route.request.post_data_json)
        route.fulfill(json=budget)

    context.route("**/v1/budget**", pass_budget)
    go(page, "/limits")
    press(page, "Change budget")
    budget["max_cost_usd_per_month"] = 5
    save(page, "USD per run", "2")
    expect(dialog).to_have_count(0)
    assert [{"max_cost_usd": 2, "max_cost_usd_per_month": 5}] == sent


@pytest.mark.parametrize(
    ("is_new", "number"), [(False, None), (False, "5"), (True, None), (True, "5"), (True, "first")]
)
def test_a_version_that_was_not_seen_is_not_replaced(
    context: BrowserContext, user: Caller, is_new: bool, number: str | None
) -> None:
    """The form shows what somebody else has published, keeps its own, and is sent once more."""
    key = f"shared-{number}-new" if is_new else f"shared-{number}"
    path = f"/v1/personas/{key}"
    if not is_new:
        user.made("/v1/personas", {"key": key, "system_prompt": "Help."})
    page = signed_in(context, user, f"/personas{'' if is_new else f'/{key}'}?publish=1")
    if is_new:
        page.get_by_label("Key", exact=True).fill(key)
    text = page.get_by_label("Instructions")
    text.fill("Help, and be brief.")
    user.made("/v1/personas", {"key": key, "version": number, "system_prompt": "Help in French."})
    theirs = user.get(path)["version"]
    press(page, "Publish")

    expect(page.get_by_role("alert")).to_contain_text(f"its newest version is {theirs}")
    changes = page.get_by_role("region", name="Changes of system_prompt")
    expect(changes).to_contain_text("Help in French.")
    expect(text).to_have_value("Help, and be brief.")
    assert theirs == user.get(path)["version"]
    press(page, "Publish")
    heading = f"Changes from version {theirs} to {int(theirs) + 1 if theirs.isdecimal() else 1}"
    expect(page.get_by_role("heading", name=heading)).to_be_visible()
    assert "Help, and be brief." == user.get(path)["system_prompt"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_version_that_is_not_found_yet_is_refused_in_words(
    context: BrowserContext, user: Caller, is_new: bool
) -> None:
    """Somebody has published it a moment ago; where it is read it is not known so far."""
    key = f"hidden-{is_new}".lower()
    if not is_new:
        user.made("/v1/personas", {"key": key, "system_prompt": "Help."})
    page = signed_in(context, user, f"/personas{'' if is_new else f'/{key}'}?publish=1")
    if is_new:
        page.get_by_label("Key", exact=True).fill(key)
    text = page.get_by_label("Instructions")
    text.fill("Help, and be brief.")
    error = {"code": "personas.published", "message": "It is published already.", "details": {}}

    def refuse(route: Route) -> None:
        if route.request.method == "POST":
            route.fulfill(status=409, json=error)
        else:
            route.continue_()

    context.route("**/v1/personas", refuse)
    press(page, "Publish")

    expect(page.get_by_role("alert")).to_have_text("It is published already.")
    expect(text).to_have_value("Help, and be brief.")
    context.unroute("**/v1/personas")
    press(page, "Publish")
    number = 1 if is_new else 2
    expect(page.get_by_role("heading", name=key, exact=True)).to_be_visible()
    assert str(number) == user.get(f"/v1/personas/{key}")["version"]


def test_a_secret_goes_to_no_address_that_was_not_seen(
    context: BrowserContext, user: Caller
) -> None:
    """The form says where it would go by now, and sends it once somebody has seen that."""
    body = {"name": "Gateway", "kind": "openai", "base_url": OLD, "api_key": f"{KEY}-0001"}
    provider = f"/v1/llm-providers/{user.made('/v1/llm-providers', body)['id']}"
    server: dict[str, Any] = {"name": "crm", "url": OLD, "headers": {"Authorization": "Bearer 1"}}
    server_id = user.made("/v1/mcp-configs", server)["id"]
    config = f"/v1/mcp-configs/{server_id}"
    page = signed_in(context, user, "/providers")
    alert = page.get_by_role("dialog").get_by_role("alert")

    press(page, "Edit Gateway")
    body = {"base_url": NEW, "api_key": f"{KEY}-0002"}
    assert user.http.patch(provider, json=body).is_success
    save(page, "API key", f"{KEY}-0003")
    expect(alert).to_contain_text(f"was changed to {NEW}")
    page.reload()
    press(page, "Edit Gateway")
    assert [NEW, "0002"] == shown(user, provider, "base_url", "api_key_last_four")
    save(page, "API key", f"{KEY}-0003")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert [NEW, "0003"] == shown(user, provider, "base_url", "api_key_last_four")

    go(page, f"/mcp/{server_id}")
    press(page, "Edit")
    server = {"url": NEW, "headers": {"Authorization": "Bearer 2"}}
    assert user.http.patch(config, json=server).is_success
    save(page, "Headers", "X-Key: 3")
    expect(alert).to_contain_text(f"was changed to {NEW}")
    assert [NEW, ["Authorization"]] == shown(user, config, "url", "header_names")
