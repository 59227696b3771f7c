"""`/v1/me`: who the token stands for, and the limits that it has."""

from datetime import timedelta

from flask import Blueprint, Response, jsonify

from arkloop.api.auth.bearer import requires
from arkloop.api.auth.request_limits import request_limits
from arkloop.api.endpoints.account_types import LimitUse, Me
from arkloop.api.endpoints.following import stream_slots
from arkloop.api.http.current import actor, connections_of_service, settings
from arkloop.api.http.described import described
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.shared.accounts import accounts, identities
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.runs import run_limits
from arkloop.shared.runs.run_limits import RunUse
from arkloop.shared.times import now, rfc3339

bp = Blueprint("me", __name__)


@bp.get("/v1/me")
@requires()
@described(returns=Me)
def get_me() -> Response:
    """Show the user, their org, and what this very token permits there."""
    query_args(NoArguments())
    # The user's other orgs are named, too.
    with connections_of_service().reading() as sql:
        user = accounts.profile(sql, actor().user_id, actor().org_id)
        orgs = accounts.orgs_of(sql, actor().user_id)
        bound_org = identities.bound_org(sql, actor().session_id)
        of_runs = run_limits.uses(sql, settings(), actor())
    return jsonify(
        id=str(user.id),
        username=user.login,
        email=user.email,
        org_id=str(actor().org_id),
        org_name=user.org_name,
        # A key is for one org, and its reader has nothing to do with the others. So is a login by
        # an org's identity provider.
        orgs=[
            {"id": str(org.id), "name": org.name, "role": org.role}
            for org in orgs
            if org.id == actor().org_id or (actor().api_key_id is None and bound_org is None)
        ],
        role=actor().role,
        permissions=sorted(actor().permissions),
        limits=[*_requests(), *map(_of_runs, of_runs), *_streams()],
        weight=(actor().limits or OrgLimits.of_settings(settings())).weight,
        created_at=rfc3339(user.created_at),
    )


def _requests() -> list[LimitUse]:
    return [
        {
            "name": "requests",
            "scope": use.policy,
            "limit": use.limit,
            "used": use.limit - use.remaining,
            "resets_at": rfc3339(now() + timedelta(seconds=use.reset)),
        }
        for use in request_limits().uses(actor())
    ]


def _of_runs(use: RunUse) -> LimitUse:
    return {
        "name": use.name,
        "scope": use.scope,
        "limit": use.limit,
        "used": use.used,
        "resets_at": None,
    }


def _streams() -> list[LimitUse]:
    return [
        {
            "name": "streams",
            "scope": use.scope,
            "limit": use.limit,
            "used": use.used,
            "resets_at": None,
        }
        for use in stream_slots().uses(actor())
    ]
