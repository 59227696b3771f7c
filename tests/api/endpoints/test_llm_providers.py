"""`/v1/llm-providers` and their models."""

import base64
import logging

import pytest
from sqlalchemy import Text, cast, select
from sqlalchemy.sql import table as any_table

from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import metadata
from tests.api.endpoints.made_providers import PATH, made
from tests.clients import Register, User, details_of, error_of

TABLES = metadata.tables


assert {"llm_providers", "budgets"} <= TABLES.keys()


def test_a_provider_is_made_with_its_models(alice: User) -> None:
    """Every field of the contract; the list and the object itself show the same."""
    response = alice.post(
        PATH,
        {
            "name": "ours",
            "kind": "openai",
            "base_url": "https://llm.example.com/v1",
            "api_key": "sk-0123456789abcd",
            "models": [
                {
                    "model": "small",
                    "priority": 1,
                    "is_default": True,
                    "prices": {"input": 0.15, "output": 0.6, "cache_read": 0.00000001},
                    "max_output_tokens": 1000,
                    "model_settings": {"temperature": 0.5, "stop": "END"},
                    "context_tokens": 32_000,
                    "first_byte_seconds": 900,
                    "idle_seconds": 30,
                    "accepts": ["image"],
                    "requests_per_minute": 60,
                    "tokens_per_minute": 100_000,
                },
                {"model": "large", "api": "responses"},
            ],
        },
    )
    provider = response.json
    assert provider is not None
    small, large = provider["models"]

    moments = {"created_at": provider["created_at"], "updated_at": provider["created_at"]}
    of_models = {"org_id": str(alice.org_id), "provider_id": provider["id"], **moments}
    assert 201 == response.status_code
    assert {
        "id": provider["id"],
        "org_id": str(alice.org_id),
        "name": "ours",
        "kind": "openai",
        "base_url": "https://llm.example.com/v1",
        "platform": None,
        "region": None,
        "project_id": None,
        "api_version": None,
        "has_api_key": True,
        "api_key_last_four": "abcd",
        "models": [small, large],
        **moments,
    } == provider
    assert {
        "id": small["id"],
        "route_id": small["id"],
        "model": "small",
        "api": "chat",
        "priority": 1,
        "is_default": True,
        "prices": {"input": 0.15, "output": 0.6, "cache_read": 1e-08, "cache_write": 0.15},
        "prices_source": "given",
        "max_output_tokens": 1000,
        "model_settings": {"temperature": 0.5, "stop": ["END"]},
        "context_tokens": 32_000,
        "first_byte_seconds": 900,
        "idle_seconds": 30,
        "accepts": ["image"],
        "requests_per_minute": 60,
        "tokens_per_minute": 100_000,
        **of_models,
    } == small
    assert {
        "id": large["id"],
        "route_id": large["id"],
        "model": "large",
        "api": "responses",
        "priority": None,
        "is_default": False,
        "prices": None,
        "prices_source": "unknown",
        "max_output_tokens": None,
        "model_settings": {},
        "context_tokens": None,
        "first_byte_seconds": 600,
        "idle_seconds": 120,
        "accepts": ["image", "file"],
        "requests_per_minute": None,
        "tokens_per_minute": None,
        **of_models,
    } == large
    path = f"{PATH}/{provider['id']}"
    assert path == response.headers["Location"]
    assert provider == alice.get(path).json
    assert [provider] == alice.get(PATH).json
    assert [large, small] == alice.get(f"{path}/models").json
    assert small == alice.get(f"{path}/models/{small['id']}").json


def test_a_model_shows_the_api_it_is_called_by(alice: User) -> None:
    """A model of OpenAI is called by `responses`, unless the model sets another API."""
    models = [{"model": "m"}]
    provider = alice.post(PATH, {"name": "a", "kind": "openai", "models": models}).json
    other = alice.post(PATH, {"name": "b", "kind": "anthropic", "models": models}).json
    assert provider and other
    path, other_path = (
        f"{PATH}/{of['id']}/models/{of['models'][0]['id']}" for of in (provider, other)
    )

    shown = [alice.get(path).json] + [alice.patch(path, {"api": a}).json for a in ("chat", None)]

    assert ["responses", "chat", "responses"] == [model and model["api"] for model in shown]
    assert None is other["models"][0]["api"]
    assert ["api"] == list(details_of(alice.patch(other_path, {"api": "chat"})))


def test_a_provider_keeps_its_kind_while_a_model_has_an_api(alice: User) -> None:
    """The field has no meaning for other vendors."""
    provider = alice.post(
        PATH, {"name": "a", "kind": "openai", "models": [{"model": "m", "api": "chat"}]}
    ).json
    assert provider
    path = f"{PATH}/{provider['id']}"

    refused = alice.patch(path, {"kind": "anthropic"})
    alice.patch(f"{path}/models/{provider['models'][0]['id']}", {"api": None})

    assert ["kind"] == list(details_of(refused))
    assert 200 == alice.patch(path, {"kind": "anthropic"}).status_code


def test_known_models_have_the_librarys_prices(alice: User) -> None:
    """A model has the library's prices until others are set, and again after null."""
    provider = made(alice)
    path = f"{PATH}/{provider['id']}/models"
    model = made(alice, path, model="gpt-4o-mini")
    library = model["prices"]

    assert ("library", 128_000) == (model["prices_source"], model["context_tokens"])
    assert library["input"] > 0
    own = {"prices": {"input": 1, "output": 2}}
    changed = alice.patch(f"{path}/{model['id']}", own).json
    assert changed is not None
    assert ("given", 1.0) == (changed["prices_source"], changed["prices"]["cache_read"])
    again = alice.patch(f"{path}/{model['id']}", {"prices": None}).json
    assert again is not None
    assert ("library", library) == (again["prices_source"], again["prices"])


def test_a_model_is_a_route_of_the_org(alice: User, register: Register) -> None:
    """Runs take it by its id, and by default; another org's runs do not."""
    provider = made(alice)
    model = made(alice, f"{PATH}/{provider['id']}/models", is_default=True)
    stranger = register()

    by_id, by_default = alice.thread(), alice.thread()
    body = {"route_id": model["route_id"]}
    for thread, wanted in ((by_id, body), (by_default, {})):
        run_id = alice.post(f"/v1/threads/{thread}/runs", wanted).json["run_id"]
        run = alice.get(f"/v1/runs/{run_id}").json
        assert run is not None
        assert (model["id"], model["model"]) == (run["route_id"], run["model"])
    answer = stranger.post(f"/v1/threads/{stranger.thread()}/runs", body)
    assert (422, "routes.not_found") == error_of(answer)


def test_what_changes_counts_for_the_next_run(alice: User) -> None:
    """A default that moves, and a model that is deleted."""
    path = f"{PATH}/{made(alice)['id']}/models"
    first, second = made(alice, path, is_default=True), made(alice, path)

    def route_of_a_run() -> str:
        run = alice.post(f"/v1/threads/{alice.thread()}/runs")
        assert run.json is not None
        return str(alice.get(f"/v1/runs/{run.json['run_id']}").json["route_id"])

    assert first["id"] == route_of_a_run()
    assert 200 == alice.patch(f"{path}/{second['id']}", {"is_default": True}).status_code
    assert second["id"] == route_of_a_run()
    assert False is alice.get(f"{path}/{first['id']}").json["is_default"]
    assert 204 == alice.delete(f"{path}/{second['id']}").status_code
    assert "scripted" == route_of_a_run()
    answer = alice.post(f"/v1/threads/{alice.thread()}/runs", {"route_id": second["id"]})
    assert (422, "routes.not_found") == error_of(answer)


def test_a_change_leaves_the_rest(alice: User) -> None:
    """What is not in the body stays; a null is set."""
    provider = made(alice, api_key="sk-0123456789abcd", base_url="https://llm.example.com/v1")
    path = f"{PATH}/{provider['id']}"

    renamed = alice.patch(path, {"name": "renamed"}).json
    assert renamed is not None
    assert {**provider, "name": "renamed", "updated_at": renamed["updated_at"]} == renamed
    assert renamed["updated_at"] >= provider["updated_at"]
    keyless = alice.patch(path, {"api_key": None}).json
    assert keyless is not None
    assert (False, None) == (keyless["has_api_key"], keyless["api_key_last_four"])
    rekeyed = alice.patch(path, {"api_key": "sk-9876543210wxyz"}).json
    assert rekeyed is not None
    assert (True, "wxyz") == (rekeyed["has_api_key"], rekeyed["api_key_last_four"])

    settings = {"seed": 1}
    model = made(alice, f"{path}/models", priority=1, max_output_tokens=5, model_settings=settings)
    changed = alice.patch(f"{path}/models/{model['id']}", {"priority": None}).json
    assert changed is not None
    assert (None, 5) == (changed["priority"], changed["max_output_tokens"])
    assert settings == changed["model_settings"]
    cleared = alice.patch(f"{path}/models/{model['id']}", {"model_settings": None}).json
    assert cleared is not None
    assert {} == cleared["model_settings"]


def test_a_stored_key_is_not_sent_elsewhere(alice: User) -> None:
    """A change of the address requires the key again."""
    provider = made(alice, api_key="sk-0123456789abcd")
    path = f"{PATH}/{provider['id']}"
    elsewhere = {"base_url": "https://llm.example.com/v1"}

    assert ["api_key"] == list(details_of(alice.patch(path, elsewhere)))
    assert 200 == alice.patch(path, {**elsewhere, "api_key": "sk-of-the-other"}).status_code


def test_a_deleted_provider_is_gone_with_its_models(alice: User) -> None:
    """Deleting a provider responds 204 once, then 404, and deletes its models."""
    provider = made(alice, models=[{"model": "m"}])
    path = f"{PATH}/{provider['id']}"

    assert 204 == alice.delete(path).status_code
    for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
        answer = alice.call(method, path, json=body)
        assert (404, "llm_providers.not_found") == error_of(answer)
    routes = [route["id"] for route in alice.get("/v1/routes").json or []]
    assert provider["models"][0]["id"] not in routes


def test_the_same_request_again_makes_nothing_twice(alice: User) -> None:
    """A repeated request with its Idempotency-Key gets the same response."""
    body = {"name": "once", "kind": "openai", "api_key": "sk-0123456789abcd"}
    first, second = (alice.post(PATH, body, headers={"Idempotency-Key": "once"}) for _ in range(2))

    assert first.json == second.json
    assert "true" == second.headers["Idempotency-Replayed"]
    assert first.headers["Location"] == second.headers["Location"]
    assert 1 == len(alice.get(PATH).json or [])


def test_the_list_goes_on_page_by_page(alice: User) -> None:
    """The newest come first, none twice, each with its models."""
    ids = [made(alice, models=[{"model": "m"}])["id"] for _ in range(5)]
    walked: list[str] = []
    path: str | None = f"{PATH}?limit=2"
    while path:
        answer = alice.get(path)
        for provider in answer.json or []:
            walked.append(provider["id"])
            assert 1 == len(provider["models"])
        cursor = answer.headers.get("X-Next-Cursor")
        path = cursor and f"{PATH}?limit=2&before={cursor}"

    assert ids[::-1] == walked


def test_a_stored_key_is_found_nowhere(
    alice: User, connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    """A stored key is in no column of any table, in no response and in no log, whether as text, hex
    or base64.
    """
    canary, second = (f"sk-canary-{new_id().hex}" for _ in range(2))
    answers: list[str] = []
    with caplog.at_level(logging.DEBUG):
        body = {"name": "canary", "kind": "openai", "api_key": canary}
        for _ in range(2):
            answers.append(alice.post(PATH, body, headers={"Idempotency-Key": "canary"}).text)
        provider = (alice.get(PATH).json or [])[0]
        path = f"{PATH}/{provider['id']}"
        answers.append(alice.patch(path, {"api_key": second}).text)
        answers.append(alice.post(PATH, body).text)  # its name is taken
        answers.append(alice.post(PATH, {**body, "api_key": f"{canary} é"}).text)
        answers.append(alice.patch(path, {"api_key": canary, "name": ""}).text)
        model = made(alice, f"{path}/models", is_default=True)
        alice.post(f"/v1/threads/{alice.thread()}/runs", {"route_id": model["id"]})
        for address in (PATH, path, f"{path}/models", "/v1/routes"):
            answers.append(alice.get(address).text)

    rows: list[str] = []
    with connections.reading() as sql:
        for name in TABLES:
            whole_row = any_table(name).alias("t")
            rows += sql.scalars(select(cast(whole_row.table_valued(), Text)))
    assert any(provider["id"] in row and "\\x02" in row for row in rows), "the dump has no key"
    for secret in (canary, second):
        for form in (
            secret,
            secret.encode().hex(),
            base64.b64encode(secret.encode()).decode().rstrip("="),
        ):
            assert not [text for text in (*answers, *rows, caplog.text) if form[:-4] in text]
