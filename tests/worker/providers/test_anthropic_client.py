"""Anthropic's models at the platforms that sell them: paths, bodies and credentials."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.usage import Usage
from arkloop.shared.security.egress import Policy
from arkloop.worker import providers
from arkloop.worker.contract.messages import Chunk, TextDelta, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.anthropic_client import bounded_frames
from arkloop.worker.providers.bounded_response import MAX_EVENT_BYTES
from tests.worker.providers.fake_vendor import REQUEST, raw, status, vendor
from tests.worker.providers.platform_server import AWS, KEY, PlatformServer, frame

#: Of an org, whose providers may be on this machine.
LOOPBACK = Policy.of(["127.0.0.0/8"])
BEDROCK = {"platform": "bedrock", "region": "us-east-1"}
BEDROCK_MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"


@pytest.fixture(params=[True, False], ids=["org", "server"])
def is_of_org(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the operator that the SDKs would take."""
    for name in ("AWS_BEARER_TOKEN_BEDROCK", "ANTHROPIC_FOUNDRY_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "of-the-operator")
    monkeypatch.setenv("ANTHROPIC_FOUNDRY_RESOURCE", "of-the-operator")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")


def call(*, is_of_org: bool, model: str = "claude-haiku-4-5", **route: Any) -> list[Chunk]:
    fields: dict[str, Any] = {"id": "r", "provider": "anthropic", "model": model, **route}
    loaded = providers.load(
        Route(is_of_org=is_of_org, **fields), faults=False, egress=LOOPBACK if is_of_org else None
    )
    request = REQUEST.__class__(
        model=model, system_prompt="", messages=REQUEST.messages, settings={"temperature": 0.5}
    )
    try:
        return list(loaded.stream(request, StopSignal()))
    finally:
        loaded.close()


def check(chunks: list[Chunk], server: PlatformServer) -> None:
    assert [] == server.refused
    assert TextDelta("Hi") in chunks
    assert TurnEnd("stop", (), Usage(input_tokens=9, output_tokens=2)) == chunks[-1]
    assert not [h for headers in server.headers for h in headers.values() if "operator" in h]


@pytest.mark.parametrize("secret", [KEY, json.dumps(AWS)], ids=["api key", "access key"])
def test_bedrock(is_of_org: bool, secret: str) -> None:
    """An API key is sent, or a signature over all that is sent."""
    with PlatformServer() as server:
        chunks = call(
            is_of_org=is_of_org,
            model=BEDROCK_MODEL,
            base_url=server.url,
            api_key=secret,
            **BEDROCK,
        )

    check(chunks, server)


def test_a_wrong_secret_is_refused_by_the_mock() -> None:
    """The mock does check signatures: a refusal is `auth`."""
    wrong = json.dumps({**AWS, "aws_secret_access_key": "another"})
    with PlatformServer() as server, pytest.raises(ProviderError) as caught:
        call(is_of_org=True, model=BEDROCK_MODEL, base_url=server.url, api_key=wrong, **BEDROCK)

    assert (["signature"], "provider.auth") == (server.refused, caught.value.code)


def test_foundry(is_of_org: bool) -> None:
    """The resource's key is sent to the resource's address."""
    with PlatformServer() as server:
        url = f"{server.url}/anthropic/"
        chunks = call(is_of_org=is_of_org, platform="foundry", base_url=url, api_key=KEY)

    check(chunks, server)


def service_account(key: RSAPrivateKey, url: str) -> str:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    email = "bot@example.iam.gserviceaccount.com"
    account = {"type": "service_account", "client_email": email, "private_key": pem}
    return json.dumps({**account, "private_key_id": "k1", "token_uri": f"{url}/token"})


def test_vertex(is_of_org: bool) -> None:
    """A token is issued to the service account, and used for later runs, too."""
    key = generate_private_key(65537, 2048)
    with PlatformServer(key.public_key()) as server:
        route: dict[str, Any] = {
            "platform": "vertex",
            "region": "europe-west1",
            "project_id": "my-project",
            "base_url": f"{server.url}/v1",
            "api_key": service_account(key, server.url),
        }
        for _ in range(2):
            check(call(is_of_org=is_of_org, **route), server)

    assert ["/token"] == [path for path in server.paths if path == "/token"]


@pytest.mark.parametrize("secret", [None, "{}", "a-key"])
def test_vertex_without_a_service_account_fails(secret: str | None) -> None:
    """A key that could not be decrypted fails, too; no token of the machine is used."""
    with pytest.raises(ProviderError, match="no key of a service account") as caught:
        call(
            is_of_org=True,
            platform="vertex",
            region="europe-west1",
            project_id="p",
            base_url="http://127.0.0.1:9/v1",
            api_key=secret,
        )

    assert "provider.auth" == caught.value.code


def test_the_token_comes_only_from_where_the_org_may_connect() -> None:
    """Its service account names the address."""
    key = generate_private_key(65537, 2048)
    route = Route(
        id="r",
        provider="anthropic",
        model="claude-haiku-4-5",
        platform="vertex",
        region="global",
        project_id="p",
        api_key=service_account(key, "http://169.254.169.254"),
        is_of_org=True,
    )
    provider = providers.load(route, faults=False, egress=LOOPBACK)

    with pytest.raises(ProviderError, match="address is not allowed"):
        list(provider.stream(REQUEST, StopSignal()))
    provider.close()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("throttlingException", "rate_limited"),
        ("validationException", "invalid_request"),
        ("modelStreamErrorException", "overloaded"),
        ("modelTimeoutException", "timeout"),
    ],
)
def test_an_exception_in_bedrocks_stream(name: str, code: str) -> None:
    """As https://docs.aws.amazon.com/bedrock/latest/APIReference names them."""
    stream = raw(frame({"message": "no"}, "exception", name))
    with vendor(stream) as fake, pytest.raises(ProviderError) as caught:
        call(is_of_org=True, model=BEDROCK_MODEL, base_url=fake.url, api_key=KEY, **BEDROCK)

    assert f"provider.{code}" == caught.value.code


def test_bedrocks_words_for_a_request_that_is_too_long() -> None:
    """They have no numbers."""
    long = status("400 Bad Request", message="Input is too long for requested model.")
    with vendor(long) as fake, pytest.raises(ProviderError) as caught:
        call(is_of_org=True, model=BEDROCK_MODEL, base_url=fake.url, api_key=KEY, **BEDROCK)

    assert caught.value.too_large is not None


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_frames_are_passed_on_in_any_pieces(size: int) -> None:
    """The network may split them anywhere."""
    data = frame({"bytes": "x" * 500}) * 3
    pieces = [data[at : at + size] for at in range(0, len(data), size)]

    assert data == b"".join(bounded_frames(pieces))


@pytest.mark.parametrize("length", [0, 4, MAX_EVENT_BYTES + 5])
def test_a_frame_of_an_impossible_length_ends_the_stream(length: int) -> None:
    """Before any of it is kept."""
    with pytest.raises(ValueError, match="too long"):
        list(bounded_frames([length.to_bytes(4, "big") + b"x"]))
