"""Events as the command line reads them, from servers that are not the service."""

import httpx2
import pytest

from arkloop.cli.client import event_stream
from arkloop.cli.client.client import Client, Refused, Unreachable
from arkloop.cli.client.server_address import ServerAddress
from tests.played_streams import COMMENT, END, EVENT, played_streams


def _followed(
    url: str, monkeypatch: pytest.MonkeyPatch, *, wait: bool = True
) -> tuple[list[str], list[str]]:
    """Follow a run with times of less than a second; return its events and what was said."""
    monkeypatch.setattr(event_stream, "GIVE_UP_SECONDS", 1.0)
    monkeypatch.setattr(event_stream, "FIRST_PAUSE_SECONDS", 0.01)
    client = Client(ServerAddress(url, "key"))
    client.http.timeout = httpx2.Timeout(0.2)
    said: list[str] = []
    try:
        events = event_stream.follow(client, "run", wait=wait, tell=said.append)
        return [event.type for event in events], said
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


def test_a_comment_is_no_contact_where_nothing_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing events follow it at once: connections that are cut before them are no progress."""
    with played_streams(*[COMMENT] * 7, END) as url:
        with pytest.raises(Unreachable, match=r"No events from the server for 1 s"):
            _followed(url, monkeypatch, wait=False)


def test_an_error_is_final_where_nothing_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported at once, such as too many streams; only a connection that broke is resumed."""
    with played_streams(429, END) as url, pytest.raises(Refused):
        _followed(url, monkeypatch, wait=False)
    with played_streams(EVENT, 429, END) as url:
        events, _ = _followed(url, monkeypatch, wait=False)

    assert ["message.delta", "run.completed"] == events
