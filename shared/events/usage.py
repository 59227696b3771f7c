"""Tokens that model calls have used, as events and bills have them."""

from dataclasses import dataclass, field

#: More than any run can use; fits every column, also when it is added up.
MAX_TOKENS = 10**12
TOKEN_FIELDS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
#: Left out where they are 0: most models have none.
RARE_TOKEN_FIELDS = frozenset({"cache_write_tokens", "reasoning_tokens"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one model call, or of many added up.

    Cache reads and writes are part of `input_tokens`, reasoning is part of
    `output_tokens`. `source` is `reported` only if every call was reported by
    its provider. `cache_write_1h_tokens` are the part of the cache writes that
    is kept for longer, at a higher price: for an hour at Anthropic, for 12 at
    OpenAI. It counts for the cost of a call and is not stored.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: str = "reported"
    cache_write_1h_tokens: int = 0
    #: How fast the vendor processed one call, in its words: `fast`, `priority`, `flex`. It counts
    #: for the cost of the call and is not stored; a sum has none.
    speed: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        # Providers report what they like; nonsense must not keep a run from being stored.
        for name in TOKEN_FIELDS:
            tokens = min(max(int(getattr(self, name) or 0), 0), MAX_TOKENS)
            object.__setattr__(self, name, tokens)
        read = min(self.cache_read_tokens, self.input_tokens)
        written = min(self.cache_write_tokens, self.input_tokens - read)
        object.__setattr__(self, "cache_read_tokens", read)
        object.__setattr__(self, "cache_write_tokens", written)
        for_longer = min(max(self.cache_write_1h_tokens, 0), written)
        object.__setattr__(self, "cache_write_1h_tokens", for_longer)
        reasoning = min(self.reasoning_tokens, self.output_tokens)
        object.__setattr__(self, "reasoning_tokens", reasoning)

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            source="estimated" if "estimated" in (self.source, other.source) else "reported",
        )
