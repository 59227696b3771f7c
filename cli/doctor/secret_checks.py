"""Stored secrets: whether the encryption key of the settings decrypts them."""

from collections.abc import Iterator

from sqlalchemy import Connection

from arkloop.cli.doctor.findings import Finding, fail, ok
from arkloop.shared.config import Settings
from arkloop.shared.sealing import org_keys
from arkloop.shared.security.encryption import keyring

#: Keys of organizations that are looked at: those of the newest ones.
_MOST = 1_000


def of_secrets(settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Look at the keys of organizations, without which none of their secrets can be decrypted."""
    ring = keyring(settings.encryption_key)
    known, unreadable = org_keys.count_unreadable(sql, ring, most=_MOST)
    shown = f"the newest {known:,}" if known == _MOST else f"{known:,}"
    if not known:
        return
    if not unreadable:
        yield ok("secrets", f"those of {shown} organizations can be decrypted")
        return
    yield fail(
        "secrets",
        f"ARKLOOP_ENCRYPTION_KEY is not set, and {shown} organizations have stored secrets"
        if settings.encryption_key is None
        else f"{unreadable:,} of {shown} organizations' secrets are under another key than those in"
        " ARKLOOP_ENCRYPTION_KEY",
        "Add the key that is missing, in all processes; if it is lost for good, run `arkloop keys"
        " erase-encryption` for each of these organizations: docs/how-to/operations.md",
    )
