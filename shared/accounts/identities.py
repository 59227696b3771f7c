"""Users as identity providers know them: found by `sub`, and once, before that, by address.

An address leads to a user only the first time, only if the provider has verified it, and only to a
member of the provider's org. Addresses of users are not verified here: a person who registered with
one before its owner came would otherwise get into the org with them. So an address alone leads to
no account that somebody could use without the provider: that takes the account's password, too,
once, even if the org changes its provider later.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, insert, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.accounts import (
    accounts,
    api_keys,
    invitations,
    members,
    operators,
    secret_tokens,
)
from arkloop.shared.accounts.identity_errors import (
    LinkRefused,
    LinkRequired,
    LoginRefused,
    LoginStateInvalid,
)
from arkloop.shared.catalog import mcp_access, mcp_owners
from arkloop.shared.errors import InvitationInvalid
from arkloop.shared.ids import new_id
from arkloop.shared.runs import personal_data
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import (
    identities,
    identity_providers,
    memberships,
    refresh_tokens,
    spent_login_states,
    users,
)

#: Of a login that is made of a name of the provider.
_MAX_LOGIN_LENGTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A person as a provider has identified them."""

    subject: str
    email: str | None = None
    email_is_verified: bool | None = None  # None: the provider does not say
    name: str | None = None  # what they are called there


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account whose password a person has just given, and their login in the provider's org."""

    user_id: UUID
    session_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The user that a person is, and what became of it by this login."""

    identity_id: UUID
    user_id: UUID
    linked_by: Literal["address", "password"] | None = None  # None: not by this login
    is_new: bool = False
    has_joined: bool = False


def user_of(sql: Connection, provider: Row[Any], subject: str) -> Row[Any] | None:
    """Return the identity's `id` and `user_id` and the user's `role` in the provider's org.

    The role is null if they are not in it any more; None if `subject` has not logged in yet.
    """
    role = _role(identities.c.user_id, provider.org_id)
    query = select(identities.c.id, identities.c.user_id, role).where(
        identities.c.provider_id == provider.id, identities.c.subject == subject
    )
    return sql.execute(query).one_or_none()


def identify(
    tx: Transaction,
    provider: Row[Any],
    person: Person,
    *,
    invitation: str | None,
    account: Account | None,
) -> Known:
    """Find or make the user that the person is, as a member of the provider's org.

    With `account` they are this user, and nobody else.

    Raises:
        LoginRefused: they are not a member and may not become one by themselves, or it is not
            certain who they are.
        InvitationInvalid, AlreadyMember: see `invitations.accept`.
        LoginTaken: somebody took the address at this very moment.
        LoginStateInvalid: the provider is not that of the org any more, or the login of the account
            has ended.
    """
    found = user_of(tx.sql, provider, person.subject)
    if found is None:
        org_locks.lock(tx, provider.org_id)  # of two at once, one is the first
        is_it = identity_providers.c.id == provider.id
        if tx.sql.scalar(select(identity_providers.c.id).where(is_it)) is None:
            raise LoginStateInvalid()  # it was replaced while it was asked
        found = user_of(tx.sql, provider, person.subject)
    if account is not None:
        _check_account(tx, provider, account, found)
    if found is not None:
        known = Known(identity_id=found.id, user_id=found.user_id)
        if invitation is not None:
            _accept(tx, provider, invitation, known.user_id)
            return Known(identity_id=found.id, user_id=found.user_id, has_joined=True)
        if found.role is None:
            why = "You are not a member of this organization any more; ask for an invitation."
            raise LoginRefused("not_a_member", why)
        return known
    email = _verified_email(provider, person)
    # Both by Postgres: see `accounts.compared`.
    by_email = func.lower(users.c.email) == func.lower(email)
    was_linked = _member(memberships.c.was_linked, users.c.id, provider.org_id)
    role = _role(users.c.id, provider.org_id)
    query = select(users.c.id, users.c.password_hash, role, was_linked)
    # Nobody gives the user a password until the transaction ends.
    locked = query.where(by_email).with_for_update(of=users, key_share=True)
    user = tx.sql.execute(locked).one_or_none()
    if account is not None and (user is None or user.id != account.user_id):
        why = "Your address at the identity provider is not that of the account."
        raise LinkRefused("address_of_another_account", why)
    if user is None:
        return _join(tx, provider, person, email, invitation)
    if user.role is None:
        raise _refused_as_another(user)
    return _link(tx, provider, person, user, by="address" if account is None else "password")


def spend_state(tx: Transaction, state: str, lifetime: timedelta) -> None:
    """Let no other login be completed with this state. Raises: LoginStateInvalid: one was."""
    old = spent_login_states.c.expires_at < func.now()
    tx.sql.execute(delete(spent_login_states).where(old))
    values = {"state_hash": secret_tokens.hash_of(state), "expires_at": func.now() + lifetime}
    spent = upsert(spent_login_states).values(**values).on_conflict_do_nothing()
    if tx.sql.scalar(spent.returning(spent_login_states.c.state_hash)) is None:
        raise LoginStateInvalid()


def bound_org(sql: Connection, session_id: UUID | None) -> UUID | None:
    """Return the org that a login is bound to: that of the identity provider that it came by.

    Owners of that org decide who the provider says that somebody is, so such a login neither sees
    nor ends anything elsewhere. None for a login by a password.
    """
    is_it = refresh_tokens.c.family_id == session_id
    by_identity = refresh_tokens.c.identity_id.is_not(None)
    return sql.scalar(select(refresh_tokens.c.org_id).where(is_it, by_identity).limit(1))


def of_user(sql: Connection, user_id: UUID) -> list[Row[Any]]:
    """List the identities of a user: id, provider_id, subject and created_at."""
    names = ("id", "provider_id", "subject", "created_at")
    query = select(*(identities.c[name] for name in names))
    return list(sql.execute(query.where(identities.c.user_id == user_id).order_by("id")))


def forget(tx: Transaction, user_id: UUID) -> None:
    """Forget who a user is at identity providers; their logins by them end."""
    tx.sql.execute(delete(identities).where(identities.c.user_id == user_id))


def _verified_email(provider: Row[Any], person: Person) -> str:
    verified = person.email_is_verified
    if verified is None:
        verified = provider.assumes_verified_email
    if person.email is None or not verified:
        raise LoginRefused(
            "address_not_verified", "The identity provider has not verified your email address."
        )
    if accounts.problems_of(login="x", email=person.email) or _is_like_another(person.email):
        raise LoginRefused("address_invalid", "The identity provider has no usable address of you.")
    return person.email


def _is_like_another(email: str) -> bool:
    """Return whether letters of it become ASCII ones in lower case, as the Kelvin sign (U+212A)
    becomes a k: the address would be that of somebody else.
    """
    return any(not letter.isascii() and letter.lower()[0].isascii() for letter in email)


def _refused_as_another(user: Row[Any]) -> LoginRefused:
    """Say how the owner of an account outside the org can bring it in."""
    why = "An account with your address exists that is not in this organization"
    if user.password_hash != accounts.NO_PASSWORD:
        how = (
            "If it is yours, log in with its password and an invitation first; if it is not, ask"
            " the operator of the service to erase it."
        )
        return LoginRefused("address_of_another_user", f"{why}. {how}")
    how = (
        "Ask an admin of an organization that it is in, or the operator of the service, to reset"
        " its password; then log in with the new password and an invitation."
    )
    return LoginRefused("address_of_user_without_password", f"{why} and has no password. {how}")


def _join(
    tx: Transaction, provider: Row[Any], person: Person, email: str, invitation: str | None
) -> Known:
    """Make a user without a password, by the invitation or by the domain of the address."""
    domain = email.rpartition("@")[2].lower()
    if invitation is None and domain not in provider.email_domains:
        raise LoginRefused(
            "not_invited", "You are not a member of this organization; ask for an invitation."
        )
    user_id = accounts.create_user_without_org(
        tx, login=_free_login(tx, person, email), email=email, password_hash=accounts.NO_PASSWORD
    )
    if invitation is not None:
        _accept(tx, provider, invitation, user_id)
    else:
        row = {"user_id": user_id, "org_id": provider.org_id, "role": provider.joining_role}
        tx.sql.execute(insert(memberships).values(**row))
    identity_id = _insert(tx, provider, person, user_id)
    return Known(identity_id=identity_id, user_id=user_id, is_new=True, has_joined=True)


def _check_account(
    tx: Transaction, provider: Row[Any], account: Account, found: Row[Any] | None
) -> None:
    """Check that the person may be this user. Raises: LinkRefused, LoginStateInvalid."""
    login = {"user_id": account.user_id, "session_id": account.session_id}
    if accounts.membership(tx.sql, org_id=provider.org_id, **login) is None:
        raise LoginStateInvalid()
    if found is not None and found.user_id != account.user_id:
        why = "The identity provider's account that you have used is linked to another user."
        raise LinkRefused("identity_of_another_account", why)


def _link(
    tx: Transaction,
    provider: Row[Any],
    person: Person,
    user: Row[Any],
    *,
    by: Literal["address", "password"],
) -> Known:
    """Tie a member to the person. From then on they log in by the provider alone.

    Owners keep their password, for the day on which the provider is out of order, and so do members
    of other orgs, which have no part in this, and operators, who need it to be ones.

    `by` an address alone, another person who has registered with it must keep no way in, nor get
    by their own access to an MCP server what the person sends there, nor have runs that act in the
    person's name later. Where the account has no
    password, a provider of an org has made it or was linked to it: if of this org alone, what it
    has is the person's. So it is where a former provider of this org knew the user.

    Raises:
        LoginRefused: the provider knows the member as somebody else.
        LinkRequired: the account would keep a password, API keys, access to MCP servers, runs that
            have not ended or an identity in another org, and `by` does not prove whose they are.
    """
    taken = select(identities.c.id).where(
        identities.c.provider_id == provider.id, identities.c.user_id == user.id
    )
    if tx.sql.scalar(taken) is not None:  # an address that was given to somebody else
        raise LoginRefused(
            "address_of_another_person",
            "Your address belongs to a member whom the identity provider knows as somebody else.",
        )
    is_the_orgs_own = user.role != members.OWNER and len(accounts.orgs_of(tx.sql, user.id)) == 1
    keeps_password = not is_the_orgs_own or bool(
        tx.sql.scalar(select(operators.is_operator(literal(user.id))))
    )
    if not keeps_password:
        # Before the keys are looked for: it waits for a login that is making one.
        accounts.change_password(tx, user_id=user.id, password_hash=accounts.NO_PASSWORD)
    if by == "address" and not user.was_linked:
        of_user = {"org_id": provider.org_id, "user_id": user.id}
        owner = mcp_access.owner_of(None, user.id)
        if _is_known_elsewhere(tx.sql, **of_user) or (
            user.password_hash != accounts.NO_PASSWORD
            and (
                keeps_password
                or api_keys.has_any(tx.sql, **of_user)
                or mcp_owners.has_any(tx.sql, provider.org_id, owner)
                or personal_data.will_act(tx.sql, **of_user)
            )
        ):
            raise LinkRequired(user.id)
    identity_id = _insert(tx, provider, person, user.id)
    return Known(identity_id=identity_id, user_id=user.id, linked_by=by)


def _is_known_elsewhere(sql: Connection, *, org_id: UUID, user_id: UUID) -> bool:
    """Return whether a provider of another org knows the user, even if they have left that org: its
    owner can invite them again.
    """
    is_its = identity_providers.c.id == identities.c.provider_id
    known = select(identities.c.id).where(identities.c.user_id == user_id).where(is_its)
    return bool(sql.scalar(select(known.where(identity_providers.c.org_id != org_id).exists())))


def _insert(tx: Transaction, provider: Row[Any], person: Person, user_id: UUID) -> UUID:
    identity_id = new_id()
    values = {"provider_id": provider.id, "subject": person.subject, "user_id": user_id}
    tx.sql.execute(insert(identities).values(id=identity_id, **values))
    return identity_id


def _accept(tx: Transaction, provider: Row[Any], invitation: str, user_id: UUID) -> None:
    if invitations.accept(tx, invitation, user_id) != provider.org_id:
        raise InvitationInvalid()  # and so is not accepted: nothing of this is committed


def _free_login(tx: Transaction, person: Person, email: str) -> str:
    """Choose a login that is free: the person's name at the provider, or a part of it."""
    wanted = (person.name or email).partition("@")[0].strip()[:_MAX_LOGIN_LENGTH].strip()
    if accounts.problems_of(login=wanted, email=email):
        wanted = "user"
    is_taken = func.lower(users.c.login) == func.lower(wanted)
    if tx.sql.scalar(select(users.c.id).where(is_taken)):
        return f"{wanted}-{new_id().hex[-12:]}"
    return wanted


def _role(user_id: Any, org_id: UUID) -> Any:
    """Build SQL: the user's role in the org, null without one."""
    return _member(memberships.c.role, user_id, org_id)


def _member(column: Any, user_id: Any, org_id: UUID) -> Any:
    """Build SQL: a column of the user's membership in the org, null without one."""
    query = select(column).where(memberships.c.user_id == user_id, memberships.c.org_id == org_id)
    return query.scalar_subquery().label(column.name)
