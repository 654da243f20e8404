"""What a request will probably use, before an engine has counted: learned from those before it."""

from __future__ import annotations

import math

from aibrix_ray.types import Usage

#: What is assumed of a model of which nothing is known yet.
FIRST_BYTES_PER_TOKEN = 4.0
FIRST_OUTPUT = 256.0
#: A new figure counts for at least 1/64 of the mean, and for at most 1/8 at the beginning.
_WEIGHT = 64
_FIRST_WEIGHT = 8


class Estimator:
    """The moving means of one model at one gateway: bytes to a prompt's token, tokens to an answer.

    An estimate is right on the average. What a single request used beyond it, or less, is settled
    when it ends. The means begin anew with the gateway.
    """

    __slots__ = ("_count", "bytes_per_token", "output")

    def __init__(self) -> None:
        self.bytes_per_token = FIRST_BYTES_PER_TOKEN
        self.output = FIRST_OUTPUT
        self._count = _FIRST_WEIGHT

    def prompt_tokens(self, prompt_bytes: int) -> int:
        """Return what a prompt of so many bytes probably comes to."""
        return math.ceil(prompt_bytes / self.bytes_per_token)

    def output_tokens(self, max_output: int | None) -> int:
        """Return what an answer probably comes to; never more than the request allows."""
        mean = math.ceil(self.output)
        return mean if max_output is None or mean < max_output else max(0, max_output)

    def observe(self, prompt_bytes: int, usage: Usage) -> None:
        """Learn from a request that has ended."""
        self._count = min(self._count + 1, _WEIGHT)
        share = 1.0 / self._count
        self.output += (usage.completion_tokens - self.output) * share
        if prompt_bytes and usage.prompt_tokens:
            ratio = prompt_bytes / usage.prompt_tokens
            self.bytes_per_token += (ratio - self.bytes_per_token) * share
