"""The hostile requests that `make hostile` draws."""

from itertools import islice

from flask import Flask

from bench.hostile.attacks import attacks
from bench.hostile.bodies import MIB


def _drawn(app: Flask, seed: int, count: int = 1_000) -> list[bytes]:
    drawn = attacks(app, ["al_token"], ["019c0000-0000-7000-8000-000000000000"], seed)
    return [attack.content for attack in islice(drawn, count)]


def test_a_seed_always_gives_the_same_requests(app: Flask) -> None:
    """A fault that a seed has found can be found again."""
    assert _drawn(app, 1) == _drawn(app, 1)
    assert _drawn(app, 1) != _drawn(app, 2)


def test_every_rule_of_the_url_map_is_attacked(app: Flask) -> None:
    """Each path occurs in a request with a method that it accepts."""
    content = b"\n".join(_drawn(app, 1, 10_000))

    missed = [
        rule.rule
        for rule in app.url_map.iter_rules()
        if not any(
            f"{method} {rule.rule.partition('<')[0]}".encode() in content
            for method in rule.methods or ()
        )
    ]

    assert [] == missed


def test_a_body_is_at_most_the_largest_that_is_read(app: Flask) -> None:
    """A larger one would be refused by its length, before any of it is parsed."""
    bodies = [content.partition(b"\r\n\r\n")[2] for content in _drawn(app, 3)]

    assert MIB // 2 < max(len(body) for body in bodies) < MIB + 100
