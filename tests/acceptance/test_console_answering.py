"""The persona and the route that answer a message of the console, in a real Chromium."""

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import CREATES, box, hold, killed, lose, refused, say
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.caller import Caller, script
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


PERSONA = "**/v1/personas/*"


def provider(user: Caller, name: str, *, is_default: bool = False) -> tuple[str, str]:
    """Return the path of a provider that does not respond, and the id of its route."""
    fields = {"name": name, "kind": "openai", "base_url": "https://models.invalid/v1"}
    models = [{"model": name, "is_default": is_default}]
    body = {**fields, "models": models, "api_key": "sk-" + 24 * "g"}
    made = user.made("/v1/llm-providers", body)
    return f"/v1/llm-providers/{made['id']}", made["models"][0]["route_id"]


def begun(user: Caller, **fields: Any) -> str:
    """Return a thread whose first run, with these fields, has ended."""
    thread_id = user.thread(script({"hang": 600}))
    run_id = user.start(thread_id, **fields)
    user.cancel(run_id)
    user.ended(run_id)
    return thread_id


def last(user: Caller, thread_id: str) -> tuple[str, str]:
    """Return the persona and the route of the newest run of a thread, which is ended."""
    run = user.get_run(user.get(f"/v1/threads/{thread_id}/runs")[0]["run_id"])
    if run["phase"] != "finished":
        user.cancel(run["run_id"])
    return run["persona_id"], run["route_id"]


def answered_by(page: Page) -> Locator:
    return page.locator(".answered-by p span")


def test_the_next_message_has_the_persona_of_the_first(
    context: BrowserContext, user: Caller
) -> None:
    """Calls that it lets people approve wait for them in every answer of the thread."""
    fields = {"tools": ["calculator"], "require_approval": ["calculator"]}
    user.made("/v1/personas", {"key": "approving", "route_id": "scripted", **fields})
    page = signed_in(context, user, "/threads/new")
    page.get_by_label("Persona", exact=True).select_option("approving")
    say(page, script({"say": "Heard."}))
    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    expect(answered_by(page)).to_have_text("Persona approving")
    say(page, script({"tool": "calculator", "args": {"expression": "6*7"}}))

    expect(page.locator(".run-foot a")).to_have_text(["approving@1", "approving@1"])
    press(page.locator(".ask"), "Approve")
    expect(page.locator(".ask")).to_have_count(0)


def test_the_next_message_has_the_newest_version_of_its_persona(
    context: BrowserContext, user: Caller
) -> None:
    """It has that version's route, too, as with a product that names the persona alone."""
    _, route_id = provider(user, "retired")
    user.made("/v1/personas", {"key": "moving", "route_id": route_id})
    thread_id = begun(user, persona_id="moving")
    user.made("/v1/personas", {"key": "moving", "route_id": "scripted"})
    with context.expect_event("response", lambda response: "/v1/personas/" in response.url):
        page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.locator(".run-foot a")).to_have_text(["moving@1"])
    expect(answered_by(page)).to_have_text("Persona moving")
    say(page, script({"say": "Heard."}))

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    assert ("moving@2", "scripted") == last(user, thread_id)


def test_the_next_message_has_the_route_that_was_chosen(
    context: BrowserContext, user: Caller
) -> None:
    """It is named where the message is written, by its model."""
    _, route_id = provider(user, "chosen-1")
    user.made("/v1/personas", {"key": "settled", "route_id": "scripted"})
    thread_id = begun(user, persona_id="settled", route_id=route_id)
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(answered_by(page)).to_have_text("Persona settled, route chosen-1")
    say(page, "Go on.")

    expect(page.locator("article.run")).to_have_count(2)
    assert ("settled@1", route_id) == last(user, thread_id)


def test_a_message_waits_until_it_is_known_whether_a_route_was_chosen(
    context: BrowserContext, user: Caller
) -> None:
    """It is sent without one when that takes long: with what is shown above it."""
    _, route_id = provider(user, "retired-2")
    user.made("/v1/personas", {"key": "hidden", "route_id": route_id})
    thread_id = begun(user, persona_id="hidden")
    user.made("/v1/personas", {"key": "hidden", "route_id": "scripted"})
    held = hold(context, PERSONA)
    page = signed_in(context, user, f"/threads/{thread_id}")
    until_held(page, held, 1)
    box(page).fill(script({"say": "Heard."}))
    send = page.get_by_role("button", name="Send")
    expect(send).to_be_disabled()
    expect(answered_by(page)).to_have_text("Persona hidden")
    send.click()

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    assert ("hidden@2", "scripted") == last(user, thread_id)


def test_a_route_that_was_chosen_is_looked_for_again(context: BrowserContext, user: Caller) -> None:
    """A limit on requests, or a failure, does not hide it until a reload."""
    _, route_id = provider(user, "chosen-2")
    user.made("/v1/personas", {"key": "limited", "route_id": "scripted"})
    thread_id = begun(user, persona_id="limited", route_id=route_id)
    lose(context, PERSONA, refused(429))
    with context.expect_event("response", lambda one: "/v1/personas/" in one.url and one.ok):
        page = signed_in(context, user, f"/threads/{thread_id}")

    expect(answered_by(page)).to_have_text("Persona limited, route chosen-2")


def test_a_default_route_that_is_gone_is_not_named(context: BrowserContext, system: System) -> None:
    """Messages are not refused for a route that no person has named."""
    owner = system.caller()
    path, _ = provider(owner, "old-default", is_default=True)
    thread_id = begun(owner)
    assert 204 == owner.http.delete(path).status_code
    page = signed_in(context, owner, f"/threads/{thread_id}")
    say(page, script({"say": "Heard."}))

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    assert ("assistant@1", "scripted") == last(owner, thread_id)


def test_a_route_that_is_gone_is_replaced_where_the_message_is_written(
    context: BrowserContext, user: Caller
) -> None:
    """The message is refused and back in its box, and what can be chosen is shown above it."""
    path, route_id = provider(user, "gone-1")
    user.made("/v1/personas", {"key": "staying", "route_id": "scripted"})
    thread_id = begun(user, persona_id="staying")
    page, said = signed_in(context, user, f"/threads/{thread_id}"), script({"say": "Heard."})
    press(page, "Change")
    route = page.get_by_label("Route", exact=True)
    route.select_option(route_id)
    expect(answered_by(page)).to_have_text("Persona staying, route gone-1")
    press(page, "Close")
    assert 204 == user.http.delete(path).status_code
    say(page, said)
    expect(page.get_by_role("alert")).to_contain_text("Route not found")
    expect(box(page)).to_have_value(said)
    expect(route).to_have_value(route_id)
    route.select_option("As the persona says")
    press(page, "Send")

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    expect(answered_by(page)).to_have_text("Persona staying")
    expect(route).to_have_count(0)
    assert ("staying@1", "scripted") == last(user, thread_id)


def test_a_persona_that_requires_variables_is_replaced_where_the_message_is_written(
    context: BrowserContext, user: Caller
) -> None:
    """A message of the console has none, and another persona answers it."""
    greeter = {"key": "greeter", "route_id": "scripted", "overrides": ["variables"]}
    user.made("/v1/personas", greeter | {"system_prompt": "Serve {{customer}}."})
    thread_id = begun(user, persona_id="greeter", variables={"customer": "Ann"})
    page, said = signed_in(context, user, f"/threads/{thread_id}"), script({"say": "Heard."})
    say(page, said)
    expect(page.get_by_role("alert")).to_contain_text("variables.customer")
    expect(box(page)).to_have_value(said)
    persona = page.get_by_label("Persona", exact=True)
    expect(persona).to_have_value("greeter")
    persona.select_option("assistant")
    press(page, "Send")

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])


def test_a_run_for_later_answers_no_message_before_it(
    context: BrowserContext, user: Caller
) -> None:
    """The persona of the last run that has begun does."""
    for key in ("nightly", "daily"):
        user.made("/v1/personas", {"key": key, "route_id": "scripted"})
    thread_id = begun(user, persona_id="daily")
    later = {"message": "Report.", "persona_id": "nightly", "not_before": "2027-01-01T00:00:00Z"}
    user.made(f"/v1/threads/{thread_id}/runs", later)
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.locator("article.run")).to_have_count(2)

    expect(answered_by(page)).to_have_text("Persona daily")


def test_the_persona_of_a_run_far_above_answers_the_next_message(
    context: BrowserContext, user: Caller
) -> None:
    """The page of the timeline that is shown has messages alone."""
    user.made("/v1/personas", {"key": "thorough", "route_id": "scripted"})
    thread_id = begun(user, persona_id="thorough")
    for number in range(31):
        user.say(thread_id, f"Note {number}")
    page = signed_in(context, user, f"/threads/{thread_id}")
    say(page, script({"say": "Heard."}))

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    assert ("thorough@1", "scripted") == last(user, thread_id)


def test_another_persona_is_chosen_for_the_next_message(
    context: BrowserContext, user: Caller
) -> None:
    """A reload keeps the choice, and the answers after it have that persona, too."""
    for key in ("earlier", "later"):
        user.made("/v1/personas", {"key": key, "route_id": "scripted"})
    thread_id = begun(user, persona_id="earlier")
    page = signed_in(context, user, f"/threads/{thread_id}")
    press(page, "Change")
    persona = page.get_by_label("Persona", exact=True)
    expect(persona).to_have_value("earlier")
    persona.select_option("later")
    box(page).fill(script({"say": "Heard."}))
    page.reload()
    expect(answered_by(page)).to_have_text("Persona later")
    press(page, "Send")
    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    say(page, script({"say": "Again."}))

    expect(page.locator(".run .markdown")).to_have_text(["Heard.", "Again."])
    assert ("later@1", "scripted") == last(user, thread_id)


def test_a_choice_is_kept_while_the_message_before_it_is_on_its_way(
    context: BrowserContext, user: Caller
) -> None:
    """A look at another thread does not replace it by what that message has."""
    for key in ("sooner", "afterwards"):
        user.made("/v1/personas", {"key": key, "route_id": "scripted"})
    thread_id, other = begun(user, persona_id="sooner"), user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(answered_by(page)).to_have_text("Persona sooner")
    held = hold(context, CREATES)
    say(page, script({"say": "Heard."}))
    until_held(page, held, 1)
    press(page, "Change")
    page.get_by_label("Persona", exact=True).select_option("afterwards")
    box(page).fill("For the one after it")
    go(page, f"/threads/{other}")
    expect(answered_by(page)).to_have_text("Persona Default")
    go(page, f"/threads/{thread_id}")
    expect(box(page)).to_have_value("For the one after it")
    held[0].continue_()
    expect(page.locator(".run .markdown")).to_have_text(["Heard."])

    expect(page.locator(".run-foot a")).to_have_text(["sooner@1", "sooner@1"])
    expect(answered_by(page)).to_have_text("Persona afterwards")


def test_a_message_that_may_have_arrived_keeps_its_persona(
    context: BrowserContext, user: Caller
) -> None:
    """Sent again by the person it is there once, whatever has answered the thread since."""
    for key in ("asked", "other"):
        user.made("/v1/personas", {"key": key, "route_id": "scripted"})
    thread_id, said = begun(user, persona_id="asked"), script({"say": "Heard."})
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(answered_by(page)).to_have_text("Persona asked")
    lose(context, CREATES, killed, refused(429))
    say(page, said)
    expect(box(page)).to_have_value(said)
    user.ended(user.get(f"/v1/threads/{thread_id}/runs")[0]["run_id"])
    user.ended(user.start(thread_id, persona_id="other"))
    page.reload()
    expect(page.locator(".run-foot a")).to_have_text(["asked@1", "asked@1", "other@1"])
    expect(answered_by(page)).to_have_text("Persona asked")
    with page.expect_response(CREATES) as response:
        press(page, "Send")

    assert response.value.ok
    expect(box(page)).to_have_value("")
    assert 3 == len(user.get(f"/v1/threads/{thread_id}/runs"))


def test_a_thread_without_a_run_has_the_default_persona(
    context: BrowserContext, user: Caller
) -> None:
    thread_id = user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(answered_by(page)).to_have_text("Persona Default")
    say(page, script({"say": "Heard."}))

    expect(page.locator(".run-foot a")).to_have_text(["assistant@1"])
    expect(answered_by(page)).to_have_text("Persona assistant")
