"""The reaction of both SDK providers to refusals, broken streams and odd bytes."""

import email.utils
import time

import pytest

from arkloop.worker.contract.outcomes import ProviderError, TooLarge
from tests.worker.providers.failing_streams import in_stream
from tests.worker.providers.fake_vendor import Answer, ask, raw, refusal, status, vendor

pytestmark = pytest.mark.parametrize("provider", ["openai", "anthropic"])

QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more"
    " information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes"
)


@pytest.mark.parametrize(
    ("answer", "code", "retryable", "retry_after"),
    [
        (status("429 Too Many Requests", "Retry-After: 3"), "rate_limited", True, 3.0),
        (status("429 Too Many Requests", "retry-after-ms: 250"), "rate_limited", True, 0.25),
        (
            status("429 Too Many Requests", "retry-after-ms: x", "Retry-After: 2"),
            "rate_limited",
            True,
            2.0,
        ),
        (status("429 Too Many Requests", "Retry-After: soon"), "rate_limited", True, None),
        (status("429 Too Many Requests", "Retry-After: nan"), "rate_limited", True, None),
        (status("429 Too Many Requests", "Retry-After: -1"), "rate_limited", True, None),
        (status("500 Internal Server Error"), "overloaded", True, None),
        (status("503 Service Unavailable"), "overloaded", True, None),
        (status("529 Overloaded", "Retry-After: 1.5"), "overloaded", True, 1.5),
        (status("408 Request Timeout"), "timeout", True, None),
        (status("409 Conflict"), "overloaded", True, None),
        (status("401 Unauthorized"), "auth", False, None),
        (status("402 Payment Required"), "auth", False, None),
        (status("403 Forbidden"), "auth", False, None),
        (status("412 Precondition Failed"), "auth", False, None),
        (status("400 Bad Request"), "invalid_request", False, None),
        (status("404 Not Found"), "invalid_request", False, None),
        (status("413 Content Too Large"), "invalid_request", False, None),
        (status("422 Unprocessable Content"), "invalid_request", False, None),
    ],
)
def test_each_refusal_has_its_code(
    provider: str, answer: Answer, code: str, retryable: bool, retry_after: float | None
) -> None:
    """The SDK itself retries nothing: one request, one error."""
    error = refusal(provider, answer)

    assert (f"provider.{code}", retryable, retry_after) == (
        error.code,
        error.retryable,
        error.retry_after,
    )


@pytest.mark.parametrize(
    ("kind", "error_code"),
    [
        ("insufficient_quota", "insufficient_quota"),
        ("requests", "billing_hard_limit_reached"),
        ("exceeded_current_quota_error", None),
        ("billing_error", None),
        ("x", "Insufficient_Balance"),
        ("budget_exceeded", "429"),
    ],
)
def test_an_empty_account_is_not_waited_for(
    provider: str, kind: str, error_code: str | None
) -> None:
    """An account without balance is treated as a 402, not as a rate limit: the next provider is
    tried.
    """
    answer = status("429 Too Many Requests", "Retry-After: 3", kind=kind, error_code=error_code)

    error = refusal(provider, answer)

    assert ("provider.auth", False, True) == (error.code, error.retryable, error.is_of_route)


@pytest.mark.parametrize(
    ("code", "message", "error_code"),
    [
        (
            400,
            "Your credit balance is too low to access the Anthropic API. Please go to Plans",
            None,
        ),
        (400, "You have reached your specified API usage limits. You will regain access on", None),
        (400, "Access denied, please make sure your account is in good standing.", "Arrearage"),
        (402, "Insufficient Balance", "invalid_request_error"),
        (402, "Insufficient credits. This account never purchased credits.", None),
        (403, "Your team has either used all available credits or reached its monthly", None),
        (429, "Your team has either used all available credits or reached its monthly", None),
        (429, "Your account is suspended due to insufficient balance, please recharge", None),
        (
            412,
            "Account acme is suspended, possibly due to reaching the monthly spending limit or"
            " failure to pay past invoices. Please go to https://fireworks.ai/account/billing",
            "PRECONDITION_FAILED",
        ),
        (429, "Your prepayment credits are depleted. Please go to AI Studio at", None),
        (400, "Blocked API access", "blocked_api_access"),
        (429, "余额不足或无可用资源包,请充值。", "1113"),
        (429, f"litellm.RateLimitError: RateLimitError: OpenAIException - {QUOTA}", "429"),
        (
            429,
            'litellm.RateLimitError: RateLimitError: Hosted_vllmException - {"error": {"message":'
            f' "{QUOTA}", "type": "insufficient_quota", "code": "insufficient_quota"}}}}',
            "429",
        ),
        (
            429,
            f"OpenAIException - Error code: 429 - {{'error': {{'message': '{QUOTA}', 'type':"
            " 'insufficient_quota', 'param': None, 'code': 'insufficient_quota'}}",
            "429",
        ),
        (
            429,
            "litellm.RateLimitError: RateLimitError: OpenAIException - Your account is not active,"
            " please check your billing details on our website.",
            "429",
        ),
        (
            400,
            "litellm.BadRequestError: OpenAIException - Billing hard limit has been reached",
            "400",
        ),
        (
            429,
            "No deployments available - crossed budget: Exceeded budget for provider openai:"
            " 1.35e-05 >= 1e-07",
            "429",
        ),
        (422, "Budget has been exceeded! Current cost: 10.2, Max budget: 10.0", "422"),
    ],
)
def test_an_empty_account_is_recognised_in_the_vendors_words(
    provider: str, code: int, message: str, error_code: str | None
) -> None:
    """The next route takes over, whatever the status is, also in the middle of a stream."""
    answer = status(
        f"{code} X", message=message, kind="invalid_request_error", error_code=error_code
    )
    told = {"type": "invalid_request_error", "code": error_code, "message": message}

    for error in (refusal(provider, answer), refusal(provider, in_stream(provider, told))):
        assert ("provider.auth", False, True) == (error.code, error.retryable, error.is_of_route)


@pytest.mark.parametrize("said_by", ["", "litellm.BadRequestError: GeminiException - "])
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT"),
        ("API key expired. Please renew the API key.", "INVALID_ARGUMENT"),
        ("API Key not found. Please pass a valid API key.", "INVALID_ARGUMENT"),
        ("User location is not supported for the API use.", "FAILED_PRECONDITION"),
        (
            "Gemini API free tier is not available in your country. Please enable billing on your"
            " project in Google AI Studio.",
            "FAILED_PRECONDITION",
        ),
    ],
)
def test_a_key_that_google_refuses_is_no_fault_of_the_request(
    provider: str, said_by: str, message: str, kind: str
) -> None:
    """Google refuses a key, or the place it is used from, with a 400: the next route takes over."""
    told = {"code": 400, "status": kind, "message": said_by + message}

    for answer in (
        status("400 Bad Request", message=said_by + message, kind=kind, error_code=400),
        in_stream(provider, told),
    ):
        error = refusal(provider, answer)
        assert ("provider.auth", False, True) == (error.code, error.retryable, error.is_of_route)


@pytest.mark.parametrize("said_by", ["", "litellm.RateLimitError: geminiException - "])
def test_a_quota_of_a_minute_is_waited_for(provider: str, said_by: str) -> None:
    """Gemini refuses requests beyond its free ones with OpenAI's words for an empty account."""
    why = (
        "You exceeded your current quota, please check your plan and billing details. For more"
        " information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n"
        "* Quota exceeded for metric: generate_content_free_tier_requests, limit: 20\nPlease retry"
        " in 17.5s."
    )

    error = refusal(
        provider, status("429 X", message=said_by + why, kind="RESOURCE_EXHAUSTED", error_code=429)
    )

    assert ("provider.rate_limited", True) == (error.code, error.retryable)


@pytest.mark.parametrize(
    "said_by", ["", "litellm.RateLimitError: RateLimitError: OpenAIException - "]
)
def test_alibabas_tokens_of_a_minute_are_waited_for(provider: str, said_by: str) -> None:
    """It has OpenAI's words and code for an empty account, with an address of its own."""
    why = (
        f"{said_by}You exceeded your current quota, please check your plan and billing details. For"
        " details, see: https://help.aliyun.com/zh/model-studio/error-code#token-limit"
    )
    code = "429" if said_by else "insufficient_quota"

    error = refusal(provider, status("429 X", message=why, kind=code, error_code=code))

    assert ("provider.rate_limited", True) == (error.code, error.retryable)


@pytest.mark.parametrize(
    ("headers", "is_shared", "retry_after", "idle_tokens"),
    [
        (["Retry-After: 7"], False, 7.0, None),
        (["x-ratelimit-remaining-tokens: 0", "Retry-After: 7"], True, 7.0, None),
        (["x-ratelimit-remaining-tokens: 5000", "x-ratelimit-reset-tokens: 6s"], False, None, None),
        (["x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 6s"], True, 6.0, None),
        (["x-ratelimit-limit-tokens: 90", "x-ratelimit-remaining-tokens: 90"], False, None, 90),
    ],
)
def test_a_429_concerns_everybody_only_if_its_headers_say_so(
    provider: str,
    headers: list[str],
    is_shared: bool,
    retry_after: float | None,
    idle_tokens: int | None,
) -> None:
    """The account's limit must be exhausted, with a time at which it is renewed."""
    error = refusal(provider, status("429 Too Many Requests", *headers))

    assert "provider.rate_limited" == error.code
    assert (is_shared, retry_after, idle_tokens) == (
        error.is_shared,
        error.retry_after,
        error.idle_tokens,
    )


@pytest.mark.parametrize("code", ["429 Too Many Requests", "413 Content Too Large"])
def test_a_request_beyond_the_tokens_per_minute_is_refused_for_good(
    provider: str, code: str
) -> None:
    """It is not waited for, whatever its headers say; another route may take it."""
    why = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 35064."
    headers = ("Retry-After: 30", "x-ratelimit-remaining-tokens: 0")

    error = refusal(provider, status(code, *headers, message=why))

    assert ("provider.invalid_request", True) == (error.code, error.is_of_route)
    too_large = TooLarge(limit_tokens=30000, sent_tokens=35064, is_per_minute=True)
    assert too_large == error.too_large


@pytest.mark.parametrize("is_in_stream", [False, True])
def test_a_conversation_that_is_too_long_is_recognised(provider: str, is_in_stream: bool) -> None:
    """A too long conversation is recognised by status or in the stream, and the same request is not
    repeated.
    """
    why = "prompt is too long: 202095 tokens > 200000 maximum"
    error = {"type": "invalid_request_error", "message": why}
    answer = in_stream(provider, error) if is_in_stream else status("400 Bad Request", message=why)

    failed = refusal(provider, answer)

    assert ("provider.invalid_request", False) == (failed.code, failed.retryable)
    assert TooLarge(limit_tokens=200000, sent_tokens=202095) == failed.too_large


@pytest.mark.parametrize(
    ("answer", "is_of_route"),
    [
        (status("404 Not Found"), True),
        (status("410 Gone"), True),
        (status("400 Bad Request"), False),
        (status("422 Unprocessable Content"), False),
    ],
)
def test_a_model_that_is_not_there_is_the_routes_fault(
    provider: str, answer: Answer, is_of_route: bool
) -> None:
    """Another route may have it; what is wrong with the request is wrong everywhere."""
    error = refusal(provider, answer)

    assert ("provider.invalid_request", False) == (error.code, error.retryable)
    assert is_of_route == error.is_of_route


def test_a_model_may_be_missed_in_the_stream(provider: str) -> None:
    """Proxies begin the answer before they have asked."""
    for told, is_of_route in (
        ({"type": "not_found_error", "message": "no"}, True),
        ({"code": 404, "message": "no"}, True),
        ({"type": "invalid_request_error", "message": "no"}, False),
    ):
        error = refusal(provider, in_stream(provider, told))
        assert ("provider.invalid_request", is_of_route) == (error.code, error.is_of_route)


def test_a_provider_may_name_the_time_to_come_back(provider: str) -> None:
    """`Retry-After` as a date; one that is past is no wait."""
    for seconds, least, most in ((60, 50, 61), (-60, 0, 0)):
        date = email.utils.formatdate(time.time() + seconds, usegmt=True)
        error = refusal(provider, status("429 Too Many Requests", f"Retry-After: {date}"))
        assert error.retry_after is not None and least <= error.retry_after <= most


@pytest.mark.parametrize(
    "message",
    [
        "The model `llama3-70b-8192` has been decommissioned and is no longer supported. Please",
        "/chat/completions: Invalid model name passed in model=gpt-9. Call `/v1/models` to view",
        "gpt-9 is not a valid model ID",
        "Model Not Exist",
        "Invalid model: gpt-9",
        "litellm.BadRequestError: PerplexityException - Invalid model 'sonar-9'. Permitted models",
        "The provided model identifier is invalid.",
        "The provided model doesn't support on-demand throughput.",
        "Publisher Model `projects/p/m` is not servable in region us-central1.",
        "Project `1` is not allowed to use Publisher Model `projects/p/m`",
        "Organization Policy constraint constraints/vertexai.allowedModels violated attempting to",
        "Invocation of model ID m with on-demand throughput isn’t supported. Retry your request",
    ],
)
def test_some_vendors_miss_a_model_with_a_400(provider: str, message: str) -> None:
    """Their words are those of a 404, whether the stream has begun or not."""
    told = {"type": "invalid_request_error", "message": message}
    for answer in (status("400 Bad Request", message=message), in_stream(provider, told)):
        error = refusal(provider, answer)
        assert ("provider.invalid_request", True) == (error.code, error.is_gone)


def test_a_redirect_is_not_followed(provider: str) -> None:
    """A redirect is not followed, not even on the same server."""
    with vendor(status("307 Temporary Redirect", "Location: /elsewhere"), raw(b"")) as fake:
        with pytest.raises(ProviderError) as caught:
            ask(provider, fake.url)
        assert 1 == len(fake.bodies)

    assert ("provider.invalid_request", False) == (caught.value.code, caught.value.retryable)


def test_a_long_complaint_of_the_provider_is_cut(provider: str) -> None:
    """A long message of a provider is cut, and stays readable in an event."""
    error = refusal(provider, status("400 Bad Request", message="x" * 10_000))

    assert len(str(error)) < 600


def test_the_key_is_not_in_what_is_told(provider: str) -> None:
    """Errors do not contain the key, although some servers repeat it."""
    error = refusal(provider, status("401 Unauthorized", message="Wrong key: sk-test-key"))

    assert "Wrong key: [key]" in str(error)
    assert "sk-test-key" not in str(error)


def test_a_complaint_can_be_stored(provider: str) -> None:
    """NUL and lone surrogates are nothing for Postgres, which stores many endings at once."""
    told = {"type": "api_error", "message": "a\x00b\ud83d"}

    error = refusal(provider, in_stream(provider, told)).as_error()

    assert "\0" not in error.message
    assert error.message.encode()
