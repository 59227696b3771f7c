"""The tables of webhooks: an org's endpoints, and the deliveries to them."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from arkloop.shared.storage.tables.columns import created_at_, id_, metadata, ref_, time_

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    Column("url", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("event_types", ARRAY(Text), nullable=False),
    Column("is_enabled", Boolean, nullable=False, server_default=text("true")),
    Column("disabled_reason", Text),  # gone: it has responded with 410; null: an admin
    #: Set by a trigger: since when it is disabled, and for how long it was before. What waits for
    #: it is not written then.
    time_("disabled_at"),
    Column("disabled_seconds", Double, nullable=False, server_default=text("0")),
    #: The first attempt that failed since the last one that did not. After an outage it is kept
    #: until all deliveries that wait are due.
    time_("failing_since"),
    Column("secret_encrypted", LargeBinary, nullable=False),  # of its signatures
    Column("former_secret_encrypted", LargeBinary),  # requests are signed by it, too, until then
    time_("former_secret_until"),
    created_at_(),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("ix_webhook_endpoints_org_id", "org_id"),
)

#: An event for one endpoint. A trigger on `run_events` inserts those of runs. No foreign keys: each
#: would lock the row of its endpoint for every event.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    id_(),  # the `webhook-id` of every attempt
    Column("endpoint_id", Uuid, nullable=False),
    Column("org_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("run_id", Uuid),  # null: the event is not of a run
    #: Deliveries with the same value are sent one after the other, by `seq`.
    Column("ordered_by", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("data", Text, nullable=False),  # JSON
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    time_("leased_until"),  # while a process makes an attempt
    time_("tried_since"),  # when the first attempt began
    #: The `disabled_seconds` of the endpoint then. Null: a process of an earlier release has begun
    #: it. What was stored before there was this column has 0 until a process of this one begins it.
    Column("endpoint_disabled_seconds", Double),
    time_("tried_at"),  # when the last attempt ended
    Column("response_status", Integer),  # of the last attempt
    Column("error", Text),  # of the last attempt
    time_("delivered_at"),
    created_at_(),
    UniqueConstraint("endpoint_id", "ordered_by", "seq"),
    Index(
        "ix_webhook_deliveries_pending_endpoint_id_due_at",
        *("endpoint_id", "due_at"),
        postgresql_where=text("state = 'pending'"),
    ),
    Index(
        "ix_webhook_deliveries_dead_endpoint_id_created_at_id",
        *("endpoint_id", "created_at", "id"),
        postgresql_where=text("state = 'dead'"),
    ),
    Index("ix_webhook_deliveries_endpoint_id_created_at_id", "endpoint_id", "created_at", "id"),
    Index("ix_webhook_deliveries_created_at", "created_at"),
)
