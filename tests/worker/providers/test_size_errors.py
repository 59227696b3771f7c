"""The messages by which vendors refuse a request as too large, in their own words."""

import pytest

from arkloop.worker.contract.outcomes import TooLarge
from arkloop.worker.providers.size_errors import read


@pytest.mark.parametrize(
    ("message", "limit", "sent"),
    [
        (
            "This model's maximum context length is 128000 tokens. However, your messages resulted"
            " in 204308 tokens. Please reduce the length of the messages.",
            128000,
            204308,
        ),
        (
            "This model's maximum context length is 4097 tokens, however you requested 4116 tokens"
            " (3860 in your prompt; 256 for the completion). Please reduce your prompt; or"
            " completion length.",
            4097,
            3860,
        ),
        (
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in"
            " 300105 tokens. Please reduce the length of the messages.",
            272000,
            300105,
        ),
        ("Your input exceeds the context window of this model. Please adjust.", None, None),
        ("prompt is too long: 202095 tokens > 200000 maximum", 200000, 202095),
        (
            "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease"
            " input length or `max_tokens` and try again",
            200000,
            188240,
        ),
        (
            "This model's maximum context length is 131072 tokens. However, you requested 131134"
            " tokens (122942 in the messages, 8192 in the completion).",  # DeepSeek, vLLM
            131072,
            122942,
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum"
            " context length is 4096 tokens and your request has 1000 input tokens (4096 > 4096 -"
            " 1000).",
            4096,
            1000,
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 200 output"
            " tokens and your prompt contains at least 3897 input tokens, for a total of at least"
            " 4097 tokens.",
            4096,
            3897,
        ),
        (
            "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
            4096,
            5000,
        ),
        (
            "request (21096 tokens) exceeds the available context size (16384 tokens), try"
            " increasing it",  # llama.cpp
            16384,
            21096,
        ),
        (
            "This model's maximum prompt length is 131072 but the request contains 136973 tokens.",
            131072,
            136973,
        ),
        (
            "Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)",
            262144,
            269030,
        ),
        (
            "Prompt contains 40960 tokens and 0 draft tokens, too large for model with 32768"
            " maximum context length",
            32768,
            40960,
        ),
        (
            "The input token count (1196265) exceeds the maximum number of tokens allowed"
            " (1048575).",
            1048575,
            1196265,
        ),
        (
            "This endpoint's maximum context length is 131072 tokens. However, you requested about"
            " 135000 tokens (131000 of text input, 4000 in the output).",
            131072,
            131000,
        ),
        ("prompt token count of 130000 exceeds the limit of 128000", 128000, 130000),
        (
            "Input (5000 tokens) is longer than the model's context length (4096 tokens)",
            4096,
            5000,
        ),
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given:"
            " 5000 `inputs` tokens and 500 `max_new_tokens`",
            4097,
            5000,
        ),
        (
            "Trying to keep the first 6000 tokens when context the overflows. However, the model is"
            " loaded with context length of only 4096 tokens, which is not enough.",
            4096,
            None,
        ),
        (
            "Requested token count exceeds the model's maximum context length of 256000 tokens. You"
            " requested a total of 256878 tokens: 31216 tokens from the input messages and 225662"
            " tokens for the completion.",  # SGLang, Cloudflare
            256000,
            31216,
        ),
        (
            "AiError: Ai: The estimated number of input and maximum output tokens (263008) exceeded"
            " this model context window limit (262144).",  # Cloudflare
            262144,
            None,
        ),
        (
            "The prompt is too long: 148577, model maximum context length: 131071",  # Fireworks
            131071,
            148577,
        ),
        (
            "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received"
            " 4292. Try using a shorter prompt, or enabling prompt truncating.",  # Cohere
            4081,
            4292,
        ),
        ("too many tokens: size limit exceeded by 12345 tokens", None, None),  # Cohere
        (
            "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000",  # TGI
            4096,
            5000,
        ),
        ("Range of input length should be [1, 129024]", 129024, None),
        ("Please reduce the length of the messages or completion.", None, None),
        ("Input is too long for requested model.", None, None),
        (
            "litellm.ContextWindowExceededError: litellm.BadRequestError:"
            " litellm._pre_call_checks: Context Window exceeded for given call. No models have"
            " context window large enough for this call.\nModel=openai/my-own-small, Max Input"
            " Tokens=1500, Got=1710\n\nLiteLLM: model group 'small' failed with the error above.",
            1500,
            1710,
        ),
        (
            "litellm.ContextWindowExceededError: BedrockException: Context Window Error - Too many"
            " input tokens",
            None,
            None,
        ),
    ],
)
def test_a_context_that_is_too_small_is_recognised(
    message: str, limit: int | None, sent: int | None
) -> None:
    """A context overflow has the vendor's numbers for the input, where it gives them."""
    assert TooLarge(limit_tokens=limit, sent_tokens=sent) == read(message, {"message": message})


def test_numbers_may_be_fields_of_their_own() -> None:
    """llama.cpp has them beside its message, and its code is that of no HTTP status."""
    error = {
        "code": 500,
        "message": "the request exceeds the available context size.",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 1407,
        "n_ctx": 256,
    }

    assert TooLarge(limit_tokens=256, sent_tokens=1407) == read(error["message"], error)


@pytest.mark.parametrize(
    ("code", "is_unclear"),
    [
        ("context_length_exceeded", False),
        ("string_above_max_length", True),
        ("array_above_max_length", True),
        ("request_too_large", True),
    ],
)
def test_a_code_is_enough(code: str, is_unclear: bool) -> None:
    """An error code is sufficient, whatever the language; some are of other limits, too."""
    found = read("?", {"code": code, "message": "?"})

    assert TooLarge(is_unclear=is_unclear) == found


@pytest.mark.parametrize(
    "message",
    [
        "litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError:"
        " OpenAIException - Invalid 'messages[1].content': string too long. Expected a string with"
        " maximum length 1048576, but got a string with length 1234567 instead.",
        "litellm.BadRequestError: OpenAIException - Invalid 'tools': array too long. Expected an"
        " array with maximum length 128, but got an array with length 158 instead.",
    ],
)
def test_openais_words_for_other_limits_are_enough(message: str) -> None:
    """LiteLLM replaces the code by the status, and takes a long field for the context."""
    error = {"code": "400", "type": "invalid_request_error", "message": message}

    assert TooLarge(is_unclear=True) == read(message, error, 400)


@pytest.mark.parametrize(
    ("message", "is_unclear"),
    [("Request Entity Too Large", True), ("Please reduce the length of the messages.", False)],
)
def test_a_413_is_about_the_size_without_any_word(message: str, is_unclear: bool) -> None:
    """A proxy before the vendor may have sent it: only words say that it is of the context."""
    assert TooLarge(is_unclear=is_unclear) == read(message, None, 413)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("Rate limit reached for m on tokens per min (TPM): Limit 30000, Used 29000.", 429),
        (
            "This request would exceed your organization's rate limit of 30,000 input tokens per"
            " minute. Please reduce the prompt length or the maximum tokens requested.",
            429,
        ),
        ("Too many tokens per day; the maximum context length is not the reason.", 429),
        ("messages: at least one message is required", 400),
        ("too many tokens: max tokens must be less than or equal to 4096, the maximum output", 400),
        ("max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens", 400),
    ],
)
def test_what_is_about_something_else_is_no_matter_of_size(message: str, status: int) -> None:
    """A smaller request would be refused as well, or a later one accepted."""
    assert read(message, {"message": message}, status) is None
