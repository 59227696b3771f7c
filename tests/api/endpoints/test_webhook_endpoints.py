"""`/v1/webhook-endpoints`: what endpoints are made of, who may manage them, and what is never
shown.
"""

import base64
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.config import Settings
from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.delivery.endpoints import EVENT_TYPES
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of, error_of

pytestmark = pytest.mark.own_database

PATH = "/v1/webhook-endpoints"
URL = "https://shop.example/hook"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("10.1.0.0/16",))


def make(user: User, **fields: Any) -> dict[str, Any]:
    response = user.post(PATH, {"url": URL, **fields})
    assert 201 == response.status_code, response.text
    return dict(response.json or {})


def test_an_endpoint_is_made_shown_changed_and_deleted(alice: User) -> None:
    """All of an endpoint is shown; its secret is shown once."""
    response = alice.post(PATH, {"url": URL})

    made = dict(response.json or {})
    secret = made.pop("signing_secret")
    one = f"{PATH}/{made['id']}"
    assert one == response.headers["Location"]
    assert secret.startswith("whsec_") and 32 == len(base64.b64decode(secret[6:]))
    expected = {
        "id": made["id"],
        "org_id": str(alice.org_id),
        "url": URL,
        "description": "",
        "event_types": list(EVENT_TYPES),
        "enabled": True,
        "disabled_reason": None,
        "failing_since": None,
        "former_secret_until": None,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    assert expected == made
    assert [made] == alice.get(PATH).json and made == alice.get(one).json
    changes = {
        "url": f"{URL}2",
        "description": "New.",
        "event_types": ["run.failed"],
        "enabled": False,
    }
    changed = alice.patch(one, changes).json
    assert changed is not None
    assert {**made, **changes, "updated_at": changed["updated_at"]} == changed
    assert 204 == alice.delete(one).status_code
    for gone in (alice.get(one), alice.delete(one), alice.get(f"{one}/deliveries")):
        assert (404, "webhook_endpoints.not_found") == error_of(gone)
    assert [] == alice.get(PATH).json


def test_secrets_are_stored_encrypted_and_shown_once(connections: Connections, alice: User) -> None:
    """The signing secret is in no table and in no replayed response; workers get it."""
    body, key = {"url": URL}, {"Idempotency-Key": "k"}
    made = alice.post(PATH, body, headers=key).json
    assert made is not None
    alice.post(f"{PATH}/{made['id']}:test")

    with connections.reading() as sql:
        tables = sql.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        dump = "".join(
            row
            for table in list(tables)
            for row in sql.scalars(text(f"SELECT t::text FROM {table} t"))
        )

    assert made["id"] in dump
    assert made["signing_secret"][6:] not in dump
    assert [made["signing_secret"]] == _valid(connections, made["id"])
    replayed = alice.post(PATH, body, headers=key).json
    del made["signing_secret"]
    assert made == replayed


def test_a_secret_is_replaced(connections: Connections, alice: User) -> None:
    """The response has the new secret; the former one is valid, too, as long as was asked for."""
    made = make(alice)
    rotate = f"{PATH}/{made['id']}:rotate-secret"

    rotated = alice.post(rotate, {"overlap_seconds": 60}).json

    assert rotated is not None and rotated["former_secret_until"] is not None
    alice.post(f"{PATH}/{made['id']}:test")
    assert [rotated["signing_secret"], made["signing_secret"]] == _valid(connections, made["id"])
    at_once = alice.post(rotate, {"overlap_seconds": 0}).json
    assert at_once is not None
    alice.post(f"{PATH}/{made['id']}:test")
    assert [at_once["signing_secret"]] == _valid(connections, made["id"])


def test_a_new_secret_is_valid_after_the_org_s_key_was_erased(
    connections: Connections, alice: User
) -> None:
    """The former secret, which nobody can decrypt, is left out while it would still be valid."""
    made = make(alice)
    with connections.transaction() as tx:
        org_keys.erase(tx, alice.org_id)

    rotated = alice.post(f"{PATH}/{made['id']}:rotate-secret", {"overlap_seconds": 60}).json

    assert rotated is not None
    alice.post(f"{PATH}/{made['id']}:test")
    assert [rotated["signing_secret"]] == _valid(connections, made["id"])


def _valid(connections: Connections, endpoint_id: str) -> list[str]:
    """Return the valid secrets of the endpoint's only delivery that is due."""
    with connections.statement() as tx:
        due = deliveries.claim(tx, capacity=999, most_per_endpoint=9, busy={})
    [row] = [row for row in due if str(row.endpoint_id) == endpoint_id]
    return endpoints.secrets_of(connections.settings, row)


def test_a_test_is_queued_and_listed(alice: User) -> None:
    """The delivery of a test is shown with its data, and in the list without."""
    made = make(alice, event_types=["run.failed"])
    one = f"{PATH}/{made['id']}"

    response = alice.post(f"{one}:test")

    assert 201 == response.status_code
    queued = dict(response.json or {})
    assert ("webhook.test", "pending", 0) == (queued["type"], queued["state"], queued["attempts"])
    assert queued == alice.get(response.headers["Location"]).json
    assert {"endpoint_id": made["id"]} == queued.pop("data")
    assert [queued] == alice.get(f"{one}/deliveries").json
    assert [queued] == alice.get(f"{one}/deliveries?state=pending").json
    assert [] == alice.get(f"{one}/deliveries?state=dead").json
    assert {"replayed": 0} == alice.post(f"{one}:replay").json
    assert {"replayed": 1} == alice.post(f"{one}:replay", {"delivery_ids": [queued["id"]]}).json
    unknown = alice.post(f"{one}:replay", {"delivery_ids": [str(new_id())]})
    missing = alice.get(f"{one}/deliveries/{new_id()}")
    for refused in (unknown, missing):
        assert (404, "webhook_endpoints.delivery_not_found") == error_of(refused)
    alice.patch(one, {"enabled": False})
    assert (409, "webhook_endpoints.disabled") == error_of(alice.post(f"{one}:test"))


def test_lists_are_paged(alice: User) -> None:
    """Endpoints and deliveries are listed newest first, in pages."""
    ids = [make(alice)["id"] for _ in range(3)]
    tests = [(alice.post(f"{PATH}/{ids[0]}:test").json or {})["id"] for _ in range(3)]

    for path, expected in ((PATH, ids), (f"{PATH}/{ids[0]}/deliveries", tests)):
        first = alice.get(f"{path}?limit=2")
        second = alice.get(f"{path}?limit=2&before={first.headers['X-Next-Cursor']}")
        assert expected[::-1] == [row["id"] for row in [*first.json, *second.json]]


def named(refused: Any) -> set[str]:
    """Return the fields that a response refuses, of lists without the place of the item."""
    return {name.partition(".")[0] for name in details_of(refused)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://shop.example/"),
        ("url", "http://127.0.0.1/"),
        ("url", "http://169.254.169.254/latest"),
        ("url", "http://user:password@shop.example/"),
        ("url", "https://shop.example/#here"),
        ("url", "https://shop.example/" + "x" * 2_000),
        ("url", ""),
        ("url", None),
        ("url", 7),
        ("description", "ä" * 513),
        ("description", None),
        ("event_types", []),
        ("event_types", ["run.started"]),
        ("event_types", ["run.failed", "run.failed"]),
        ("event_types", "run.failed"),
        ("event_types", [None]),
        ("secret", "whsec_chosen"),
    ],
)
def test_bad_fields_are_refused(alice: User, field: str, value: Any) -> None:
    """The response names the field, of a new endpoint and of a changed one."""
    one = f"{PATH}/{make(alice)['id']}"

    for response in (
        alice.post(PATH, {"url": URL, field: value}),
        alice.patch(one, {field: value}),
    ):
        assert (422, "validation.error") == error_of(response)
        assert {field} == named(response)


@pytest.mark.parametrize(
    ("action", "body"),
    [
        (":replay", {"delivery_ids": []}),
        (":replay", {"delivery_ids": ["x"]}),
        (":replay", {"delivery_ids": [str(new_id())] * 101}),
        (":replay", {"state": "dead"}),
        (":test", {"type": "run.failed"}),
        (":rotate-secret", {"overlap_seconds": 604_801}),
        (":rotate-secret", {"overlap_seconds": "60"}),
    ],
)
def test_bad_actions_are_refused(alice: User, action: str, body: dict[str, Any]) -> None:
    """The response names the field."""
    response = alice.post(f"{PATH}/{make(alice)['id']}{action}", body)

    assert (422, "validation.error") == error_of(response)
    assert set(body) == named(response)


def test_bad_filters_are_refused(alice: User) -> None:
    """A state that deliveries do not have is refused."""
    response = alice.get(f"{PATH}/{make(alice)['id']}/deliveries?state=lost")
    assert (422, "validation.error") == error_of(response)


def test_an_org_has_a_limited_number_of_endpoints(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the limit are refused; what is allowed by the operator is not."""
    monkeypatch.setattr(endpoints, "MAX_ENDPOINTS", 1)
    make(alice, url="http://10.1.2.3/")

    assert (422, "validation.error") == error_of(alice.post(PATH, {"url": URL}))


def test_only_admins_of_the_org_manage_endpoints(alice: User, register: Register) -> None:
    """Members and keys without the scope are refused; to another org nothing is there."""
    made = make(alice)
    one = f"{PATH}/{made['id']}"
    delivery = (alice.post(f"{one}:test").json or {})["id"]
    calls = [
        ("GET", one, None),
        ("PATCH", one, {"description": "x"}),
        ("POST", f"{one}:test", None),
        ("POST", f"{one}:replay", {"delivery_ids": [delivery]}),
        ("POST", f"{one}:rotate-secret", None),
        ("GET", f"{one}/deliveries", None),
        ("GET", f"{one}/deliveries/{delivery}", None),
        ("DELETE", one, None),
    ]
    for method, path, body in calls:
        for refused in (register(org_of=alice, role="member"), alice.api_key("data.runs.write")):
            given = {} if body is None else {"json": body}
            assert (403, "auth.forbidden") == error_of(refused.call(method, path, **given))
        stranger = register().call(method, path, **({} if body is None else {"json": body}))
        assert (404, "webhook_endpoints.not_found") == error_of(stranger)
    assert 403 == register(org_of=alice, role="member").post(PATH, {"url": URL}).status_code
    assert [made["id"]] == [row["id"] for row in alice.get(PATH).json or []]
    assert UUID(delivery)


def test_without_a_key_no_secret_is_stored(connections: Connections, alice: User) -> None:
    """A server without `ARKLOOP_ENCRYPTION_KEY` refuses to make one."""
    connections.settings, kept = (
        replace(connections.settings, encryption_key=None),
        (connections.settings),
    )
    try:
        response = alice.post(PATH, {"url": URL})
    finally:
        connections.settings = kept

    assert (422, "validation.error") == error_of(response)
    assert ["ARKLOOP_ENCRYPTION_KEY is not set on this server"] == (
        details_of(response)["signing_secret"]
    )
