"""Why a request was not admitted, and what its client is told."""

from __future__ import annotations

from dataclasses import dataclass

from aibrix_ray.errors import ApiError, ExceedsLimit, RateLimited
from aibrix_ray.limits.headers import Headers, duration, retry_header
from aibrix_ray.limits.subject import Kind

_UNITS = {
    Kind.REQUESTS: "requests per minute",
    Kind.TOKENS: "tokens per minute",
    Kind.CONCURRENT: "requests at once",
}
_SHOWN_KEY = 120


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that stood in the way; of several, the one that does so longest.

    Attributes:
        requested: requests or tokens that were asked for.
        remaining: what was left of the limit.
        retry_after_s: when enough will have come back, if nobody else takes it.
        never: the prompt alone is larger than the limit: no waiting will help.
        unsure: the authority did not answer in time, so nobody knows.
        headers: the `x-ratelimit-*` headers of the refusing subjects.
    """

    kind: Kind
    subject: str
    limit: int
    requested: int
    remaining: int
    retry_after_s: float
    never: bool = False
    unsure: bool = False
    headers: Headers = ()

    def error(self) -> ApiError:
        """Return the error to raise: `RateLimited`, or `ExceedsLimit` if it can never pass."""
        name = self.subject if len(self.subject) <= _SHOWN_KEY else self.subject[:_SHOWN_KEY] + "…"
        what = f"{self.limit} {_UNITS[self.kind]} for `{name}`"
        if self.never:
            return ExceedsLimit(
                f"Request too large: its prompt has about {self.requested} tokens, and the limit "
                f"is {what}. Shorten the prompt.",
            )
        if self.unsure:
            text = f"Could not check the limit of {what} in time."
        else:
            text = f"Rate limit reached: {what}; {self.remaining} left, {self.requested} needed."
        return RateLimited(
            f"{text} Please try again in {duration(self.retry_after_s).decode()}.",
            limit=Kind.TOKENS if self.kind is Kind.TOKENS else Kind.REQUESTS,
            retry_after_s=self.retry_after_s,
            headers=(*self.headers, retry_header(self.retry_after_s)),
        )
