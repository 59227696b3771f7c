"""Secrets at rest: what opens them, and all that does not."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.ids import new_id
from arkloop.shared.security.encryption import CannotOpen, Keyring, NoEncryptionKey, keyring

ORG = UUID("01a20e5a-2b91-76ef-b381-d919c4ad9778")
FIRST, SECOND = "a" * 32, "b" * 32
#: `sk-pinned` as the first release sealed it under a key of 32 times `k`.
PINNED = (
    "01101a50ce91fe82081778826bfcbf1d93d754a0b5922e289ba3f7e5176cbac84a91568ddd79ba62bb7ee7975c74"
)


def seal(text: str, *keys: str) -> bytes:
    return Keyring(*keys or (FIRST,)).seal(text, org_id=ORG, purpose="test")


def opened(sealed: bytes, *keys: str, org_id: UUID = ORG, purpose: str = "test") -> str:
    return Keyring(*keys or (FIRST,)).open(sealed, org_id=org_id, purpose=purpose)


@given(st.text())
def test_what_was_sealed_opens(text: str) -> None:
    """Any text, the empty one too, and the sealed bytes do not contain it."""
    sealed = seal(text)

    assert text == opened(sealed)
    assert len(text) < 4 or text.encode() not in sealed


def test_the_same_text_never_looks_the_same() -> None:
    """Nobody can tell that two orgs have the same key."""
    assert 100 == len({seal("secret") for _ in range(100)})


def test_it_opens_for_its_org_and_purpose_alone() -> None:
    """A sealed text that is copied to another row or column is worth nothing."""
    sealed = seal("secret")

    with pytest.raises(CannotOpen):
        opened(sealed, org_id=new_id())
    with pytest.raises(CannotOpen):
        opened(sealed, purpose="another")


def test_a_single_changed_bit_is_noticed() -> None:
    """It may be anywhere: version, key id, nonce, text, tag."""
    sealed = seal("secret")
    for place in range(len(sealed)):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[place] ^= 1 << bit
            with pytest.raises(CannotOpen):
                opened(bytes(damaged))


def test_a_cut_text_is_noticed() -> None:
    """A sealed text that was cut is noticed at every length, including none."""
    sealed = seal("secret")
    for length in range(len(sealed)):
        with pytest.raises(CannotOpen):
            opened(sealed[:length])


def test_keys_rotate() -> None:
    """The first seals and all open; without the old key what it sealed is lost."""
    old = seal("secret", FIRST)
    new = seal("secret", SECOND, FIRST)

    assert "secret" == opened(old, SECOND, FIRST) == opened(new, SECOND, FIRST)
    assert "secret" == opened(new, SECOND)
    with pytest.raises(CannotOpen, match="not in ARKLOOP_ENCRYPTION_KEY"):
        opened(old, SECOND)
    with pytest.raises(CannotOpen):
        opened(new, FIRST)


def test_what_an_earlier_release_sealed_still_opens() -> None:
    """The format does not change unnoticed."""
    assert "sk-pinned" == opened(bytes.fromhex(PINNED), "k" * 32)


def test_without_a_key_nothing_is_sealed_or_opened() -> None:
    """It is said, not done in some other way."""
    with pytest.raises(NoEncryptionKey):
        keyring(None).seal("secret", org_id=ORG, purpose="test")
    with pytest.raises(NoEncryptionKey):
        keyring(None).open(seal("secret"), org_id=ORG, purpose="test")


def test_the_setting_holds_several_keys() -> None:
    """The setting may hold several keys, with commas and optional spaces between."""
    sealed = seal("secret", SECOND)
    both = keyring(f"{FIRST}, {SECOND}")

    assert "secret" == both.open(sealed, org_id=ORG, purpose="test")


def test_no_error_tells_the_secret() -> None:
    """No error contains the text or the key."""
    with pytest.raises(CannotOpen) as raised:
        opened(seal("my-secret", SECOND))

    assert "my-secret" not in str(raised.value)
    assert SECOND not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", 0),
        ("x" * 32, 0),
        ("é" * 16, 0),
        (f"{FIRST},{SECOND}", 0),
        ("x" * 31, 1),
        (f"{FIRST},", 1),
        (f"short,{FIRST},short", 2),
    ],
)
def test_a_short_key_is_refused_at_the_start(text: str, problems: int) -> None:
    """Each of them with its number, and never shown."""
    environ = {
        "ARKLOOP_DATABASE_URL": "postgresql://x",
        "ARKLOOP_REDIS_URL": "redis://x",
        "ARKLOOP_JWT_SECRET": "x" * 32,
        "ARKLOOP_ENCRYPTION_KEY": text,
    }
    told: list[str] = []
    try:
        Settings.from_env(environ)
    except InvalidSettings as error:
        told = str(error).splitlines()

    assert problems == len(told)
    assert all(line.startswith("ARKLOOP_ENCRYPTION_KEY: key ") for line in told)
    assert "short," not in "".join(told)
