"""Ways in which a reader loses a thread while a request of theirs waits."""

from collections.abc import Callable

from tests.clients import Register, User
from tests.end_users import BOB, end_user

#: How a thread is taken from a reader; with the end user it changes hands.
LOSSES: dict[str, Callable[[User, str], object]] = {
    "private": lambda owner, path: owner.patch(path, {"is_private": True}),
    "another end user": lambda owner, path: owner.patch(path, {"end_user_id": BOB}),
    "deleted": lambda owner, path: owner.delete(path),
}


def reader_of(owner: User, register: Register, loss: str, role: str = "member") -> User:
    """Return somebody who sees threads of Ann until the loss."""
    return end_user(owner) if loss == "another end user" else register(org_of=owner, role=role)
