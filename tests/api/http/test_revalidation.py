"""Documents that clients keep, and ask for again."""

import pytest
from flask.testing import FlaskClient


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs/start.js", "/console"])
def test_a_document_is_there_whatever_a_client_expects_of_it(
    client: FlaskClient, path: str
) -> None:
    """`If-Match` refuses nobody a document that no request changes; 304 for who has it."""
    first = client.get(path)
    etag = first.headers["ETag"]

    for expected in ("*", etag, f"W/{etag}", '"another"'):
        again = client.get(path, headers={"If-Match": expected})
        assert (200, first.data, etag) == (again.status_code, again.data, again.headers["ETag"])
        kept = client.get(path, headers={"If-Match": expected, "If-None-Match": etag})
        assert (304, b"") == (kept.status_code, kept.data)
