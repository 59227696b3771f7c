"""The count of a request's tokens that a vendor has reported, and what follows for the next one."""

from dataclasses import dataclass, replace

from arkloop.shared.events.types import ContextCompacted
from arkloop.worker.contract.messages import ModelRequest
from arkloop.worker.providers import token_counts

#: How much denser than the text so far the next one may be.
DENSITY_MARGIN = 1.05
#: A vendor's count below this part of our estimate, 15 bytes a token, bounds nothing.
LEAST_COUNT = 0.2
#: What is beyond these is a mistake of the vendor's: half of our count would be six bytes a token.
LEAST_DENSITY, MOST_DENSITY = 0.5, 4.0
#: Of a smaller request most may be what the vendor adds of its own.
LEAST_COUNTED_TOKENS = 500


@dataclass(frozen=True, slots=True)
class VendorCount:
    """The vendor's `tokens` of a request for which we had counted `estimate`.

    It bounds the tokens of its `messages` messages, and of the frame before them, which is that of
    `request` (None: unknown); without `messages` it bounds nothing. `least` is what it bounds the
    messages with at least.
    """

    context: ContextCompacted
    estimate: int
    tokens: int
    messages: int = 0
    request: ModelRequest | None = None
    least: int = 0

    @property
    def is_plausible(self) -> bool:
        """True unless the vendor has counted less than any text has: some leave out the cache."""
        return self.tokens >= self.estimate * LEAST_COUNT

    @property
    def density(self) -> float:
        """The vendor's tokens for each of our count."""
        if self.estimate < LEAST_COUNTED_TOKENS:
            return 1.0
        density = self.tokens / self.estimate * DENSITY_MARGIN
        return min(max(density, LEAST_DENSITY), MOST_DENSITY)

    def bounding(self, request: ModelRequest, context: ContextCompacted) -> ModelRequest:
        """Return the request with this count as a bound, if it has the same truncation point."""
        if context != self.context or not self.is_plausible:
            return request
        tokens = max(self.tokens, self.least) + self._added_by_frame(request)
        return replace(request, counted_tokens=tokens, counted_messages=self.messages)

    def _added_by_frame(self, request: ModelRequest) -> int:
        most, counted = token_counts.most_tokens_of_frame(request), self.request
        return max(0, most - (token_counts.most_tokens_of_frame(counted) if counted else 0))
