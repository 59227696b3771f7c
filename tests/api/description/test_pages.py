"""`/openapi.json` and `/docs`: served to everybody, from this host alone."""

import re

from flask.testing import FlaskClient

from arkloop.api.description.pages import ASSETS, PAGE
from tests.clients import error_of


def test_the_document_is_public_and_revalidated(client: FlaskClient) -> None:
    """It needs no token; a client that has it gets 304."""
    response = client.get("/openapi.json")

    assert 200 == response.status_code
    assert response.json is not None
    assert "3.1.1" == response.json["openapi"]
    assert "no-cache" == response.headers["Cache-Control"]
    again = client.get("/openapi.json", headers={"If-None-Match": response.headers["ETag"]})
    assert (304, b"") == (again.status_code, again.data)
    assert "ETag" in again.headers


def test_the_page_loads_only_what_this_server_has(client: FlaskClient) -> None:
    """Its policy allows scripts and styles of this host alone, and each file is there."""
    response = client.get("/docs")

    assert 200 == response.status_code
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    files = re.findall(r'(?:src|href)="([^"]+)"', PAGE)
    assert ["data:,", *(f"docs/{name}" for name in ASSETS)] == files
    for name, content_type in ASSETS.items():
        asset = client.get(f"/docs/{name}")
        assert (200, content_type) == (asset.status_code, asset.headers["Content-Type"])


def test_the_page_has_no_other_files(client: FlaskClient) -> None:
    """Nothing else of the package is served."""
    for name in ("index.css", "swagger-ui.js", "..%2f__init__.py"):
        assert (404, "http.not_found") == error_of(client.get(f"/docs/{name}"))
