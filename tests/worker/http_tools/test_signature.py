"""Signatures of Standard Webhooks, against the specification and another implementation."""

import base64
import subprocess

from arkloop.worker.http_tools.signature import signed_headers

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


def _by_openssl(secret: str, text: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_")).hex()
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"]
    return base64.b64encode(
        subprocess.run(command, input=text, capture_output=True, check=True).stdout
    ).decode()
