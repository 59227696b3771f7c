"""`Idempotency-Key`: a POST that is sent again is answered as it was the first time.

`@idempotent` opens the transaction in which an endpoint makes what it makes,
and stores the answer in it:

    @bp.post("/v1/threads")
    @requires("data.threads.write")
    @idempotent
    def create_thread(tx: Transaction) -> Response:
        thread = threads.create(tx, actor(), **read_body(CreateThread()))
        return created(_shown(thread), location=f"/v1/threads/{thread.id}")

With or without a key the endpoint gets `tx`; its notifications go out after the commit.
An answer from before is looked up before the endpoint is called, hence before
any limit. Errors are raised, which rolls everything back: only 2xx is kept.
`replayed_without("key")` is the same for an answer with a secret. `transaction_by_key` is for
endpoints that need no transaction by themselves.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from uuid import UUID

from flask import Response, jsonify, request

from arkloop.api.http.current import actor, connections, public_path
from arkloop.api.http.described import mark
from arkloop.api.http.json_body import read_json
from arkloop.shared.errors import IdempotencyInProgress, InvalidRequest
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.idempotency import Scope, StoredAnswer

WAIT_SECONDS = 5
_POLL_SECONDS = 0.02

P = ParamSpec("P")
View = Callable[Concatenate[Transaction, P], Response]


def idempotent(view: View[P]) -> Callable[P, Response]:
    """Call the endpoint once per `Idempotency-Key`; see the module's example.

    Raises:
        InvalidRequest: a key that is not 1 to 255 printable ASCII characters.
        IdempotencyConflict: the key came with another body before.
        IdempotencyInProgress: the first request with the key takes longer than 5 s.
    """
    return replayed_without()(view)


def transaction_by_key(
    view: Callable[Concatenate[Transaction | None, P], Response],
) -> Callable[P, Response]:
    """Call the endpoint as `idempotent` does, but without a key with None: nothing else has to be
    stored then, so that it can write in fewer round trips than a transaction takes.
    """

    @wraps(view)
    def once(*args: P.args, **kwargs: P.kwargs) -> Response:
        if (key := check_key()) is None:
            return view(None, *args, **kwargs)
        body = read_json()
        return answered_once(key, body, lambda tx: view(tx, *args, **kwargs))

    mark(once, "idempotent", True)
    return once


def replayed_without(*secrets: str) -> Callable[[View[P]], Callable[P, Response]]:
    """Replay as `idempotent` does, without these fields, which are never stored."""

    def decorate(view: View[P]) -> Callable[P, Response]:
        @wraps(view)
        def once(*args: P.args, **kwargs: P.kwargs) -> Response:
            key = check_key()
            # Before the transaction: a body may take its time.
            body = read_json()
            return answered_once(key, body, lambda tx: view(tx, *args, **kwargs), secrets)

        mark(once, "idempotent", True)
        return once

    return decorate


def answered_once(
    key: str | None,
    body: Any,
    make: Callable[[Transaction], Response],
    secrets: tuple[str, ...] = (),
    *,
    using: Connections | None = None,
) -> Response:
    """Return the response that `make` builds in a transaction, or the one stored under the key.

    `body` is what a request with the same key must have in common with the first one. The
    transaction is one of `using`; by default it sees what is the org's.

    Raises:
        IdempotencyConflict, IdempotencyInProgress: see `idempotent`.
    """
    used = using or connections()
    if key is None:
        with used.transaction() as tx:
            return make(tx)
    scope = Scope(org_id=actor().org_id, actor_id=_sender(), path=request.path, key=key)
    request_hash = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with used.transaction() as tx:
            if idempotency.claim(tx, scope):
                stored = idempotency.find(tx, scope, request_hash)
                if stored is not None:
                    return _replay(stored)
                answer = make(tx)
                if 200 <= answer.status_code < 300:
                    idempotency.keep(tx, scope, request_hash, _stored(answer, secrets))
                return answer
        # Waited for here and not in a statement: no connection is held meanwhile.
        if time.monotonic() > deadline:
            raise IdempotencyInProgress()
        time.sleep(_POLL_SECONDS)


def created(body: Any, *, location: str) -> Response:
    """Build a 201 response with the new object and its location."""
    response = jsonify(body)
    response.status_code = 201
    response.headers["Location"] = public_path(location)
    return response


def refuse_key() -> None:
    """Refuse idempotency keys where responses are never kept. Raises: InvalidRequest."""
    if "Idempotency-Key" in request.headers:
        raise InvalidRequest(**{"Idempotency-Key": ["is not supported here"]})


def check_key() -> str | None:
    """Return the request's idempotency key, None without one.

    Raises:
        InvalidRequest: it is not 1 to 255 printable ASCII characters.
    """
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[\x20-\x7e]{1,255}", key):
        raise InvalidRequest(**{"Idempotency-Key": ["must be 1 to 255 printable ASCII characters"]})
    return key


def _sender() -> UUID:
    who = actor()
    return idempotency.sender(who.api_key_id or who.user_id, who.end_user_id, who.thread_id)


def _stored(answer: Response, secrets: tuple[str, ...]) -> StoredAnswer:
    body = answer.get_data(as_text=True)
    if secrets:
        fields = json.loads(body)
        body = json.dumps({name: value for name, value in fields.items() if name not in secrets})
    headers = {name: answer.headers[name] for name in ("Location",) if name in answer.headers}
    return StoredAnswer(status=answer.status_code, headers=headers, body=body)


def _replay(stored: StoredAnswer) -> Response:
    response = Response(stored.body, stored.status, mimetype="application/json")
    response.headers.update(stored.headers)
    response.headers["Idempotency-Replayed"] = "true"
    return response
