"""Accounts, keys, budgets, usage and files as responses show them, for `@described`."""

from typing import Annotated, Literal, NotRequired, TypedDict

from arkloop.api.http.described import Json, Time, UuidText

Month = Annotated[str, Json(pattern="^[0-9]{4}-[0-9]{2}$")]


class Health(TypedDict):
    """The state of a process that responds."""

    status: Literal["ok"]


class Readiness(Health):
    """The state of the service; `degraded` names what is missing."""

    schema_version: str
    degraded: NotRequired[list[Literal["redis", "workers", "writes"]]]


class Tokens(TypedDict):
    """An access token; the refresh token is in the cookie."""

    access_token: str
    token_type: Literal["bearer"]


class RegisteredUser(Tokens):
    """A new user, who is logged in."""

    user_id: UuidText


class LimitUse(TypedDict):
    """A limit of the org or of the API key, and how much of it is used."""

    name: Literal["requests", "concurrent_runs", "queued_runs", "streams"]
    scope: Literal["org", "key"]
    limit: int
    used: int
    resets_at: Annotated[Time | None, "When all of it is free again; null: as uses end."]


class OrgOfUser(TypedDict):
    """An org that a user is in, and the user's role there."""

    id: UuidText
    name: str
    role: str


class Me(TypedDict):
    """The user of a token, what the token permits, and its limits."""

    id: UuidText
    username: str
    email: str
    org_id: UuidText
    org_name: str
    orgs: Annotated[
        list[OrgOfUser],
        "All orgs of the user; with an API key, its own. So with a login by an identity provider.",
    ]
    role: str
    permissions: list[str]
    limits: list[LimitUse]
    weight: Annotated[int, "Runs of the org that start in each round of turns; 1 unless set."]
    created_at: Time


class Limits(TypedDict):
    """Limits in USD; null is no limit."""

    max_cost_usd: float | None
    max_cost_usd_per_month: float | None


class ApiKey(Limits):
    """An API key, without the key itself."""

    id: UuidText
    org_id: UuidText
    user_id: UuidText
    name: str
    key_prefix: str
    scopes: list[str]
    revoked_at: Time | None
    last_used_at: Time | None
    expires_at: Time | None
    created_at: Time


class CreatedApiKey(ApiKey):
    """A new API key with `key`, which a repeated request is not shown."""

    key: NotRequired[str]


class Budget(Limits):
    """Limits, and how much of them is used this month."""

    month: Month
    spent_usd: float
    held_usd: Annotated[float, "Reserved for model calls in progress."]


class EndUserBudget(Limits):
    """Limits of each end user, or, with `end_user_id`, of one and how much of them is used."""

    end_user_id: NotRequired[str]
    month: NotRequired[Month]
    spent_usd: NotRequired[float]
    held_usd: NotRequired[float]
    own: NotRequired[Annotated[Limits, "Of this end user; null is the limit of each."]]


class UsageSums(TypedDict):
    """Sums of runs."""

    runs: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float


class CreditedSums(UsageSums):
    """Sums of runs, with the credits that they cost."""

    credits: int


class MonthUsage(CreditedSums):
    """Sums of a month."""

    month: Month


#: In this form, since `from` is a word of Python.
_Period = TypedDict("_Period", {"from": Time, "to": Time})


class UsageReport(CreditedSums, _Period):
    """Sums of a period, and those of this month."""

    this_month: MonthUsage


class DayUsage(CreditedSums):
    """Sums of a day (UTC)."""

    date: Annotated[str, Json(format="date")]


class ModelUsage(UsageSums):
    """Sums of a model."""

    model: str


class EndUserUsage(UsageSums):
    """Sums of an end user; null is runs without one."""

    end_user_id: str | None


class MetadataUsage(UsageSums):
    """Sums of a value of the runs' metadata; null is runs without the key."""

    value: str | None


class CreditEntry(TypedDict):
    """A transfer of credits."""

    id: UuidText
    kind: str
    run_id: UuidText | None
    debit_account: str
    credit_account: str
    credits: int
    note: str | None
    created_at: Time


class Credits(TypedDict):
    """The balance, and a page of the ledger."""

    balance: Annotated[int | None, "Null where the org does not prepay."]
    held: int
    is_prepaid: bool
    entries: list[CreditEntry]


class File(TypedDict):
    """A file, without its bytes."""

    id: UuidText
    org_id: UuidText
    created_by_user_id: UuidText
    name: str
    media_type: str
    size: int
    sha256: str
    created_at: Time
    expires_at: Time | None
