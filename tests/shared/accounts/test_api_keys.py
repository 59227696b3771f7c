"""The form of API keys, and the time of their last use."""

import re
import zlib
from decimal import Decimal

from arkloop.shared.accounts import api_keys
from tests.stored_runs import StoredRuns


def test_a_key_has_the_published_form() -> None:
    """`al_` and 36 letters and digits; what scanners look for."""
    for _ in range(100):
        key = api_keys.make()
        assert re.fullmatch(r"al_[0-9A-Za-z]{36}", key)
        assert api_keys.is_well_formed(key)


def test_keys_do_not_repeat() -> None:
    """Neither keys nor, as a rule, their shown parts repeat."""
    keys = {api_keys.make() for _ in range(1000)}

    assert 1000 == len(keys)
    assert 1000 == len({key[:9] for key in keys})


def test_the_checksum_is_the_crc32_of_the_random_part() -> None:
    """It is base62 with digits first, padded to six, so that others can check a key as well."""
    key = api_keys.make()
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    number = 0
    for digit in key[33:]:
        number = number * 62 + alphabet.index(digit)

    assert zlib.crc32(key[3:33].encode()) == number


def test_any_single_slip_is_noticed() -> None:
    """Each character that is changed, each two that are swapped, and any cut."""
    key = api_keys.make()
    for i in range(3, len(key)):
        other = "0" if key[i] != "0" else "1"
        assert not api_keys.is_well_formed(key[:i] + other + key[i + 1 :])
        swapped = key[: i - 1] + key[i] + key[i - 1] + key[i + 1 :]
        assert swapped == key or not api_keys.is_well_formed(swapped)
        assert not api_keys.is_well_formed(key[:i])
    for wrong in (
        "",
        "al_",
        key + "0",
        f" {key}",
        f"{key}\n",
        key.replace("al_", "AL_"),
        "al_" + "é" * 36,
    ):
        assert not api_keys.is_well_formed(wrong)


def test_a_use_does_not_wait_for_a_change_of_the_key(stored: StoredRuns) -> None:
    """The thread that notes it sends notifications of all orgs; a later use is noted."""
    actor, connections = stored.actor, stored.connections
    with connections.transaction() as tx:
        row, _ = api_keys.create(tx, actor, name="shop")

    def used() -> bool:
        with connections.transaction() as other:
            api_keys.mark_used(other, row.id)
        with connections.reading() as sql:
            return api_keys.get(sql, actor, row.id).last_used_at is not None

    with connections.transaction() as tx:
        api_keys.change(tx, actor, row.id, max_cost_usd_per_month=Decimal(1))
        assert not used()
    assert used()
