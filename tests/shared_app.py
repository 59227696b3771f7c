"""An app in the process of the tests: of a module's own, or shared by the modules of a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Flask

from arkloop.api.app import create_app
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections, connect
from tests.described_responses import DescribedResponses

#: Folders whose modules share a database, its connections and an app: connections are slow as long
#: as Postgres and SQLAlchemy meet each statement for the first time. Their tests look at orgs of
#: their own; a module that looks at the whole installation is marked with `own_database`.
SHARED = ("tests/api/",)


@dataclass(frozen=True)
class SharedApp:
    """An app with its stores, and the search for what is not in its description."""

    connections: Connections
    app: Flask
    described: DescribedResponses


@contextmanager
def shared_app(settings: Settings) -> Iterator[SharedApp]:
    """Open an app for modules that share it, for the length of the block."""
    opened = connect(settings, application="tests")
    with own_app(opened) as (app, described):
        yield SharedApp(opened, app, described)
    opened.close()


@contextmanager
def own_app(connections: Connections) -> Iterator[tuple[Flask, DescribedResponses]]:
    """Make an app for the length of the block, with the comparison of its responses."""
    app = create_app(connections=connections)
    described = DescribedResponses(app)
    try:
        yield app, described
    finally:
        for name in ("hub", "polls", "reports"):
            app.extensions[f"arkloop.{name}"].close()
