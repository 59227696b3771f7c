"""`/v1/routes`."""

from tests.clients import Register, User, error_of


def test_the_servers_routes_are_listed(alice: User) -> None:
    """Routes are listed with every field; the tests' server has the scripted one alone."""
    assert [
        {
            "id": "scripted",
            "source": "server",
            "provider": "scripted",
            "model": "scripted-1",
            "is_default": True,
            "priority": None,
            "prices": {"input": 1.0, "output": 2.0, "cache_read": 0.1, "cache_write": 1.0},
            "max_output_tokens": None,
            "context_tokens": None,
            "requests_per_minute": None,
            "tokens_per_minute": None,
        }
    ] == alice.get("/v1/routes").json


def test_the_orgs_models_follow(alice: User, register: Register) -> None:
    """Members see them without keys and addresses; other orgs do not."""
    body = {
        "name": "ours",
        "kind": "anthropic",
        "base_url": "https://llm.example.com",
        "api_key": "sk-0123456789abcd",
        "models": [{"model": "m", "priority": 2, "is_default": True, "requests_per_minute": 5}],
    }
    provider = alice.post("/v1/llm-providers", body).json or {}
    member = register(org_of=alice, role="member")

    answer = member.get("/v1/routes")

    server, own = answer.json or []
    assert ("scripted", False) == (server["id"], server["is_default"])
    assert {
        "id": provider["models"][0]["route_id"],
        "source": "org",
        "provider": "anthropic",
        "model": "m",
        "is_default": True,
        "priority": 2,
        "prices": None,
        "max_output_tokens": None,
        "context_tokens": None,
        "requests_per_minute": 5,
        "tokens_per_minute": None,
    } == own
    assert "example.com" not in answer.text
    assert "abcd" not in answer.text
    assert ["scripted"] == [route["id"] for route in register().get("/v1/routes").json or []]


def test_routes_are_for_those_who_read_runs(alice: User) -> None:
    """A key without the scope gets 403."""
    assert 200 == alice.api_key("data.runs.read").get("/v1/routes").status_code
    answer = alice.api_key("data.runs.write").get("/v1/routes")
    assert (403, "auth.forbidden") == error_of(answer)
