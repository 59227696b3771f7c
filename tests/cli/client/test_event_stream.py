"""Events as the command line reads them, from servers that are not the service."""

import httpx2
import pytest

from arkloop.cli.client import event_stream
from arkloop.cli.client.client import Client, Unreachable
from arkloop.cli.client.server_address import ServerAddress
from tests.played_streams import COMMENT, END, played_streams


def _followed(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Follow a run with times of less than a second; return its events and what was said."""
    monkeypatch.setattr(event_stream, "GIVE_UP_SECONDS", 1.0)
    monkeypatch.setattr(event_stream, "FIRST_PAUSE_SECONDS", 0.01)
    client = Client(ServerAddress(url, "key"))
    client.http.timeout = httpx2.Timeout(0.2)
    said: list[str] = []
    try:
        return [event.type for event in event_stream.follow(client, "run", tell=said.append)], said
    finally:
        client.http.close()


def test_a_stream_without_a_body_is_no_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that buffers passes the headers on alone: the error says so, instead of silence."""
    with played_streams(*[b""] * 7, END) as url:
        with pytest.raises(Unreachable, match="no body: a proxy on the way may buffer it"):
            _followed(url, monkeypatch)


def test_a_stream_with_a_comment_is_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a person has no events, for longer than the command is patient."""
    with played_streams(*[COMMENT] * 7, END) as url:
        events, said = _followed(url, monkeypatch)

    assert ["run.completed"] == events
    assert ["Connection lost (timed out); resuming after event 0."] == said
