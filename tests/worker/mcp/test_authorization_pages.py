"""The addresses of the pages that people visit."""

import asyncio
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.worker.mcp.oauth_servers import CALLBACK, ISSUER, RESOURCE, Internet, Process


@pytest.mark.parametrize(
    ("query", "retained"),
    [
        ("prompt=select_account", {"prompt": "select_account"}),  # as Salesforce has it
        ("resource=https://other.example.com&p=&n=a%20b", {"p": "", "n": "a b"}),
        ("", {}),
    ],
)
def test_a_page_has_the_query_of_the_authorization_endpoint(
    query: str, retained: dict[str, str]
) -> None:
    """The SDK's parameters are added to it; one that has the same name is replaced."""
    internet = Internet()
    internet.authorize = f"authorize?{query}"

    made = asyncio.run(Process(internet, {}).asked())

    endpoint, _, page = made["url"].partition("?")
    assert f"{ISSUER}/authorize" == endpoint
    asked = parse_qs(page, keep_blank_values=True)
    names = {"response_type", "client_id", "code_challenge", "code_challenge_method", "scope"}
    assert names <= asked.keys()
    expected = {"state": made["state"], "redirect_uri": CALLBACK, "resource": f"{RESOURCE}/mcp"}
    assert {**expected, **retained}.items() <= {n: v[0] for n, v in asked.items()}.items()
    assert all(1 == len(values) for values in asked.values())
    assert "?" not in urlsplit(made["url"]).query
