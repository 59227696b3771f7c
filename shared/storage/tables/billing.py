"""The tables of what runs have cost, what they may cost, and the credits that pay for them."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Numeric,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from arkloop.shared.storage.tables.columns import created_at_, metadata, time_


def _usd(name: str, *, required: bool = True) -> Column[object]:
    return Column(name, Numeric(18, 8), nullable=not required)


def _tokens(name: str) -> Column[object]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _sums() -> list[Column[Any]]:
    return [
        Column("persona_key", Text, nullable=False),
        Column("api_key_id", Uuid),
        Column("model", Text),
        *(
            Column(name, BigInteger, nullable=False)
            for name in (
                *("runs", "input_tokens", "output_tokens", "cache_read_tokens"),
                *("cache_write_tokens", "reasoning_tokens"),
            )
        ),
        Column("cost_usd", Numeric(28, 8), nullable=False),
        Column("credits", BigInteger, nullable=False),
    ]


def _org() -> Column[object]:
    return Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True)


#: What an ended run has used of each route. It outlives the run: no foreign key to it.
run_usage = Table(
    "run_usage",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("route_id", Text, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("user_id", Uuid, nullable=False),
    Column("api_key_id", Uuid),
    Column("persona_key", Text, nullable=False),
    Column("model", Text, nullable=False),
    _tokens("input_tokens"),
    _tokens("output_tokens"),
    _tokens("cache_read_tokens"),
    _tokens("cache_write_tokens"),
    _tokens("reasoning_tokens"),
    Column("usage_source", Text, nullable=False),
    _usd("cost_usd"),
    Column("ended_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    #: Its first day, UTC: that of the run's reservation, else of its end.
    Column("month", Date, nullable=False),
    Column("end_user_id", Text),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Index("ix_run_usage_org_id_ended_at", "org_id", "ended_at"),
    Index(
        "ix_run_usage_org_id_end_user_id_ended_at",
        *("org_id", "end_user_id", "ended_at"),
        postgresql_where=text("end_user_id IS NOT NULL"),
    ),
    Index(
        "ix_run_usage_org_id_api_key_id_ended_at",
        *("org_id", "api_key_id", "ended_at"),
        postgresql_where=text("api_key_id IS NOT NULL"),
    ),
    Index(
        "ix_run_usage_org_id_ended_at_in_another_month",
        *("org_id", "ended_at"),
        postgresql_where=text("month <> date_trunc('month', ended_at AT TIME ZONE 'UTC')::date"),
    ),
)

#: Sums of `run_usage` for days (UTC) that are over, for reports and budgets: rows are only ever
#: added, and may be several for the same day. Those without a model have the runs and credits of
#: all models.
usage_days = Table(
    "usage_days",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), nullable=False),
    Column("day", Date, nullable=False),
    *_sums(),
    Index("ix_usage_days_org_id_day", "org_id", "day"),
    Index(
        "ix_usage_days_org_id_api_key_id_day",
        *("org_id", "api_key_id", "day"),
        postgresql_where=text("model IS NULL AND api_key_id IS NOT NULL"),
    ),
)

#: Such sums for each ten minutes of the days after those. Once a day is summed up its intervals are
#: not read, and are deleted two days later.
usage_intervals = Table(
    "usage_intervals",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), nullable=False),
    time_("began_at", required=True),
    *_sums(),
    Index("ix_usage_intervals_org_id_began_at", "org_id", "began_at"),
    Index(
        "ix_usage_intervals_org_id_api_key_id_began_at",
        *("org_id", "api_key_id", "began_at"),
        postgresql_where=text("model IS NULL AND api_key_id IS NOT NULL"),
    ),
    Index("ix_usage_intervals_began_at", "began_at"),
)

#: One row: `usage_days` has every day before `day` (null: none yet), and `usage_intervals` what
#: follows until `interval_at` (null, or before the start of `day`: nothing yet).
usage_days_until = Table(
    "usage_days_until",
    metadata,
    Column("day", Date),
    Column("interval_at", DateTime(timezone=True)),
)

#: What an org or one of its API keys may spend; null is no limit. A persona's are in itself.
budgets = Table(
    "budgets",
    metadata,
    _org(),
    Column("scope", Text, primary_key=True),  # org | api_key:<id>
    _usd("max_cost_usd", required=False),  # of one run
    _usd("max_cost_usd_per_month", required=False),
    #: When the limit of a month was set to another amount, or was removed.
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

#: Of each scope that has a budget by the month: what ended runs have cost, and what active ones
#: may still cost.
spending = Table(
    "spending",
    metadata,
    _org(),
    Column("scope", Text, primary_key=True),  # org | api_key:<id> | persona:<key> | run:<id>
    Column("month", Date, primary_key=True),  # its first day, UTC; of a run: see `spending.place`
    Column("spent_usd", Numeric(28, 8), nullable=False, server_default=text("0")),
    Column("held_usd", Numeric(28, 8), nullable=False, server_default=text("0")),
    #: When a model call was refused last since too little is left; or when the limit of each end
    #: user was set, if the sweep or that change has found it spent.
    time_("exhausted_at"),
    CheckConstraint("spent_usd >= 0 AND held_usd >= 0", name="ck_spending_not_negative"),
)

#: What an active run has reserved: its cost so far and the worst case of its model call.
#: The table and its columns keep the names that the previous release uses.
reservations = Table(
    "holds",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), nullable=False),
    Column("month", Date, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    _usd("cost_usd"),
    _usd("held_usd"),
    Column("held_credits", BigInteger, nullable=False, server_default=text("0")),
    Column("kept_usd", Numeric(18, 8), nullable=False, server_default=text("0")),
    #: The part of `cost_usd` that credits pay: of routes of the server. Less, or 0, where a process
    #: of the previous release has written the cost.
    Column("servers_usd", Numeric(18, 8), nullable=False, server_default=text("0")),
    #: Of a sub-run: the limit that each run above it has by its persona, null for none.
    Column("caps", JSONB),
    Index("ix_holds_org_id", "org_id"),
)

#: Of each org that pays in advance. `ledger_entries` is the truth, this is its sum.
credit_balances = Table(
    "credit_balances",
    metadata,
    _org(),
    Column("balance", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("held >= 0 AND held <= balance", name="ck_credit_balances_held"),
)

#: Append-only, by a trigger. Each row debits one account and credits another, so the books always
#: balance. Accounts: `customer` (what the org has paid and not used), `receivable` (what it has
#: used and not paid), `funding`, `revenue`.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),  # grant | usage
    Column("run_id", Uuid),  # of kind usage; no foreign key: it outlives the run
    Column("debit_account", Text, nullable=False),
    Column("credit_account", Text, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("note", Text),
    created_at_(),
    CheckConstraint(
        "credits > 0 AND debit_account <> credit_account", name="ck_ledger_entries_moves"
    ),
    Index("ix_ledger_entries_org_id_created_at_id", "org_id", "created_at", "id"),
    Index(
        "uq_ledger_entries_run_id_debit_account",
        "run_id",
        "debit_account",
        unique=True,
        postgresql_where=text("run_id IS NOT NULL"),
    ),
)
