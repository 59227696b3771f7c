"""The tables of users, orgs, invitations, identity providers, logins and API keys."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from arkloop.shared.org_limits import LIMITS, MOST, MOST_WEIGHT, WEIGHT
from arkloop.shared.storage.tables.columns import created_at_, id_, metadata, ref_, time_

#: `name` is for display and may be anybody's. Only the operator gives an org a `slug`, by which
#: commands find it.
orgs = Table(
    "orgs",
    metadata,
    id_(),
    Column("name", Text, nullable=False),
    Column("slug", Text),
    created_at_(),
    time_("suspended_at"),  # null: it is not; see `shared/accounts/suspensions.py`
    Column("suspension_reason", Text),  # the operator's words
    Column("moved_to", Uuid),  # the `epoch` of the installation that has a copy of it
    time_("copy_began_at"),  # null once that copy is complete
    Column("public_url", Text),  # null: that of all; see `shared/storage/org_urls.py`
    UniqueConstraint("slug"),
    Index("ix_orgs_suspended", "id", postgresql_where=text("suspended_at IS NOT NULL")),
)

#: Their ids; literal text, by which Postgres uses the index of them.
SUSPENDED_ORGS = select(orgs.c.id).where(text("suspended_at IS NOT NULL"))

#: Those of them with a copy in another installation, or that are one. No run of theirs ends: that
#: would be in the ledger of one of the two alone, and the other could never be added to it.
MOVED_ORGS = SUSPENDED_ORGS.where(orgs.c.moved_to.is_not(None))

#: What the operator has set for one org; null is what the settings give to all, and weight 1.
org_settings = Table(
    "org_settings",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True),
    *(Column(name, Integer) for name in LIMITS),
    Column(WEIGHT, Integer),
    CheckConstraint(
        " AND ".join(f"{name} BETWEEN 0 AND {MOST}" for name in LIMITS),
        name="ck_org_settings_limits",
    ),
    CheckConstraint(f"{WEIGHT} BETWEEN 1 AND {MOST_WEIGHT}", name="ck_org_settings_weight"),
)

#: The runs of an org that has many, as `run_refusals` last counted them, and since then admitted
#: some. Unlogged: what is gone is counted again.
counted_runs = Table(
    "counted_runs",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True),
    Column("of_keys", JSONB, nullable=False),  # by the id of the API key; "" for those without
    Column("unended", BigInteger, nullable=False),
    Column("queued", BigInteger, nullable=False),
    Column("counted_at", DateTime(timezone=True), nullable=False),
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": 50},
)

users = Table(
    "users",
    metadata,
    id_(),
    Column("login", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    created_at_(),
)
Index("uq_users_login", func.lower(users.c.login), unique=True)
Index("uq_users_email", func.lower(users.c.email), unique=True)

#: A user has one role in each of their orgs.
memberships = Table(
    "memberships",
    metadata,
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True),
    Column("role", Text, nullable=False),  # owner | admin | member
    created_at_(),
    # A former identity provider of the org knew the user by the address.
    Column("was_linked", Boolean, nullable=False, server_default=text("false")),
    Index("ix_memberships_org_id_created_at_user_id", "org_id", "created_at", "user_id"),
)

#: Open invitations to an org: one that is accepted or revoked is deleted.
invitations = Table(
    "invitations",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    Column("name", Text, nullable=False),  # whom it is for, in the words of its creator
    Column("role", Text, nullable=False),
    Column("token_hash", Text, nullable=False, unique=True),  # SHA-256, hex
    ref_("created_by_user_id", "users.id"),
    created_at_(),
    time_("expires_at", required=True),
    Index("ix_invitations_org_id_created_at_id", "org_id", "created_at", "id"),
)

#: The open reset of a user's password, one at most: one that is used is deleted.
password_resets = Table(
    "password_resets",
    metadata,
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("token_hash", Text, nullable=False, unique=True),  # SHA-256, hex
    #: Null: an operator's command, or a release that did not store it. No foreign key: rows of
    #: users stay, and adding one would lock their table.
    Column("created_by_user_id", Uuid),
    created_at_(),
    time_("expires_at", required=True),
)

#: Users who may look after the whole installation. Only commands write here, never a request.
operators = Table(
    "operators",
    metadata,
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    created_at_(),
)

#: Records of what was erased, without personal data.
erasures = Table(
    "erasures",
    metadata,
    id_(),
    Column("kind", Text, nullable=False),  # user | end_user
    Column("org_id", Uuid),  # of an end user; no foreign key: it outlives the org
    Column("user_id", Uuid),  # whose row stays, without a name
    *(Column(name, BigInteger, nullable=False) for name in ("threads", "messages", "runs")),
    Column("files", BigInteger, nullable=False),
    created_at_(),
)

#: The identity provider of an org, one at most.
identity_providers = Table(
    "identity_providers",
    metadata,
    id_(),
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("issuer", Text, nullable=False),
    Column("client_id", Text, nullable=False),
    Column("client_secret_encrypted", LargeBinary),
    Column("signing_algorithm", Text, nullable=False),
    Column("email_domains", ARRAY(Text), nullable=False),  # whose people join by themselves
    Column("joining_role", Text, nullable=False),
    Column("assumes_verified_email", Boolean, nullable=False),
    Column("session_hours", Integer, nullable=False),
    created_at_(),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

#: Who a user is at an identity provider: `subject` never changes there, as an address may.
identities = Table(
    "identities",
    metadata,
    id_(),
    ref_("provider_id", "identity_providers.id"),
    Column("subject", Text, nullable=False),
    ref_("user_id", "users.id"),
    created_at_(),
    UniqueConstraint("provider_id", "subject"),
    UniqueConstraint("provider_id", "user_id"),
    Index("ix_identities_user_id", "user_id"),
)

#: Logins by an identity provider that were completed: none is completed twice.
spent_login_states = Table(
    "spent_login_states",
    metadata,
    Column("state_hash", Text, primary_key=True),  # SHA-256, hex
    time_("expires_at", required=True),
    Index("ix_spent_login_states_expires_at", "expires_at"),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    id_(),
    Column("family_id", Uuid, nullable=False),  # all rotations of one login
    ref_("user_id", "users.id"),
    #: Null in tokens of releases in which a user had one org.
    ref_("org_id", "orgs.id", required=False),
    ref_("identity_id", "identities.id", required=False),  # null: by a password
    Column("token_hash", Text, nullable=False, unique=True),
    created_at_(),
    time_("expires_at", required=True),
    time_("session_ends_at"),  # null: as long as it is refreshed
    time_("rotated_at"),
    time_("revoked_at"),
    Index("ix_refresh_tokens_family_id", "family_id"),
    Index("ix_refresh_tokens_user_id", "user_id"),
    Index(
        "ix_refresh_tokens_identity_id",
        "identity_id",
        postgresql_where=text("identity_id IS NOT NULL"),
    ),
)

api_keys = Table(
    "api_keys",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("user_id", "users.id"),
    Column("name", Text, nullable=False),
    Column("key_prefix", Text, nullable=False),
    Column("key_hash", Text, nullable=False, unique=True),  # SHA-256, hex
    Column("scopes", ARRAY(Text), nullable=False),
    created_at_(),
    time_("expires_at"),
    time_("revoked_at"),
    time_("last_used_at"),
    Index("ix_api_keys_org_id_created_at_id", "org_id", "created_at", "id"),
)
