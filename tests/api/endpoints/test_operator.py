"""`/v1/operator`: who may call it, and what comes of it for orgs."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import func, update

from arkloop.shared.accounts import operators
from arkloop.shared.events.types import RunError
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs, refresh_tokens
from arkloop.shared.storage.tables.threads import threads
from tests.clients import Register, User, details_of, error_of
from tests.stored_runs import StoredRuns, ago

pytestmark = pytest.mark.own_database

READS = ("queues", "workers", "leases", "stuck-runs")


@pytest.fixture
def operator(register: Register, connections: Connections) -> User:
    """A member of an org of their own, who operates the service."""
    user = register()
    with connections.transaction() as tx:
        assert operators.add(tx, user.id)
    return user


def test_only_operators_may(operator: User, alice: User) -> None:
    """An owner is none of the installation, and keys are by their scope alone."""
    everything = operator.api_key()
    narrow = operator.api_key("operator")

    for name in READS:
        path = f"/v1/operator/{name}"
        assert 200 == operator.get(path).status_code
        assert 200 == narrow.get(path).status_code
        assert (403, "auth.forbidden") == error_of(everything.get(path))
        assert (403, "auth.forbidden") == error_of(alice.get(path))
    assert "operator" in operator.get("/v1/me").json["permissions"]
    assert "operator" not in everything.get("/v1/me").json["permissions"]
    refused = alice.post("/v1/api-keys", {"name": "mine", "scopes": ["operator"]})
    assert (403, "auth.forbidden") == error_of(refused)


def test_what_an_operator_may_ends_with_the_row(
    operator: User, connections: Connections, register: Register
) -> None:
    """A login and a key that could do it cannot any more."""
    key = operator.api_key("operator")
    with connections.transaction() as tx:
        assert operators.remove(tx, operator.id)
    operator.client.application.extensions["arkloop.auth"].forget()

    for user in (operator, key):
        assert (403, "auth.forbidden") == error_of(user.get("/v1/operator/workers"))


def test_a_login_by_an_identity_provider_is_no_operator(
    operator: User, connections: Connections
) -> None:
    """The admins of the org say who somebody is there, and could be anybody."""
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql(
            "INSERT INTO identity_providers (id, org_id, issuer, client_id, signing_algorithm,"
            " email_domains, joining_role, assumes_verified_email, session_hours)"
            " VALUES (%(id)s, %(org)s, 'https://login.example', 'c', 'RS256', '{}', 'member',"
            " false, 12)",
            {"id": (provider := new_id()), "org": operator.org_id},
        )
        tx.sql.exec_driver_sql(
            "INSERT INTO identities (id, provider_id, subject, user_id)"
            " VALUES (%(id)s, %(provider)s, 's', %(user)s)",
            {"id": (identity := new_id()), "provider": provider, "user": operator.id},
        )
        tx.sql.execute(
            refresh_tokens.update()
            .where(refresh_tokens.c.user_id == operator.id)
            .values(identity_id=identity)
        )
    operator.client.application.extensions["arkloop.auth"].forget()

    assert (403, "auth.forbidden") == error_of(operator.get("/v1/operator/workers"))
    assert 200 == operator.get("/v1/me").status_code


def test_an_admin_cannot_reset_the_password_of_an_operator(
    operator: User, register: Register, connections: Connections
) -> None:
    """An org could become the operator of all otherwise; a reset from before ends as well."""
    admin = register(org_of=operator, role="owner")
    member = register(org_of=operator, role="member")
    path = f"/v1/orgs/{admin.org_id}/members/{member.id}/password-reset"
    token = admin.post(path).json["token"]
    with connections.transaction() as tx:
        operators.add(tx, member.id)

    assert (403, "auth.forbidden") == error_of(admin.post(path))
    body = {"token": token, "password": "another password"}
    used = member.client.application.test_client().post("/v1/auth/password-reset", json=body)
    assert 400 == used.status_code


def test_queues_workers_and_leases_are_those_of_all_orgs(
    operator: User, stored: StoredRuns, alice: User
) -> None:
    """They name runs and orgs, and none of what people have written."""
    thread_id = UUID(alice.thread(title="a secret plan", is_private=True))
    claim = stored.held(stored.create(thread_id), stored.worker(hostname="box", pid=7))
    queued = stored.create()

    found = {name: operator.get(f"/v1/operator/{name}") for name in READS}

    orgs = {one["org_id"]: one for one in found["queues"].json["orgs"]}
    assert (1, 1) == (
        orgs[str(alice.org_id)]["queued"],
        orgs[str(alice.org_id)]["executing"],
    )
    [lease] = [one for one in found["leases"].json if one["run_id"] == str(claim.run_id)]
    assert ("box", 7, True, "executing") == (
        lease["hostname"],
        lease["pid"],
        lease["is_held"],
        lease["phase"],
    )
    own = operator.get(f"/v1/operator/leases?worker_id={lease['worker_id']}").json
    assert [str(claim.run_id)] == [one["run_id"] for one in own]
    assert lease["worker_id"] in {one["id"] for one in found["workers"].json["items"]}
    assert not any("secret plan" in response.text for response in found.values())
    explained = operator.get(f"/v1/operator/runs/{queued}:explain")
    assert (str(queued), "queued") == (explained.json["run_id"], explained.json["phase"])


@pytest.mark.parametrize("is_deleted", [False, True])
def test_an_operator_reads_nothing_of_what_a_run_is_about(
    operator: User, stored: StoredRuns, alice: User, is_deleted: bool
) -> None:
    """An error that an agent of the org has described is named by its code alone."""
    marker, metadata = "plan 77", {"order": "plan 77"}
    thread_id = alice.thread(title=marker, is_private=True, metadata=metadata, end_user_id=marker)
    alice.say(thread_id, marker)
    about = {"metadata": metadata, "end_user_id": marker}
    failed = stored.held(stored.create(UUID(thread_id), **about))
    error = RunError("agent.failed", f"Nothing is left of {marker}", False)
    stored.finish(failed, RunState.FAILED, error=error)
    held = stored.held(stored.create(UUID(thread_id), **about))
    stuck = stored.create(UUID(alice.thread(title=marker)), queued_at=ago(seconds=3600), **about)
    org_sees = (alice.get(f"/v1/runs/{failed.run_id}:explain").json or {})["sentence"]
    if is_deleted:
        gone = update(threads).where(threads.c.id == UUID(thread_id))
        with stored.connections.transaction() as tx:
            tx.sql.execute(gone.values(deleted_at=func.now()))

    paths = [*READS, *(f"runs/{id_}:explain" for id_ in (failed.run_id, held.run_id, stuck))]
    found = {path: operator.get(f"/v1/operator/{path}") for path in paths}
    for action in ("requeue", "cancel"):
        for id_ in (failed.run_id, held.run_id, stuck):
            path = f"runs/{id_}:{action}"
            found[path] = operator.post(f"/v1/operator/{path}")

    assert {200} == {response.status_code for response in found.values()}
    assert [] == [path for path, response in found.items() if marker in response.text]
    explained = found[f"runs/{failed.run_id}:explain"].json or {}
    assert "agent.failed" == explained["details"]["error_code"]
    assert explained["sentence"].endswith(" with agent.failed. A retry will not help.")
    assert f" with agent.failed: Nothing is left of {marker}. A retry will not help." in org_sees


def test_a_stuck_run_is_queued_again_and_recorded_in_its_org(
    operator: User, stored: StoredRuns, alice: User
) -> None:
    """The org reads in its log that an operator has done it, and which."""
    claim = stored.claimed(seen_at=ago(seconds=3600))
    stuck = operator.get("/v1/operator/stuck-runs").json["items"]
    path = f"/v1/operator/runs/{claim.run_id}:requeue"

    done, again = operator.post(path), operator.post(path)

    assert (str(claim.run_id), "worker_lost") in {(s["run_id"], s["problem"]) for s in stuck}
    assert [("executing", "queued"), ("queued", "queued")] == [
        (one.json["was"], one.json["outcome"]) for one in (done, again)
    ]
    entries = alice.get("/v1/audit-logs?action=run.requeued").json
    assert [{"was": "queued", "outcome": "queued"}, {"was": "executing", "outcome": "queued"}] == [
        entry["details"] for entry in entries
    ]
    for entry in entries:
        assert ("operator", str(operator.id)) == (
            entry["actor"]["type"],
            entry["actor"]["user_id"],
        )
        assert (None, None) == (entry["ip"], entry["user_agent"])
    assert [] == operator.get("/v1/audit-logs?action=run.requeued").json


def test_a_held_run_is_refused_without_an_error(
    operator: User, stored: StoredRuns, alice: User
) -> None:
    """The response says until when its worker has the lease, at least."""
    claim = stored.claimed()

    done = operator.post(f"/v1/operator/runs/{claim.run_id}:requeue").json

    assert ("held", "executing") == (done["outcome"], done["was"])
    assert done["lease_expires_at"] > operator.get("/v1/operator/queues").json["measured_at"]


def test_a_run_of_another_org_is_cancelled_by_an_operator(
    operator: User, alice: User, make_run: Callable[..., UUID]
) -> None:
    """Its thread may be private; a second cancel changes and records nothing."""
    run_id = make_run(alice, alice.thread(is_private=True), RunState.QUEUED)
    path = f"/v1/operator/runs/{run_id}:cancel"

    assert [200, 200] == [operator.post(path).status_code for _ in range(2)]

    assert "cancelled" == alice.get(f"/v1/runs/{run_id}").json["status"]
    [entry] = alice.get("/v1/audit-logs?action=run.cancelled").json
    assert ("operator", str(run_id)) == (entry["actor"]["type"], entry["target"]["id"])


@pytest.mark.parametrize("action", ["GET :explain", "POST :requeue", "POST :cancel"])
def test_a_run_that_does_not_exist_is_not_found(operator: User, action: str) -> None:
    """Each of the actions gets 404."""
    method, name = action.split(" ")
    response = operator.call(method, f"/v1/operator/runs/{new_id()}{name}")

    assert (404, "runs.not_found") == error_of(response)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("stuck-runs?queued_seconds=0", "queued_seconds"),
        ("stuck-runs?silent_seconds=1e3", "silent_seconds"),
        ("stuck-runs?limit=5", "limit"),
        ("leases?worker_id=7", "worker_id"),
        ("leases?before=x", "before"),
        ("queues?org=1", "org"),
    ],
)
def test_a_wrong_query_names_its_field(operator: User, query: str, field: str) -> None:
    """Nothing falls back to a default in silence."""
    assert [field] == list(details_of(operator.get(f"/v1/operator/{query}")))


def test_an_operator_suspends_an_org_and_resumes_it(
    operator: User, alice: User, connections: Connections
) -> None:
    """Its credentials are refused at once, and good again afterwards; the org's log has both."""
    key = alice.api_key()
    path = f"/v1/operator/orgs/{alice.org_id}"

    suspended = operator.post(f"{path}:suspend", {"reason": "Unpaid bills"}).json
    assert suspended is not None
    assert ("Unpaid bills", str(alice.org_id)) == (
        suspended["suspension_reason"],
        suspended["org_id"],
    )
    assert suspended["suspended_at"] is not None
    for user in (alice, key):
        assert (401, "org.suspended") == error_of(user.get("/v1/me"))

    resumed = operator.post(f"{path}:resume").json
    assert resumed == operator.post(f"{path}:resume").json
    assert resumed is not None
    assert (None, None) == (resumed["suspended_at"], resumed["suspension_reason"])
    assert [200, 200] == [user.get("/v1/me").status_code for user in (alice, key)]
    entries = (alice.get("/v1/audit-logs").json or [])[:2]
    assert [("org.resumed", {}), ("org.suspended", {"reason": "Unpaid bills"})] == [
        (entry["action"], entry["details"]) for entry in entries
    ]
    assert all("operator" == entry["actor"]["type"] for entry in entries)


def test_a_repeated_suspension_does_not_undo_a_resumption(operator: User, alice: User) -> None:
    """With its key it gets the first response again, and the org stays open; so for the others."""
    path = f"/v1/operator/orgs/{alice.org_id}"
    suspension = {"json": {"reason": "Unpaid bills"}, "headers": {"Idempotency-Key": "one"}}
    first = operator.call("POST", f"{path}:suspend", **suspension)
    resumed = operator.call("POST", f"{path}:resume", headers={"Idempotency-Key": "two"})

    repeated = operator.call("POST", f"{path}:suspend", **suspension)

    assert "true" == repeated.headers["Idempotency-Replayed"]
    assert first.json == repeated.json
    assert 200 == alice.get("/v1/me").status_code
    again = operator.call("POST", f"{path}:resume", headers={"Idempotency-Key": "two"})
    assert (resumed.json, "true") == (again.json, again.headers["Idempotency-Replayed"])
    other = operator.call("POST", f"{path}:suspend", **{**suspension, "json": {"reason": "Other"}})
    assert (409, "idempotency.conflict") == error_of(other)


@pytest.mark.parametrize("action", [":cancel", ":requeue"])
def test_a_repeated_action_on_a_run_gets_its_first_response(
    operator: User, alice: User, make_run: Callable[..., UUID], action: str
) -> None:
    """What the run has become since does not count."""
    run_id = make_run(alice, alice.thread(), RunState.QUEUED)
    path, headers = f"/v1/operator/runs/{run_id}{action}", {"Idempotency-Key": "one"}
    first = operator.call("POST", path, headers=headers)
    alice.post(f"/v1/runs/{run_id}:cancel")

    repeated = operator.call("POST", path, headers=headers)

    assert (200, first.json) == (repeated.status_code, repeated.json)
    assert "true" == repeated.headers["Idempotency-Replayed"]


def test_an_org_that_was_copied_to_another_cell_is_not_resumed(
    operator: User, alice: User, connections: Connections
) -> None:
    """It stays suspended here, and the response names the installation that has the copy."""
    path, copy = f"/v1/operator/orgs/{alice.org_id}", new_id()
    operator.post(f"{path}:suspend", {"reason": "It moves"})
    with connections.transaction() as tx:
        tx.sql.execute(update(orgs).where(orgs.c.id == alice.org_id).values(moved_to=copy))

    refused = operator.post(f"{path}:resume")

    assert (409, "orgs.moved") == error_of(refused)
    assert {"moved_to": str(copy)} == (refused.json or {})["details"]
    assert (401, "org.suspended") == error_of(alice.get("/v1/me"))


def test_an_operator_does_not_suspend_their_own_org(operator: User) -> None:
    """They could not take it back."""
    path = f"/v1/operator/orgs/{operator.org_id}:suspend"
    refused = operator.post(path, {"reason": "A mistake"})

    assert (403, "auth.forbidden") == error_of(refused)
    assert 200 == operator.get("/v1/me").status_code


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": " "}, {"reason": 7}])
def test_a_suspension_needs_a_reason(operator: User, alice: User, body: dict[str, object]) -> None:
    """422 that names it."""
    response = operator.post(f"/v1/operator/orgs/{alice.org_id}:suspend", body)
    assert {"reason"} == set(details_of(response))


def test_an_unknown_org_is_not_found(operator: User) -> None:
    """Suspending and resuming it respond with 404."""
    for what in (":suspend", ":resume"):
        body = {"reason": "Unpaid bills"} if what == ":suspend" else {}
        response = operator.post(f"/v1/operator/orgs/{new_id()}{what}", body)
        assert (404, "orgs.not_found") == error_of(response)
