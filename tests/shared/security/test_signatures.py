"""Signatures of Standard Webhooks, against the specification, its own library, and OpenSSL."""

import base64
import json
import subprocess
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from arkloop.shared.security.signatures import new_secret, signed_headers

pytestmark = pytest.mark.processes

#: The example in the documentation of the specification's reference libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def test_the_published_example_has_the_published_signature() -> None:
    """Every library of the specification verifies what is signed here."""
    signed = signed_headers([SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, BODY)

    expected = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert expected == signed


def test_each_valid_secret_signs() -> None:
    """While a secret is replaced, a receiver with either secret verifies the message; so says
    OpenSSL.
    """
    secrets = [SECRET, "whsec_" + base64.b64encode(b"x" * 32).decode()]

    signatures = signed_headers(secrets, "run:call", 7, BODY)["webhook-signature"]

    assert [f"v1,{_by_openssl(secret, b'run:call.7.' + BODY)}" for secret in secrets] == (
        signatures.split(" ")
    )


def test_the_official_library_verifies_a_message_by_each_valid_secret() -> None:
    """The library of the specification takes the message with either secret, and neither with
    another secret nor after a change.
    """
    secrets = [new_secret(), new_secret()]
    headers = signed_headers(secrets, "msg_1", int(time.time()), BODY)

    verified = [Webhook(secret).verify(BODY, headers) for secret in secrets]

    assert [json.loads(BODY)] * 2 == verified
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secrets[0]).verify(BODY + b" ", headers)


def _by_openssl(secret: str, text: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_")).hex()
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"]
    return base64.b64encode(
        subprocess.run(command, input=text, capture_output=True, check=True).stdout
    ).decode()
