"""Our own estimate of how many tokens a text has, for want of the model's tokenizer."""

#: Cautious: English has about four characters a token, code and other languages fewer.
BYTES_PER_TOKEN = 3
#: Tokenizers differ most in numbers: a token for each digit, or for up to three.
_DIGITS = b"0123456789"


def tokens_of_text(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few."""
    data = text.encode("utf-8", "surrogatepass")
    digits = len(data) - len(data.translate(None, _DIGITS))
    return digits - (digits - len(data)) // BYTES_PER_TOKEN


def beginning(text: str, most_tokens: float) -> str:
    """Return as much of the text's beginning as has at most this many tokens."""
    while (tokens := tokens_of_text(text)) > most_tokens:
        # What is left may be denser than the whole.
        text = text[: min(int(len(text) * most_tokens / tokens), len(text) - 1)]
    return text
