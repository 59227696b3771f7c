"""`/v1/budget`, and what it means for new runs."""

from decimal import Decimal
from uuid import UUID

import pytest

from arkloop.shared.billing import budget_limits, spending
from arkloop.shared.billing.spending import ORG
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of, error_of
from tests.query_plans import noted
from tests.shared.billing.money import Money
from tests.stored_runs import StoredRuns

NONE = {"max_cost_usd": None, "max_cost_usd_per_month": None, "spent_usd": 0, "held_usd": 0}


def budget(user: User, **limits: float | None) -> dict[str, object]:
    response = user.call("PUT", "/v1/budget", json=limits)
    assert 200 == response.status_code, response.text
    return without_month(response.json)


def without_month(body: object) -> dict[str, object]:
    assert isinstance(body, dict)
    assert len("2026-11") == len(body["month"])
    return {name: value for name, value in body.items() if name != "month"}


def test_an_org_has_no_budget_at_first(alice: User) -> None:
    """A new org's limits are null, and it has spent nothing."""
    assert NONE == without_month(alice.get("/v1/budget").json)


def test_a_budget_is_set_changed_and_removed(alice: User) -> None:
    """A limit that is not in the body is gone."""
    both = {"max_cost_usd": 0.5, "max_cost_usd_per_month": 99.00000001}

    assert {**NONE, **both} == budget(alice, **both)
    assert {**NONE, **both} == without_month(alice.get("/v1/budget").json)
    assert {**NONE, "max_cost_usd": 1} == budget(alice, max_cost_usd=1)
    assert NONE == budget(alice, max_cost_usd=None)


def test_the_budget_shows_what_is_gone(alice: User, connections: Connections) -> None:
    """The budget shows what has ended this month, with and without a limit."""
    stored = StoredRuns.of(connections, alice)
    stored.finish(stored.claimed())

    assert 0.5 == without_month(alice.get("/v1/budget").json)["spent_usd"]
    assert 0.5 == budget(alice, max_cost_usd_per_month=1)["spent_usd"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_cost_usd": -1}, "max_cost_usd"),
        ({"max_cost_usd": "1"}, "max_cost_usd"),
        ({"max_cost_usd": True}, "max_cost_usd"),
        ({"max_cost_usd_per_month": 0.000000001}, "max_cost_usd_per_month"),
        ({"max_cost_usd_per_month": 1e30}, "max_cost_usd_per_month"),
        ({"spent_usd": 1}, "spent_usd"),
    ],
)
def test_a_bad_budget_is_refused(alice: User, body: dict[str, object], field: str) -> None:
    """A budget with a bad field gets 422 with the field's name."""
    assert [field] == list(details_of(alice.call("PUT", "/v1/budget", json=body)))


def test_only_admins_see_and_set_it(alice: User, register: Register) -> None:
    """Members, and keys without the scope, get 403."""
    member = register(org_of=alice, role="member")
    key = alice.api_key("data.runs.write")

    refused = [
        call
        for user in (member, key)
        for call in (user.get("/v1/budget"), user.call("PUT", "/v1/budget", json={}))
    ]

    assert {(403, "auth.forbidden")} == {error_of(answer) for answer in refused}


def test_where_nothing_is_left_a_run_is_refused(alice: User) -> None:
    """429 with what there is; a retry too; another org is not affected."""
    budget(alice, max_cost_usd_per_month=0)
    thread_id = alice.thread()
    alice.say(thread_id)

    created = alice.post(f"/v1/threads/{thread_id}/runs")
    retried = alice.post(f"/v1/threads/{thread_id}:retry")

    assert [(429, "budget.exhausted")] * 2 == [error_of(answer) for answer in (created, retried)]
    assert {"scope": "org", "limit_usd": 0, "spent_usd": 0, "held_usd": 0} == (created.json or {})[
        "details"
    ]
    assert "Retry-After" not in created.headers
    budget(alice, max_cost_usd_per_month=1)
    assert 201 == alice.post(f"/v1/threads/{thread_id}/runs").status_code


def test_an_answer_is_replayed_before_the_budget_is_looked_at(alice: User) -> None:
    """The run was created once; that it cannot be created again is no reason to say so."""
    thread_id = alice.thread()
    alice.say(thread_id)
    headers = {"Idempotency-Key": "once"}
    first = alice.post(f"/v1/threads/{thread_id}/runs", headers=headers)
    alice.post(f"/v1/runs/{(first.json or {})['run_id']}:cancel")
    budget(alice, max_cost_usd_per_month=0)

    again = alice.post(f"/v1/threads/{thread_id}/runs", headers=headers)
    another = alice.post(f"/v1/threads/{thread_id}/runs", headers={"Idempotency-Key": "twice"})

    assert (201, first.json) == (again.status_code, again.json)
    assert (429, "budget.exhausted") == error_of(another)


def test_a_budget_of_another_process_counts_too(alice: User, connections: Connections) -> None:
    """After a moment; meanwhile the worker would refuse the run's first call."""
    with connections.transaction() as tx:
        budget_limits.set_(
            tx, alice.org_id, ORG, max_cost_usd=None, max_cost_usd_per_month=Decimal(0)
        )
    thread_id = alice.thread()
    alice.say(thread_id)

    assert (429, "budget.exhausted") == error_of(alice.post(f"/v1/threads/{thread_id}/runs"))


# ---- of API keys ---------------------------------------------------------------------


def key_of(user: User, **fields: object) -> dict[str, object]:
    response = user.post("/v1/api-keys", {"name": "test", **fields})
    assert 201 == response.status_code, response.text
    return dict(response.json or {})


def limits_of(row: object) -> tuple[object, object]:
    assert isinstance(row, dict)
    return row["max_cost_usd"], row["max_cost_usd_per_month"]


def test_a_key_has_its_own_limits(alice: User) -> None:
    """A key has limits from its creation on; the list shows them, and a PATCH keeps those it does
    not name.
    """
    key = key_of(alice, max_cost_usd=0.1, max_cost_usd_per_month=5)
    path = f"/v1/api-keys/{key['id']}"

    assert (0.1, 5) == limits_of(key)
    assert (0.1, 7) == limits_of(alice.patch(path, {"max_cost_usd_per_month": 7}).json)
    assert (None, 7) == limits_of(alice.patch(path, {"max_cost_usd": None}).json)
    assert [(None, 7)] == [limits_of(row) for row in alice.get("/v1/api-keys").json or []]
    gone = alice.patch(path, {"max_cost_usd_per_month": None})
    assert (None, None) == limits_of(gone.json)


def test_the_runs_of_a_key_are_refused_alone(alice: User) -> None:
    """A key's exhausted budget refuses its runs, while its user may use an access token."""
    key = key_of(alice, max_cost_usd_per_month=0)
    by_key = alice.with_token(str(key["key"]))
    threads = [alice.thread() for _ in range(2)]
    for thread_id in threads:
        alice.say(thread_id)

    refused = by_key.post(f"/v1/threads/{threads[0]}/runs")

    assert (429, "budget.exhausted") == error_of(refused)
    assert f"api_key:{key['id']}" == (refused.json or {})["details"]["scope"]
    assert 201 == alice.post(f"/v1/threads/{threads[1]}/runs").status_code


def test_a_run_knows_the_key_that_created_it(alice: User, connections: Connections) -> None:
    """A run's key counts for budget and usage; a run by access token has none."""
    key = key_of(alice)
    stored = StoredRuns.of(connections, alice)

    made = []
    for user in (alice, alice.with_token(str(key["key"]))):
        thread_id = user.thread()
        user.say(thread_id)
        run = user.post(f"/v1/threads/{thread_id}/runs").json or {}
        made.append(stored.row(UUID(run["run_id"]))["api_key_id"])

    assert [None, UUID(str(key["id"]))] == made


def test_only_admins_limit_keys(alice: User, register: Register) -> None:
    """Members cannot change the limits of their own keys, which an admin may have set."""
    member = register(org_of=alice, role="member")
    own = key_of(member)
    path = f"/v1/api-keys/{own['id']}"

    refused = [
        member.post("/v1/api-keys", {"name": "a", "max_cost_usd": 1}),
        member.patch(path, {"max_cost_usd": None}),
    ]
    unseen = [
        register().patch(path, {"max_cost_usd": 1}),
        alice.patch(f"/v1/api-keys/{new_id()}", {"max_cost_usd": 1}),
    ]

    assert {(403, "auth.forbidden")} == {error_of(answer) for answer in refused}
    assert {(404, "api_keys.not_found")} == {error_of(answer) for answer in unseen}
    assert 200 == alice.patch(path, {"max_cost_usd": 1}).status_code
    assert ["name"] == list(details_of(alice.patch(path, {"name": "b"})))


def end_user_budget(user: User, **body: object) -> dict[str, object]:
    response = user.call("PUT", "/v1/budget/end-users", json=body)
    assert 200 == response.status_code, response.text
    return dict(response.json or {})


def test_each_end_user_has_the_limits_of_all_or_its_own(alice: User) -> None:
    """A limit of one end user replaces that of all; null takes it away again."""
    path = "/v1/budget/end-users"
    limits = {"max_cost_usd": None, "max_cost_usd_per_month": None}

    def of(end_user_id: str) -> tuple[object, object]:
        body = alice.get(f"{path}?end_user_id={end_user_id}").json or {}
        assert end_user_id == body["end_user_id"]
        return tuple(body[name] for name in limits)  # type: ignore[return-value]  # two of them

    assert limits == alice.get(path).json
    assert {"max_cost_usd": 1, "max_cost_usd_per_month": 10} == end_user_budget(
        alice, max_cost_usd=1, max_cost_usd_per_month=10
    )
    own = end_user_budget(alice, end_user_id="a", max_cost_usd_per_month=0)
    assert (1, 0, 0) == tuple(
        own[n] for n in ("max_cost_usd", "max_cost_usd_per_month", "spent_usd")
    )
    assert {"max_cost_usd": None, "max_cost_usd_per_month": 0} == own["own"]
    assert limits == (alice.get(f"{path}?end_user_id=b").json or {})["own"]
    assert ((1, 0), (1, 10)) == (of("a"), of("b"))
    end_user_budget(alice, end_user_id="a")
    assert (1, 10) == of("a")
    assert limits == end_user_budget(alice)


def test_a_run_of_an_end_user_without_money_is_refused(
    alice: User, connections: Connections
) -> None:
    """429 names its scope, whether the run or its thread has the end user; others go through."""
    stored = StoredRuns.of(connections, alice)
    claim = stored.claimed()
    stored.set(claim.run_id, end_user_id="a")
    stored.finish(claim)
    end_user_budget(alice, max_cost_usd_per_month=0.5)
    inherited = alice.post(f"/v1/threads/{alice.thread(end_user_id='a')}/runs")
    own = alice.post(f"/v1/threads/{alice.thread(end_user_id='b')}/runs", {"end_user_id": "a"})

    assert (429, "budget.exhausted") == error_of(inherited) == error_of(own)
    assert "end_user:a" == (own.json or {})["details"]["scope"]
    for thread in (alice.thread(end_user_id="b"), alice.thread()):
        assert 201 == alice.post(f"/v1/threads/{thread}/runs").status_code


def test_limits_of_very_many_end_users_are_set_in_batches(
    alice: User, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the limit was removed, what ended since is counted for some end users at a time."""
    monkeypatch.setattr(spending, "RECOUNTED_AT_ONCE", 1)
    money = Money(StoredRuns.of(connections, alice))
    for limits in ({"max_cost_usd_per_month": 10}, {}):
        end_user_budget(alice, **limits)
        for name in ("a", "b"):
            money.end_run_of(name, "1")

    with noted(connections) as statements:
        end_user_budget(alice, max_cost_usd_per_month=9)

    counted = [values["scopes"] for sql, values in statements if sql.startswith("UPDATE spending")]
    assert [["end_user:a"], ["end_user:b"]] == counted[:2]
    assert ("2", "2") == tuple(money.month(f"end_user:{name}")[0] for name in ("a", "b"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"end_user_id": ""}, "end_user_id"),
        ({"max_cost_usd": -1}, "max_cost_usd"),
        ({"scope": "org"}, "scope"),
    ],
)
def test_a_bad_budget_of_end_users_is_refused(
    alice: User, body: dict[str, object], field: str
) -> None:
    """422 names the field; members may neither see nor set it."""
    assert [field] == list(details_of(alice.call("PUT", "/v1/budget/end-users", json=body)))


def test_members_have_nothing_to_do_with_budgets_of_end_users(
    alice: User, register: Register
) -> None:
    """A member gets 403."""
    member = register(org_of=alice, role="member")
    answers = (
        member.get("/v1/budget/end-users"),
        member.call("PUT", "/v1/budget/end-users", json={}),
    )
    assert {(403, "auth.forbidden")} == {error_of(answer) for answer in answers}
