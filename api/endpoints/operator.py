"""`/v1/operator`: the queues, workers and runs of the whole installation, for its operators.

An operator looks after runs of all orgs, but reads nothing of what they are about.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.endpoints.explanations import RunExplanation
from arkloop.api.http.audited import record_of_operator
from arkloop.api.http.current import actor, connections_of_service, settings
from arkloop.api.http.described import Json, Ok, Time, UuidText, described
from arkloop.api.http.fields import Digits, Id
from arkloop.api.http.idempotency import answered_once, check_key
from arkloop.api.http.json_body import NoArguments, query_args, read_body, read_json
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.accounts import suspensions
from arkloop.shared.actors import OPERATE
from arkloop.shared.errors import Forbidden
from arkloop.shared.monitoring import installation, measurements
from arkloop.shared.runs import operated_runs, shown_explanation
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.runs.operated_runs import Outcome
from arkloop.shared.runs.states import RunState, phase_of
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import plain_values, rfc3339, rfc3339_or_none

bp = Blueprint("operator", __name__)

_DAY = 86_400


class QueueClass(TypedDict):
    """The orgs with this number of queued runs, and what waits there for workers of the service."""

    queued_per_org: Annotated[str, Json(enum=["1", "2-10", "11-100", "101+"])]
    orgs: int
    runs: int
    oldest_seconds: float


class OrgQueue(TypedDict):
    """The runs of an org that have not ended."""

    org_id: UuidText
    name: str
    slug: str | None
    weight: int
    suspended_at: Annotated[Time | None, "Null: it is not suspended."]
    queued: Annotated[int, "For workers of the service."]
    oldest_queued_at: Time | None
    queued_for_agents: Annotated[int, "For agent workers of the org."]
    oldest_queued_for_agents_at: Time | None
    executing: int
    waiting: Annotated[int, "For people, for results or for sub-runs."]
    not_yet_due: Annotated[int, "Wait for their thread or their time."]


class Queues(TypedDict):
    """The queues of the installation."""

    measured_at: Annotated[Time, "When `classes` were measured, at most 10 s ago."]
    classes: list[QueueClass]
    orgs: Annotated[list[OrgQueue], "At most 200, the longest wait first, suspended orgs last."]


class Worker(TypedDict):
    """A worker process; with an `org_id` one of the org, for an agent of its own."""

    id: UuidText
    org_id: UuidText | None
    agent: str | None
    hostname: str | None
    pid: int | None
    started_at: Time
    seen_at: Time
    lease_expires_at: Time
    is_alive: bool
    runs: Annotated[int, "Runs that it holds."]


class Workers(TypedDict):
    """The worker processes of the last day."""

    items: list[Worker]


class Lease(TypedDict):
    """A run that a worker executes, or has executed until it was lost."""

    run_id: UuidText
    org_id: UuidText
    persona_id: str
    route_id: str
    agent: str | None
    attempt: int
    crashes: int
    phase: str
    worker_id: UuidText | None
    hostname: str | None
    pid: int | None
    lease_expires_at: Time | None
    is_held: Annotated[bool, "Whether the lease is in force."]
    last_seq: int | None
    last_event: str | None
    last_event_at: Time | None
    created_at: Time
    started_at: Time | None


class StuckRun(TypedDict):
    """A run that should have moved on by now."""

    run_id: UuidText
    org_id: UuidText
    org_name: str
    problem: Literal["queued", "worker_lost", "silent", "cancelling", "overdue"]
    since: Time
    state: str
    persona_id: str
    route_id: str
    agent: str | None
    attempt: int
    crashes: int
    worker_id: UuidText | None
    created_at: Time


class StuckRuns(TypedDict):
    """Runs that should have moved on by now; at most 200."""

    items: list[StuckRun]


class RequeuedRun(TypedDict):
    """A run after an attempt to queue it again."""

    run_id: UuidText
    was: Annotated[str, Json(enum=[state.value for state in RunState])]
    outcome: Annotated[
        str,
        Json(enum=[outcome.value for outcome in Outcome]),
    ]
    lease_expires_at: Annotated[Time | None, "Of a run that is held: until when, at least."]


class OrgState(TypedDict):
    """An org, and whether it is suspended."""

    org_id: UuidText
    name: str
    slug: str | None
    suspended_at: Annotated[Time | None, "Null: it is not suspended."]
    suspension_reason: str | None
    moved_to: Annotated[UuidText | None, "The epoch of the installation that has a copy of it."]
    copy_began_at: Annotated[Time | None, "Null: there is no copy, or it is complete."]


class SuspendOrg(Schema):
    reason = fields.String(required=True, validate=validate.Length(1, suspensions.MAX_REASON))


class LeasesQuery(PageQuery):
    worker_id = Id()


class StuckQuery(Schema):
    queued_seconds = Digits(least=1, most=_DAY, load_default=60)
    silent_seconds = Digits(least=10, most=_DAY, load_default=600)


@bp.get("/v1/operator/queues")
@requires(OPERATE)
@described(returns=Queues)
def show_queues() -> Response:
    """Show depth and age of the queues, by classes of orgs and by org."""
    query_args(NoArguments())
    service = connections_of_service()
    measured = measurements.current(service)
    with service.reading() as sql:
        rows = installation.queues(sql)
    return jsonify(
        measured_at=rfc3339(measured.at),
        classes=[
            {
                "queued_per_org": one["crowd"],
                "orgs": one["orgs"],
                "runs": one["runs"],
                "oldest_seconds": one["oldest_seconds"],
            }
            for one in measured.data["queue"]
        ],
        orgs=[plain_values(row._asdict()) for row in rows],
    )


@bp.get("/v1/operator/workers")
@requires(OPERATE)
@described(returns=Workers)
def list_workers() -> Response:
    """List the worker processes of the last day, those that are alive first; at most 200."""
    query_args(NoArguments())
    with connections_of_service().reading() as sql:
        rows = installation.workers(sql, settings())
    return jsonify(items=[_worker(row) for row in rows])


@bp.get("/v1/operator/leases")
@requires(OPERATE)
@described(query=LeasesQuery, returns=list[Lease])
def list_leases() -> Response:
    """List the runs that workers execute, newest first, with the lease of each."""
    args = page_args(ByTime, LeasesQuery())
    with connections_of_service().reading() as sql:
        rows = installation.leases(
            sql,
            settings(),
            worker_id=args.filters.get("worker_id"),
            limit=args.limit + 1,
            before=args.before,
        )
    return page(rows, args, show=_lease, cursor_of=ByTime.of)


@bp.get("/v1/operator/stuck-runs")
@requires(OPERATE)
@described(query=StuckQuery, returns=StuckRuns)
def list_stuck_runs() -> Response:
    """List runs that should have moved on by now, the longest stuck first."""
    args = query_args(StuckQuery())
    with connections_of_service().reading() as sql:
        rows = installation.stuck_runs(sql, settings(), **args)
    return jsonify(items=[_stuck(row) for row in rows])


@bp.get("/v1/operator/runs/<id:run_id>:explain")
@requires(OPERATE)
@described(returns=RunExplanation)
def explain_operated_run(run_id: UUID) -> Response:
    """Explain why a run of any org is where it is."""
    query_args(NoArguments())
    return jsonify(shown_explanation.explained_to_operator(connections_of_service(), run_id))


@bp.post("/v1/operator/runs/<id:run_id>:requeue")
@requires(OPERATE)
@described(
    body=NoArguments,
    body_optional=True,
    returns=RequeuedRun,
    raises=[OrgMoved],
    headers=["Idempotency-Key"],
)
def requeue_run(run_id: UUID) -> Response:
    """Queue a run again that no worker holds. A run that one holds stays as it is."""
    read_body(NoArguments(), optional=True)

    def requeue(tx: Transaction) -> Response:
        done = operated_runs.requeue(tx, run_id)
        details = {"was": done.was, "outcome": done.outcome}
        record_of_operator(tx, done.org_id, "run.requeued", "run", run_id, **details)
        return jsonify(
            run_id=str(run_id),
            was=done.was,
            outcome=done.outcome,
            lease_expires_at=rfc3339_or_none(done.lease_expires_at),
        )

    return _once(requeue)


@bp.post("/v1/operator/runs/<id:run_id>:cancel")
@requires(OPERATE)
@described(
    body=NoArguments,
    body_optional=True,
    returns=Ok,
    raises=[OrgMoved],
    headers=["Idempotency-Key"],
)
def cancel_operated_run(run_id: UUID) -> Response:
    """Cancel a run of any org, with all sub-runs below it; 200 for one that has ended, too."""
    read_body(NoArguments(), optional=True)

    def cancel(tx: Transaction) -> Response:
        org_id, was_active = operated_runs.cancel(tx, run_id, actor().user_id)
        if was_active:
            record_of_operator(tx, org_id, "run.cancelled", "run", run_id)
        return jsonify(ok=True)

    return _once(cancel)


@bp.post("/v1/operator/orgs/<id:org_id>:suspend")
@requires(OPERATE)
@described(body=SuspendOrg, returns=OrgState, headers=["Idempotency-Key"])
def suspend_org(org_id: UUID) -> Response:
    """Refuse all credentials of an org, and cancel what is executed for it, until it is resumed.

    403 for the org that the operator is logged in to. May be repeated, with another reason.
    """
    body = read_body(SuspendOrg())
    if org_id == actor().org_id:
        raise Forbidden("You cannot suspend the organization that you are logged in to.")

    def suspend(tx: Transaction) -> Response:
        row = suspensions.suspend(tx, org_id, body["reason"], by_user_id=actor().user_id)
        details = {"reason": row.suspension_reason}
        record_of_operator(tx, org_id, "org.suspended", "org", org_id, **details)
        return jsonify(_org(row))

    response = _once(suspend)
    authenticator().forget()
    return response


@bp.post("/v1/operator/orgs/<id:org_id>:resume")
@requires(OPERATE)
@described(
    body=NoArguments,
    body_optional=True,
    returns=OrgState,
    raises=[OrgMoved],
    headers=["Idempotency-Key"],
)
def resume_org(org_id: UUID) -> Response:
    """Open a suspended org again: its credentials are accepted, and its queued runs start."""
    read_body(NoArguments(), optional=True)

    def resume(tx: Transaction) -> Response:
        row, was_suspended = suspensions.resume(tx, org_id)
        if was_suspended:
            record_of_operator(tx, org_id, "org.resumed", "org", org_id)
        return jsonify(_org(row))

    response = _once(resume)
    authenticator().forget()
    return response


def _once(make: Callable[[Transaction], Response]) -> Response:
    """Build the response across orgs, or return the one of the request's idempotency key."""
    return answered_once(check_key(), read_json(), make, using=connections_of_service())


def _org(row: Row[Any]) -> dict[str, Any]:
    shown = plain_values(row._asdict())
    return {"org_id": shown.pop("id"), **shown}


def _worker(row: Row[Any]) -> dict[str, Any]:
    is_of_org = row.org_id is not None
    return {
        **plain_values(row._asdict()),
        "agent": row.hostname if is_of_org else None,
        "hostname": None if is_of_org else row.hostname,
        "pid": None if is_of_org else row.pid,
    }


def _lease(row: Row[Any]) -> dict[str, Any]:
    shown = plain_values(row._asdict())
    is_cancelling = shown.pop("cancel_requested_at") is not None
    return {
        "run_id": shown.pop("id"),
        "worker_id": shown.pop("owner"),
        "phase": phase_of(RunState.EXECUTING, cancel_requested=is_cancelling),
        **shown,
    }


def _stuck(row: Row[Any]) -> dict[str, Any]:
    shown = plain_values(row._asdict())
    return {"run_id": shown.pop("id"), "worker_id": shown.pop("owner"), **shown}
