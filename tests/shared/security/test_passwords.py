"""Password hashes."""

import subprocess
import sys
import time

import pytest

from arkloop.shared.accounts import accounts
from arkloop.shared.security import passwords

pytestmark = pytest.mark.processes


def test_a_password_matches_its_own_hash() -> None:
    """A password matches its own hash and no other; case and spaces count."""
    hash_ = passwords.hash_("correct horse ☂")

    assert passwords.verify("correct horse ☂", hash_)
    assert not passwords.verify("Correct horse ☂", hash_)
    assert not passwords.verify("correct horse ☂ ", hash_)
    assert not passwords.verify("", hash_)


def test_equal_passwords_have_different_hashes() -> None:
    """Each has its own salt."""
    assert passwords.hash_("a password") != passwords.hash_("a password")


def test_nothing_matches_no_hash() -> None:
    """An unknown user, or one whose hash is damaged, cannot log in."""
    assert not passwords.verify("a password", None)
    assert not passwords.verify("a password", "")
    assert not passwords.verify("a password", "$argon2id$nonsense")
    assert not passwords.verify("nobody's password", None)
    assert not passwords.verify("nobody's password", accounts.NO_PASSWORD)


@pytest.mark.parametrize("hash_", [None, "", accounts.NO_PASSWORD])
def test_no_hash_takes_as_long_as_a_hash(hash_: str | None) -> None:
    """The time of a login does not reveal whether there is a user, or one with a password."""
    known = passwords.hash_("a password")

    def seconds(of: str | None) -> float:
        # Of all threads of this process, for the hash has its own; not of the machine's others.
        began = time.process_time()
        passwords.verify("another password", of)
        return time.process_time() - began

    times = [(seconds(hash_), seconds(known)) for _ in range(5)]
    without, with_ = map(min, zip(*times, strict=True))
    assert without > with_ / 2


def test_hashing_does_not_stop_the_other_greenlets() -> None:
    """Under gevent the hash is computed in a native thread."""
    program = """
from gevent import monkey
monkey.patch_all()
import gevent
from arkloop.shared.security import passwords
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.001)
ticker = gevent.spawn(tick)
hash_ = passwords.hash_("a password")
assert passwords.verify("a password", hash_)
assert not passwords.verify("another", hash_)
assert len(ticks) > 5, ticks
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stderr)
