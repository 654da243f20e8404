"""The language of the simulated engine: a lossless tokenizer, and a model that is a hash.

The next token is a pure function of the model's name, the seed and all token ids before it, so an
answer that broke off can be continued from its ids on any replica and goes on word for word.

A word of the vocabulary is one token, with the space before it; any other text is cut into pieces
of up to three bytes, which makes English about 1.5 tokens a word. `decode(encode(text)) == text`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from math import log

from aibrix_ray.engines.simulated_words import WORDS

END = 0
_END_OF_MESSAGE = 1
_ROLES = {"system": 2, "developer": 2, "user": 3, "assistant": 4, "tool": 5, "function": 5}
_SPECIAL = ("<|end|>", "<|end_of_message|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

_FIRST_WORD = 16
_FIRST_PIECE = 2048  # then 256 pieces of one byte, 2^16 of two, and 2^24 of three
_PIECE_BYTES = 3
_STARTS = (0, _FIRST_PIECE, _FIRST_PIECE + (1 << 8), _FIRST_PIECE + (1 << 8) + (1 << 16))
#: Token ids are below this.
VOCABULARY = _STARTS[_PIECE_BYTES] + (1 << 24)

_TEXTS = tuple(f" {word}" for word in WORDS)
_IDS = {text: _FIRST_WORD + index for index, text in enumerate(_TEXTS)}
assert _FIRST_WORD + len(_TEXTS) < _FIRST_PIECE, "words and pieces overlap"

_SPLIT = re.compile(r" ?[A-Za-z']+| ?[^A-Za-z'\s]+|\s")

#: An answer ends by itself after this many tokens on average.
MEAN_ANSWER_TOKENS = 128


def encode(text: str) -> list[int]:
    """Return the token ids of a text."""
    ids: list[int] = []
    known = _IDS.get
    for part in _SPLIT.findall(text):
        found = known(part)
        if found is not None:
            ids.append(found)
        else:
            ids += _pieces(part.encode("utf-8", "surrogatepass"))
    return ids


def decode(ids: Iterable[int]) -> str:
    """Return the text of token ids; what is not valid UTF-8 is replaced."""
    return b"".join(map(token_bytes, ids)).decode("utf-8", "replace")


def token_bytes(token: int) -> bytes:
    """Return what one token stands for; nothing for an id that has no meaning."""
    if token >= _FIRST_PIECE:
        for length in range(_PIECE_BYTES, 0, -1):
            if token >= _STARTS[length]:
                return (token - _STARTS[length]).to_bytes(length, "big")
    if token >= _FIRST_WORD:
        return word(token).encode()
    return _SPECIAL[token].encode() if token < len(_SPECIAL) else b""


def word(token: int) -> str:
    """Return the text of a token that the model made; `END` has none."""
    index = token - _FIRST_WORD
    return _TEXTS[index] if 0 <= index < len(_TEXTS) else ""


def encode_chat(messages: Iterable[tuple[str, str]]) -> list[int]:
    """Return the prompt of a conversation of (role, content), up to where the assistant speaks."""
    ids: list[int] = []
    for role, content in messages:
        ids.append(_ROLES[role])
        ids += encode(content)
        ids.append(_END_OF_MESSAGE)
    ids.append(_ROLES["assistant"])
    return ids


class TokenSource:
    """Makes the tokens after a prompt, one by one."""

    __slots__ = ("_ends", "_state", "bits")

    def __init__(self, model: str, prompt: Sequence[int], *, seed: str) -> None:
        self._state = blake2b(f"{model}\0{seed}\0".encode(), digest_size=8)
        self._state.update(array("q", prompt).tobytes())
        # An answer does not end before its first word.
        self._ends = word(prompt[-1]) != ""
        #: What the last token was made from; `top_logprobs` reads it.
        self.bits = 0

    def next(self, *, may_end: bool) -> int:
        """Make the next token; `END`, after which there is none, only where it `may_end`."""
        bits = int.from_bytes(self._state.digest(), "little")
        self.bits = bits
        if may_end and self._ends and bits % MEAN_ANSWER_TOKENS == 0:
            return END
        token = _FIRST_WORD + (bits >> 8) % len(_TEXTS)
        self._state.update(token.to_bytes(8, "little"))
        self._ends = True
        return token


def top_logprobs(token: int, bits: int, count: int) -> list[tuple[int, float]]:
    """Return plausible log probabilities: of the made token and of `count` likely others.

    The made one comes first and is the likeliest; all of them together are below certainty.
    """
    share = 0.35 + (bits >> 48) / (1 << 16) * 0.6
    found = [(token, log(share))]
    rest = 1.0 - share
    for step in range(1, count):
        rest *= 0.3
        other = (token - _FIRST_WORD + step * 89) % len(_TEXTS)
        found.append((_FIRST_WORD + other, log(rest)))
    return found


def embed(model: str, ids: Sequence[int], *, dimensions: int) -> list[float]:
    """Return a unit vector that depends on the model and the ids only."""
    state = blake2b(f"{model}\0embedding\0".encode(), digest_size=64)
    state.update(array("q", ids).tobytes())
    raw: list[float] = []
    while len(raw) < dimensions:
        raw += [byte - 127.5 for byte in state.digest()]
        state.update(b"\0")
    raw = raw[:dimensions]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]


def _pieces(data: bytes) -> list[int]:
    found = []
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        found.append(_STARTS[len(piece)] + int.from_bytes(piece, "big"))
    return found
