"""Secrets at rest: AES-256-GCM under keys that only the environment has.

`ARKLOOP_ENCRYPTION_KEY` is any text of at least 32 bytes; the cipher's key is
derived from it by HKDF (RFC 5869, SHA-256). Several with commas between rotate:
the first seals, and each opens what it has sealed.

    sealed = version (1 byte) | key id (8) | nonce (12) | ciphertext and tag

These keys seal the keys of orgs (`shared/sealing/org_keys.py`), which seal secrets:
version 1 is under a key of the setting, version 2 under the key of an org. The key
id is the beginning of the SHA-256 of the key. What stands before the nonce is
authenticated, and so are the org and the purpose: a sealed text that is copied to
another org or another column does not open there.
"""

import hashlib
import secrets
from functools import lru_cache
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION = b"\x01"
_VERSION_OF_ORG_KEYS = b"\x02"
_KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_HEADER_BYTES = len(_VERSION) + _KEY_ID_BYTES


class NoEncryptionKey(Exception):
    """The lack of `ARKLOOP_ENCRYPTION_KEY`, or of the key that is needed, in this process."""

    def __init__(self, why: str = "ARKLOOP_ENCRYPTION_KEY is not set on this server") -> None:
        super().__init__(why)


class CannotOpen(Exception):
    """Sealed by a key that is not here, for another org or purpose, or damaged."""


class Keyring:
    """The keys of this installation, the newest first; without any it can do nothing."""

    def __init__(self, *texts: str) -> None:
        derived = [_derived(text) for text in texts]
        self._ciphers = {
            hashlib.sha256(key).digest()[:_KEY_ID_BYTES]: AESGCM(key) for key in derived
        }

    @property
    def count(self) -> int:
        """Return how many different keys there are."""
        return len(self._ciphers)

    def seal(self, text: str, *, org_id: UUID, purpose: str) -> bytes:
        """Encrypt; `purpose` names the column, and `open` requires the same.

        Raises:
            NoEncryptionKey
        """
        if not self._ciphers:
            raise NoEncryptionKey()
        key_id, cipher = next(iter(self._ciphers.items()))
        return _sealed(_VERSION + key_id, cipher, text, org_id, purpose)

    def is_up_to_date(self, sealed: bytes) -> bool:
        """Return whether the key that seals now has sealed this."""
        return sealed[:_HEADER_BYTES] == _VERSION + next(iter(self._ciphers), b"")

    def open(self, sealed: bytes, *, org_id: UUID, purpose: str) -> str:
        """Decrypt what `seal` has made for this org and purpose, by whichever key.

        Raises:
            NoEncryptionKey, CannotOpen
        """
        if not self._ciphers:
            raise NoEncryptionKey()
        cipher = self._ciphers.get(sealed[len(_VERSION) : _HEADER_BYTES])
        if not sealed.startswith(_VERSION) or cipher is None:
            raise CannotOpen("encrypted with a key that is not in ARKLOOP_ENCRYPTION_KEY")
        return _opened(sealed, cipher, org_id, purpose)


class OrgKey:
    """The key of one org, by which its secrets are sealed."""

    def __init__(self, key: bytes, org_id: UUID) -> None:
        self._header = _VERSION_OF_ORG_KEYS + hashlib.sha256(key).digest()[:_KEY_ID_BYTES]
        self._cipher = AESGCM(key)
        self._org_id = org_id

    def seal(self, text: str, *, purpose: str) -> bytes:
        """Encrypt as `Keyring.seal` does."""
        return _sealed(self._header, self._cipher, text, self._org_id, purpose)

    def is_up_to_date(self, sealed: bytes) -> bool:
        """Return whether this key has sealed this."""
        return sealed.startswith(self._header)

    def open(self, sealed: bytes, *, purpose: str) -> str:
        """Decrypt what `seal` has made. Raises: CannotOpen."""
        if not self.is_up_to_date(sealed):
            raise CannotOpen("encrypted with a key of the organization that was erased")
        return _opened(sealed, self._cipher, self._org_id, purpose)


@lru_cache(maxsize=8)
def keyring(encryption_key: str | None) -> Keyring:
    """Build the keyring of a setting: keys with commas between, or None."""
    return Keyring(*split(encryption_key))


def split(encryption_key: str | None) -> list[str]:
    """Split the text of the setting into its keys."""
    return [part.strip() for part in (encryption_key or "").split(",") if part.strip()]


def _derived(text: str) -> bytes:
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"arkloop stored secrets")
    return hkdf.derive(text.encode())


def is_of_org_key(sealed: bytes) -> bool:
    """Return whether a key of an org has sealed this."""
    return sealed.startswith(_VERSION_OF_ORG_KEYS)


def _sealed(header: bytes, cipher: AESGCM, text: str, org_id: UUID, purpose: str) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    bound = _bound(header, org_id, purpose)
    return header + nonce + cipher.encrypt(nonce, text.encode(), bound)


def _opened(sealed: bytes, cipher: AESGCM, org_id: UUID, purpose: str) -> str:
    header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
    nonce, ciphertext = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
    try:
        return cipher.decrypt(nonce, ciphertext, _bound(header, org_id, purpose)).decode()
    except (InvalidTag, ValueError):  # ValueError: too short for a nonce
        raise CannotOpen("damaged, or encrypted for another organization or purpose") from None


def _bound(header: bytes, org_id: UUID, purpose: str) -> bytes:
    return header + org_id.bytes + purpose.encode()
