"""The parameters of requests for a stream of the AI SDK."""

import pytest

from arkloop.shared.ids import new_id
from tests.clients import User, details_of


@pytest.mark.parametrize("index", ["1.0", "1e5", "1\n", "-", "+1", "1" * 10])
def test_an_index_that_is_no_whole_number_is_refused(alice: User, index: str) -> None:
    """422 that names the parameter."""
    path = f"/v1/ui/chat/{new_id()}/stream"

    refused = alice.get(path, query_string={"startIndex": index})

    assert ["startIndex"] == list(details_of(refused))
