"""Requests of a page that a busy service refuses, sent again until it serves them."""

import threading
from contextlib import suppress

from playwright.sync_api import BrowserContext, Error, Route

from tests.caller import REFUSALS


def serve(route: Route) -> None:
    """Pass the request on, again and again while it is refused."""
    with suppress(Error):  # the page was closed meanwhile
        while (response := route.fetch()).status in REFUSALS:
            threading.Event().wait(0.2)
        route.fulfill(response=response)


def serve_budgets(context: BrowserContext) -> None:
    """Let no budget be refused: reports of an org take turns, and a page may ask for three."""
    context.route("**/v1/budget**", serve)
