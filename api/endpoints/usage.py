"""`/v1/me/usage` and `/v1/me/credits`: what the caller's org has used, and what it has left."""

from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any

from flask import Blueprint, Response, jsonify
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.account_types import (
    Credits,
    DayUsage,
    EndUserUsage,
    MetadataUsage,
    ModelUsage,
    UsageReport,
)
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import ClientId, Digits, Id, MetadataFilter, Moment
from arkloop.api.http.json_body import query_args
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.reports import reports
from arkloop.api.http.schema import Schema
from arkloop.shared.billing import credits, usage_reports
from arkloop.shared.billing.usage_reports import Period, Sums
from arkloop.shared.catalog import personas
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events.plain import money
from arkloop.shared.events.usage import TOKEN_FIELDS
from arkloop.shared.times import now, rfc3339

bp = Blueprint("usage", __name__)

MAX_DAYS = 366


class UsageQuery(Schema):
    """The query of a usage report; the period includes `from` and excludes `to`."""

    from_ = Moment(dates=True, data_key="from")
    to = Moment(dates=True)
    persona = fields.String(
        validate=validate.Regexp(
            rf"\A{personas.KEY.pattern}\Z", error="must be a persona's key, without a version"
        )
    )
    api_key_id = Id()
    end_user_id = ClientId()


class ByEndUserQuery(UsageQuery):
    limit = Digits(least=1, most=1000, load_default=100)


class ByMetadataQuery(ByEndUserQuery):
    key = fields.String(required=True, validate=MetadataFilter.check_key)


@bp.get("/v1/me/usage")
@requires("data.runs.read")
@described(query=UsageQuery, returns=UsageReport)
def get_usage() -> Response:
    """Show the sums of a period, and those of this month next to it."""
    period = _period()
    month = Period(
        since=_first_of_month(),
        until=_end_of_today(),
        persona=period.persona,
        api_key_id=period.api_key_id,
        end_user_id=period.end_user_id,
    )
    with reports().reading(actor().org_id) as sql:
        in_all = usage_reports.total(sql, actor().org_id, period)
        this_month = in_all
        if month != period:
            this_month = usage_reports.total(sql, actor().org_id, month)
    return jsonify(
        {
            "from": rfc3339(period.since),
            "to": rfc3339(period.until),
            **_in_all(in_all),
            "this_month": {"month": f"{month.since:%Y-%m}", **_in_all(this_month)},
        }
    )


@bp.get("/v1/me/usage/daily")
@requires("data.runs.read")
@described(query=UsageQuery, returns=list[DayUsage])
def list_usage_by_day() -> Response:
    """List one row for each day (UTC), oldest first."""
    period = _period()
    first, last = period.days()
    if (last - first).days >= MAX_DAYS:
        raise InvalidRequest(**{"from": [f"must be at most {MAX_DAYS} days before the end"]})
    with reports().reading(actor().org_id) as sql:
        rows = usage_reports.daily(sql, actor().org_id, period)
    return jsonify([{"date": day.isoformat(), **_in_all(row)} for day, row in rows.items()])


@bp.get("/v1/me/usage/by-model")
@requires("data.runs.read")
@described(query=UsageQuery, returns=list[ModelUsage])
def list_usage_by_model() -> Response:
    """List one row for each model, the most expensive first."""
    period = _period()
    with reports().reading(actor().org_id) as sql:
        rows = usage_reports.by_model(sql, actor().org_id, period)
    return jsonify([{"model": row["model"], **_sums(row)} for row in rows])


@bp.get("/v1/me/usage/by-end-user")
@requires("data.runs.read")
@described(query=ByEndUserQuery, returns=list[EndUserUsage])
def list_usage_by_end_user() -> Response:
    """List one row for each end user, the most expensive first."""
    args = query_args(ByEndUserQuery())
    with reports().reading(actor().org_id) as sql:
        rows = usage_reports.by_end_user(sql, actor().org_id, _period_of(args), limit=args["limit"])
    return jsonify([{"end_user_id": row["value"], **_sums(row)} for row in rows])


@bp.get("/v1/me/usage/by-metadata")
@requires("data.runs.read")
@described(query=ByMetadataQuery, returns=list[MetadataUsage])
def list_usage_by_metadata() -> Response:
    """List one row for each value of a key of the runs' metadata, the most expensive first."""
    args = query_args(ByMetadataQuery())
    with reports().reading(actor().org_id) as sql:
        rows = usage_reports.by_metadata(
            sql, actor().org_id, _period_of(args), args["key"], limit=args["limit"]
        )
    return jsonify([{"value": row["value"], **_sums(row)} for row in rows])


@bp.get("/v1/me/credits")
@requires("data.runs.read")
@described(query=PageQuery, returns=Credits)
def get_credits() -> Response:
    """Show the balance and a page of the ledger."""
    args = page_args(ByTime)
    with connections().reading() as sql:
        has = credits.balance(sql, actor().org_id)
        rows = credits.entries(sql, actor().org_id, limit=args.limit + 1, before=args.before)
    about = {"balance": has.balance, "held": has.held, "is_prepaid": has.balance is not None}
    return page(
        rows,
        args,
        show=_entry,
        cursor_of=ByTime.of,
        about=about,
    )


def _period() -> Period:
    return _period_of(query_args(UsageQuery()))


def _period_of(args: Mapping[str, Any]) -> Period:
    since, until = args.get("from_", _first_of_month()), args.get("to", _end_of_today())
    if since >= until:
        raise InvalidRequest(to=["must be after from"])
    return Period(
        since=since,
        until=until,
        persona=args.get("persona"),
        api_key_id=args.get("api_key_id"),
        end_user_id=args.get("end_user_id"),
    )


def _first_of_month() -> datetime:
    return datetime.combine(now().astimezone(UTC).date().replace(day=1), time(), UTC)


def _end_of_today() -> datetime:
    return datetime.combine(now().astimezone(UTC).date() + timedelta(days=1), time(), UTC)


def _in_all(sums: Sums) -> Mapping[str, Any]:
    return {**_sums(sums), "credits": sums["credits"]}


def _sums(sums: Sums) -> Mapping[str, Any]:
    return {
        "runs": sums["runs"],
        **{name: sums[name] for name in TOKEN_FIELDS},
        "cost_usd": money(sums["cost_usd"]),
    }


def _entry(row: Row[Any]) -> Mapping[str, Any]:
    return {
        "id": str(row.id),
        "kind": row.kind,
        "run_id": str(row.run_id) if row.run_id else None,
        "debit_account": row.debit_account,
        "credit_account": row.credit_account,
        "credits": row.credits,
        "note": row.note,
        "created_at": rfc3339(row.created_at),
    }
