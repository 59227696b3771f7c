"""The maker of a request, and what they may see and write."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from arkloop.shared.errors import Forbidden
from arkloop.shared.org_limits import OrgLimits

DATA_PERMISSIONS = frozenset(
    {
        "data.files.read",
        "data.files.write",
        "data.runs.read",
        "data.runs.write",
        "data.threads.read",
        "data.threads.write",
    }
)
#: For processes in the customer's network: they see all runs that their org
#: gives to workers of its own.
WORK_PERMISSIONS = frozenset({"agents.work", "tools.work"})
PERMISSIONS_OF_ROLE = {
    "owner": DATA_PERMISSIONS | WORK_PERMISSIONS | {"admin"},
    "admin": DATA_PERMISSIONS | WORK_PERMISSIONS | {"admin"},
    "member": DATA_PERMISSIONS,
}
SCOPES = DATA_PERMISSIONS | WORK_PERMISSIONS | {"admin"}
#: To look after the whole installation. No role in an org has it: see `accounts/operators.py`.
OPERATE = "operator"

_NOBODY = UUID(int=0)
_ONLY_OPERATORS = (
    f"Only operators of the service have the permission `{OPERATE}`, and those of their API keys"
    " that name it as a scope."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A user in an org, by access token or by API key (`api_key_id`), or an end user of the org.

    `permissions` are those of the role, narrowed by the key's scopes.
    `expires_at` is when the token or key ends; streams end with it.
    An actor with `end_user_id` comes from a client token; its user, key and login are those of the
    token's issuer. It sees threads of this end user alone, or one of them (`thread_id`).
    """

    org_id: UUID
    user_id: UUID
    role: str
    permissions: frozenset[str]
    api_key_id: UUID | None = None
    session_id: UUID | None = None  # the login that the access token comes from
    expires_at: datetime | None = None
    end_user_id: str | None = None
    thread_id: UUID | None = None
    persona_id: str | None = None  # the one persona that runs of an end user may have
    issuer_writes_all: bool = False  # of an end user: whether the token's issuer does
    limits: OrgLimits | None = None  # None: those of the settings

    @property
    def writes_all(self) -> bool:
        """Owners and admins write all that they see; members only their own.

        So do the keys of owners and admins that lack the scope `admin`: a role alone gives a key
        no right that its scopes do not name. An end user writes no more than the token's issuer.
        """
        return "admin" in self.permissions or self.issuer_writes_all

    @property
    def reader_of_private(self) -> UUID:
        """The user whose private threads the actor sees; for an end user, nobody."""
        return self.user_id if self.end_user_id is None else _NOBODY

    def check_permits(self, *required: str) -> None:
        """Check the permissions. Raises: Forbidden: one is missing; it says which, and of what."""
        missing = [name for name in required if name not in self.permissions]
        if not missing:
            return
        if OPERATE in missing:
            raise Forbidden(_ONLY_OPERATORS)
        of_role = PERMISSIONS_OF_ROLE.get(self.role, DATA_PERMISSIONS)
        kind = "scope"
        if self.end_user_id is not None:
            who = "This client token, or the key or login that issued it,"
        elif of_role.issuperset(missing):
            who = "Your key"
        else:
            who, kind = f"Your role, {self.role},", "permission"
            missing = [name for name in missing if name not in of_role]
        names = " and ".join(f"`{name}`" for name in missing)
        kinds = kind if len(missing) == 1 else f"{kind}s"
        raise Forbidden(f"{who} lacks the {kinds} {names}.")

    def check_may_write(self, what: str, created_by_user_id: UUID) -> None:
        """Check the creator of `what`, which the message names.

        Raises: Forbidden: somebody else, and the actor lacks `admin`.
        """
        if self.writes_all or created_by_user_id == self.user_id:
            return
        if self.end_user_id is not None:
            raise Forbidden(
                f"This client token may not change {what}: it was created with a token or key of"
                " another issuer."
            )
        raise Forbidden(
            f"Another user has created {what}; changing it takes the permission `admin`."
        )
