"""Tokens while the signing key rotates: several keys verify, one signs."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import jwt
import pytest
from flask import Flask

from arkloop.api.app import create_app
from arkloop.api.auth import signed_tokens
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized
from arkloop.shared.storage.connections import Connections
from arkloop.shared.times import now
from tests.clients import User
from tests.end_users import end_user

OLD, NEW = "o" * 32, "n" * 32


def sign(settings: Settings, *keys: str) -> str:
    claims = {"exp": int(now().timestamp()) + 60, "aud": "test", "sub": "x"}
    return signed_tokens.sign(replace(settings, jwt_secret=",".join(keys)), "test+jwt", claims)


def is_valid(settings: Settings, token: str, *keys: str) -> bool:
    keyed = replace(settings, jwt_secret=",".join(keys))
    try:
        signed_tokens.verify(keyed, "test+jwt", token, audience="test", required=["exp"])
    except Unauthorized:
        return False
    return True


def header_of(token: str) -> dict[str, Any]:
    part = token.split(".")[0]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


def test_every_step_of_a_rotation_accepts_the_tokens_of_its_neighbours(settings: Settings) -> None:
    """Old and new processes of a deploy understand each other, in both directions."""
    steps = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
    for before, after in pairwise(steps):
        # The last step is made when no token of the step before is left that `old` has signed.
        assert is_valid(settings, sign(settings, *before), *after), (before, after)
        assert is_valid(settings, sign(settings, *after), *before), (before, after)

    assert not is_valid(settings, sign(settings, OLD), NEW)
    assert not is_valid(settings, sign(settings, OLD, NEW), NEW)


def test_a_token_names_its_key_where_there_are_several(settings: Settings) -> None:
    """Alone, a key is not named: earlier releases refuse such a header."""
    assert {"alg": "HS256", "typ": "test+jwt"} == header_of(sign(settings, NEW))
    kid = signed_tokens.kid_of(NEW)
    assert {"alg": "HS256", "typ": "test+jwt", "kid": kid} == header_of(sign(settings, NEW, OLD))
    assert kid != signed_tokens.kid_of(OLD)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ({"kid": signed_tokens.kid_of(OLD)}, NEW),
        ({"kid": signed_tokens.kid_of(NEW)}, OLD),
        ({"kid": signed_tokens.kid_of(NEW).upper()}, NEW),
        ({"kid": NEW}, NEW),
        ({"kid": ""}, NEW),
        ({"kid": "/dev/null"}, "x" * 32),
        ({"kid": signed_tokens.kid_of(NEW), "jku": "https://evil.example.com"}, NEW),
        ({"kid": signed_tokens.kid_of(NEW), "typ": "at+jwt"}, NEW),
        ({"kid": signed_tokens.kid_of(NEW), "crit": ["kid"]}, NEW),
    ],
    ids=str,
)
def test_a_kid_is_no_way_in(settings: Settings, header: dict[str, str], key: str) -> None:
    """It selects one of our keys, and the header has nothing else."""
    claims = {"exp": int(now().timestamp()) + 60, "aud": "test", "sub": "x"}
    right = {"typ": "test+jwt", "kid": signed_tokens.kid_of(NEW)}

    assert is_valid(settings, jwt.encode(claims, NEW, "HS256", headers=right), NEW, OLD)
    forged = jwt.encode(claims, key, "HS256", headers={"typ": "test+jwt", **header})
    assert not is_valid(settings, forged, NEW, OLD)


@pytest.mark.parametrize("kid", [1, None, True, [], {}, {"a": 1}])
def test_a_kid_that_is_no_text_is_refused(settings: Settings, kid: Any) -> None:
    """It is not looked up."""
    head = base64.urlsafe_b64encode(
        json.dumps({"alg": "HS256", "typ": "test+jwt", "kid": kid}).encode()
    )
    token = sign(settings, NEW).split(".")

    assert not is_valid(settings, f"{head.decode().rstrip('=')}.{token[1]}.{token[2]}", NEW)


@pytest.fixture
def rotated(connections: Connections, settings: Settings) -> Iterator[Flask]:
    """The same service after the second step of a rotation."""
    keyed = replace(settings, jwt_secret=f"{NEW},{settings.jwt_secret}")
    app = create_app(connections=replace(connections, settings=keyed))
    yield app
    for name in ("hub", "polls", "reports"):
        app.extensions[f"arkloop.{name}"].close()


def test_whatever_the_old_key_has_signed_stays_valid(
    alice: User, rotated: Flask, make_run: Callable[..., UUID]
) -> None:
    """Access tokens, client tokens, stream tickets and cursors; new ones have the new key."""
    for _ in range(3):
        alice.thread()
    ann = end_user(alice)
    run_id = make_run(alice, alice.thread(), ended_at=now())
    ticket = alice.post(f"/v1/runs/{run_id}/stream-ticket").json["ticket"]
    cursor = alice.get("/v1/threads?limit=2").headers["X-Next-Cursor"]

    alice = replace(alice, client=rotated.test_client())
    ann = replace(ann, client=rotated.test_client())

    page = alice.get(f"/v1/threads?limit=1&before={cursor}")
    assert (200, 1) == (page.status_code, len(page.json or []))
    assert 200 == ann.get("/v1/threads").status_code
    streamed = ann.client.get(f"/v1/runs/{run_id}/events?follow=false&ticket={ticket}")
    assert 200 == streamed.status_code
    following = page.headers["X-Next-Cursor"]
    assert 200 == alice.get(f"/v1/threads?before={following}").status_code
    newer = alice.post(f"/v1/runs/{run_id}/stream-ticket").json["ticket"]
    assert signed_tokens.kid_of(NEW) == header_of(newer)["kid"]
