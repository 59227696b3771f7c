"""Lines of the log about outages: why something is unavailable."""

from arkloop.shared.errors import LeaseLost, Unavailable


def reason_of(error: BaseException) -> str:
    """Return why something is unavailable, for logs and operators: clients get the same text for
    every outage.
    """
    while isinstance(error, LeaseLost | Unavailable) and error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
