"""Requests with more in their messages than a body may have."""

import pytest

from arkloop.api.protocols import sent_files
from tests.clients import User


@pytest.mark.parametrize(
    ("path", "also"),
    [("/v1/ui/chat", "Send only the last message. "), ("/v1/agui", ""), ("/v1/responses", "")],
)
def test_a_body_that_is_too_large_is_refused_with_a_remedy(
    alice: User, path: str, also: str
) -> None:
    """Clients send files of the whole conversation again with each message."""
    data = b" " * (sent_files.MAX_BODY_BYTES + 1)

    refused = alice.post(path, data=data, content_type="application/json")

    assert 413 == refused.status_code
    why = "The body is larger than 8 MiB. " + also + sent_files.REMEDY
    assert why in refused.text
