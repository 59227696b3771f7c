"""The console's forms in a real Chromium, and the fields that they send."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.served_later import serve_budgets
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import hold, refused
from tests.acceptance.test_console_settings import go, press, row, signed_in, until_held
from tests.caller import Caller
from tests.clients import PASSWORD

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


@pytest.fixture
def page(context: BrowserContext, user: Caller) -> Page:
    return signed_in(context, user, "/keys")


def test_a_second_version_of_a_persona_with_an_agent(page: Page, user: Caller) -> None:
    """The form sends no field that only the built-in loop uses, whatever its default is."""
    user.made("/v1/personas", {"key": "crew", "agent": "crew", "max_steps": 5})
    go(page, "/personas/crew")
    page.get_by_role("link", name="New version").click()
    page.get_by_label("Instructions").fill("Work together.")
    press(page, "Publish")

    expect(page.get_by_role("heading", name="Changes from version 1 to 2")).to_be_visible()
    made = user.get("/v1/personas/crew@2")
    assert ("crew", 5, "Work together.") == tuple(
        made[name] for name in ("agent", "max_steps", "system_prompt")
    )


def test_a_field_of_a_persona_is_not_in_its_json(page: Page, user: Caller) -> None:
    """It would be replaced by what the field above says; the form refuses it."""
    go(page, "/personas?publish=1")
    page.get_by_label("Key").fill("guarded")
    page.get_by_text("Version and other fields").click()
    page.get_by_label("Other fields, as JSON").fill('{"approved_by": "org"}')
    press(page, "Publish")

    expect(page.get_by_role("alert")).to_have_text("approved_by has a field of its own above")
    assert 404 == user.http.get("/v1/personas/guarded@1").status_code


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ({"approved_by": "admins"}, "admins"),
        ({"problems": {"approved_by": ["must be one of anyone, org"]}}, "org"),
        ({}, ""),
    ],
)
def test_a_value_of_a_later_release_is_not_lost(
    page: Page, shown: dict[str, Any], value: str
) -> None:
    """The form keeps who approves, or begins with `org` if the service could not read it."""

    def change(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=[{**one, **shown} for one in response.json()])

    page.route("**/v1/personas?*", change)
    go(page, "/personas/assistant?publish=1")

    expect(page.get_by_label("Approved by")).to_have_value(value)


def test_forms_of_models_forget_what_belonged_to_the_value_before(page: Page, user: Caller) -> None:
    """Another kind of provider clears the platform, and another name of a model its prices."""
    go(page, "/providers")
    press(page, "Add provider")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Vendor")
    form.get_by_label("Models").fill("gpt-4o-mini")
    form.get_by_text("Cloud platforms").click()
    form.get_by_label("Platform").select_option("azure")
    form.get_by_label("Kind").select_option("anthropic")
    form.get_by_label("Kind").select_option("openai")
    expect(form.get_by_label("Platform")).to_have_value("")
    press(form, "Add provider")
    expect(form).to_have_count(0)
    [made] = [one for one in user.get("/v1/llm-providers") if one["name"] == "Vendor"]
    assert ("openai", None) == (made["kind"], made["platform"])

    press(row(page, "gpt-4o-mini"), "Edit gpt-4o-mini")
    price = form.get_by_label("Input", exact=True)
    expect(price).to_have_attribute("placeholder", "0.15")
    form.get_by_label("Model", exact=True).fill("fine-tuned")
    expect(price).to_have_attribute("placeholder", "From the library")
    press(form, "Cancel")
    assert 204 == user.http.delete(f"/v1/llm-providers/{made['id']}").status_code


def test_the_newest_version_is_the_one_that_runs_get(page: Page, user: Caller) -> None:
    """A draft, or a number that was published later, is not offered as what runs get."""
    prompts = {"3": "Production.", "10": "Later.", "4": "Old.", "draft": "Try."}
    for version, prompt in prompts.items():
        user.made("/v1/personas", {"key": "desk", "version": version, "system_prompt": prompt})
    user.made("/v1/personas", {"key": "assistant", "version": "draft", "system_prompt": "Try."})
    go(page, "/personas")
    expect(row(page, "desk")).to_contain_text("@10")
    builtin = page.get_by_role("link", name="assistant", exact=True)
    expect(page.get_by_role("row").filter(has=builtin)).to_contain_text("@1")
    assert "desk@10" == user.get("/v1/personas/desk")["id"]

    go(page, "/personas/desk")
    options = page.get_by_label("Version", exact=True).locator("option")
    expect(options).to_have_text(["10 (newest)", "4", "3", "draft"])
    page.get_by_role("link", name="New version").click()
    expect(page.get_by_label("Instructions")).to_have_value("Later.")
    # In the order in which they were published.
    go(page, "/personas/desk?version=10&to=draft")
    expect(
        page.get_by_role("heading", name="Changes from version 10 to draft", exact=True)
    ).to_be_visible()


def test_a_new_persona_is_not_called_missing(page: Page, context: BrowserContext) -> None:
    """The list that was read before it was published has neither it nor its newer version."""
    go(page, "/personas")
    page.get_by_role("link", name="New persona").click()
    page.get_by_label("Key", exact=True).fill("fresh")
    page.get_by_label("Instructions").fill("First.")
    reads = "**/v1/personas?*"
    held = hold(context, reads)
    press(page, "Publish")
    until_held(page, held, 1)
    heading = page.get_by_role("heading", name="fresh", exact=True)
    expect(heading).to_be_visible()
    expect(page.get_by_role("status", name="Loading")).to_be_visible()
    held.pop().abort()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.get_by_text("No such persona")).to_have_count(0)
    context.unroute(reads)
    press(page, "Try again")
    expect(page.get_by_text("First.")).to_be_visible()

    page.get_by_role("link", name="New version").click()
    page.get_by_label("Instructions").fill("Second.")
    held = hold(context, reads)
    press(page, "Publish")
    until_held(page, held, 1)
    expect(page.get_by_role("status", name="Loading")).to_be_visible()
    expect(page.get_by_text("Both versions have the same fields.")).to_have_count(0)
    held.pop().continue_()
    context.unroute(reads)
    expect(page.get_by_role("heading", name="Changes from version 1 to 2")).to_be_visible()


def test_a_persona_that_was_published_elsewhere_is_looked_for(page: Page, user: Caller) -> None:
    """The page has read the list before, and reads it again before it says that there is none."""
    go(page, "/personas")
    expect(page.get_by_role("link", name="New persona")).to_be_visible()
    user.made("/v1/personas", {"key": "elsewhere", "system_prompt": "Here I am."})
    go(page, "/personas/elsewhere")
    expect(page.get_by_text("Here I am.").first).to_be_visible()
    go(page, "/personas/nowhere")

    expect(page.get_by_text("No such persona")).to_be_visible()


def test_a_persona_may_have_any_key(page: Page, user: Caller) -> None:
    """`new` is one, too; the form for a new persona has an address of its own."""
    user.made("/v1/personas", {"key": "new", "system_prompt": "Here I am."})
    go(page, "/personas")
    page.get_by_role("link", name="new", exact=True).click()
    expect(page.get_by_text("Here I am.").first).to_be_visible()
    page.get_by_role("link", name="New version").click()
    expect(page.get_by_label("Instructions")).to_have_value("Here I am.")
    go(page, "/personas")
    page.get_by_role("link", name="New persona").click()

    expect(page.get_by_label("Key", exact=True)).to_have_value("")


def test_a_version_that_was_published_elsewhere_is_looked_for(page: Page, user: Caller) -> None:
    """Another version to compare with is, too; the page says of one that it does not exist."""
    prompts = ["First.", "Second.", "Third."]
    for prompt in prompts[:2]:
        user.made("/v1/personas", {"key": "versions", "system_prompt": prompt})
    go(page, "/personas/versions")
    expect(page.get_by_text("Second.").first).to_be_visible()
    user.made("/v1/personas", {"key": "versions", "system_prompt": prompts[2]})
    go(page, "/personas/versions?version=1&to=3")
    expect(page.get_by_role("heading", name="Changes from version 1 to 3")).to_be_visible()
    expect(page.get_by_text("does not exist")).to_have_count(0)

    for address, missing in (("version=99", "99"), ("version=1&to=98", "98")):
        go(page, f"/personas/versions?{address}")
        expect(page.get_by_text(f"Version {missing} does not exist.")).to_be_visible()
    expect(page.get_by_text("First.").first).to_be_visible()


def test_the_budget_of_one_end_user_keeps_what_it_inherits(page: Page, user: Caller) -> None:
    """The form has the end user's own limits; an empty one stays that of each."""
    path = "/v1/budget/end-users"
    user.put(path, {"max_cost_usd": 0.1, "max_cost_usd_per_month": 5})
    serve_budgets(page.context)
    go(page, "/limits")
    page.get_by_label("End user").fill("customer-7")
    press(page, "Show budget")
    press(page, "Change")
    form = page.get_by_role("dialog")
    of_run, of_month = form.get_by_label("USD per run"), form.get_by_label("USD per month")
    for field, inherited in ((of_run, "Inherited: $0.10"), (of_month, "Inherited: $5.00")):
        expect(field).to_have_value("")
        expect(field).to_have_attribute("placeholder", inherited)
    of_month.fill("20")
    press(form, "Save")
    expect(form).to_have_count(0)

    found = user.get(path, end_user_id="customer-7")
    assert {"max_cost_usd": None, "max_cost_usd_per_month": 20} == found["own"]
    user.put(path, {"max_cost_usd": 0.5})
    assert 0.5 == user.get(path, end_user_id="customer-7")["max_cost_usd"]


def test_a_budget_is_that_of_the_end_user_whose_form_was_opened(page: Page) -> None:
    """The response about another end user arrives while the form is open, and changes nothing."""
    limits = {"max_cost_usd": 1, "max_cost_usd_per_month": 5}
    usage = {"month": "2026-11", "spent_usd": 0, "held_usd": 0}
    held: list[Route] = []
    sent: list[Any] = []

    def answer(route: Route) -> None:
        one = route.request.url.rpartition("end_user_id=")[2]
        if route.request.method == "PUT":
            sent.append(route.request.post_data_json)
        if one == "customer-b" and not held:
            held.append(route)
        else:
            route.fulfill(json={"end_user_id": one, **limits, **usage, "own": limits})

    page.route("**/v1/budget**", answer)
    go(page, "/limits")
    page.get_by_label("End user").fill("customer-a")
    press(page, "Show budget")
    expect(page.locator("h3", has_text="customer-a")).to_be_visible()
    page.get_by_label("End user").fill("customer-b")
    page.keyboard.press("Enter")
    until_held(page, held, 1)
    press(page, "Change")
    form = page.get_by_role("dialog")
    form.get_by_label("USD per run").fill("2")
    of_b = {"end_user_id": "customer-b", "max_cost_usd": 9, "max_cost_usd_per_month": 900}
    held[0].fulfill(json={**of_b, **usage, "own": of_b})
    expect(page.locator("h3", has_text="customer-b")).to_be_visible()
    expect(page.get_by_role("dialog", name="Budget of customer-a")).to_be_visible()
    press(form, "Save")
    expect(form).to_have_count(0)

    assert [{"end_user_id": "customer-a", **limits, "max_cost_usd": 2}] == sent


def test_what_could_not_be_read_after_a_change_is_not_shown_as_it_was(page: Page) -> None:
    """The budget is saved, and its reading refused, as reports are that have to wait."""
    budget = {"max_cost_usd": 1, "max_cost_usd_per_month": None, "month": "2026-11"}
    budget |= {"spent_usd": 0, "held_usd": 0}
    refusals = [0]

    def pass_budget(route: Route) -> None:
        if route.request.method == "PUT":
            budget.update(route.request.post_data_json)
            refusals[0] = 1
        elif refusals[0]:
            error = {"code": "rate_limit.exceeded", "message": "Later.", "details": {}}
            route.fulfill(status=429, json=error)
            return
        route.fulfill(json=budget)

    page.route("**/v1/budget", pass_budget)
    go(page, "/limits")
    press(page, "Change budget")
    page.get_by_role("dialog").get_by_label("USD per run").fill("2")
    press(page.get_by_role("dialog"), "Save")
    expect(page.get_by_role("alert")).to_contain_text("Later.")
    refusals[0] = 0
    press(page, "Try again")

    expect(page.get_by_text("$2.00")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_form_forgets_an_ended_session_after_the_next_sign_in(page: Page, user: Caller) -> None:
    """It keeps what was typed, and can be sent."""
    press(page, "Create key")
    form = page.get_by_role("dialog", name="Create an API key")
    form.get_by_label("Name").fill("Kept")
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(hours=1))
    refuse = refused(401)
    page.route("**/v1/auth/refresh", refuse)
    press(form, "Create key")
    expect(form.get_by_role("alert")).to_contain_text("Your session has ended.")
    page.unroute("**/v1/auth/refresh", refuse)
    again = page.get_by_role("dialog", name="Your session has ended")
    again.get_by_label("User name or email").fill(user.login)
    again.get_by_label("Password").fill(PASSWORD)
    press(again, "Sign in")
    expect(again).to_have_count(0)

    expect(form.get_by_role("alert")).to_have_count(0)
    expect(form.get_by_label("Name")).to_have_value("Kept")
