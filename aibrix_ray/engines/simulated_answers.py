"""The bytes of the simulated engine's answers, in the shape of OpenAI's API as vLLM writes it.

Every chunk's choice has `finish_reason`, which is null until the choice's last chunk. A plain chunk
is written as bytes around its text, because there is one for each token.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from struct import pack
from typing import Any, Protocol

import msgspec

from aibrix_ray.engines import simulated_tokens as tokens
from aibrix_ray.engines.simulated_generation import Delta, TextSequence
from aibrix_ray.errors import ApiError
from aibrix_ray.types import Usage

DONE = b"data: [DONE]\n\n"

encode = msgspec.json.encode


class AnswerStyle(Protocol):
    """How the answers of one endpoint are written; one object a request.

    Args of the constructor: the answer's id; when it was made, in Unix seconds; the served model;
    how many log probabilities a token has (`None`: none are asked for); whether token ids are
    told, which a resumed request needs.
    """

    def __init__(
        self, answer_id: str, *, created: int, model: str, logprobs: int | None, token_ids: bool
    ) -> None: ...

    def opening(self, sequences: Sequence[TextSequence]) -> bytes:
        """Return the chunks that come before the first token."""
        ...

    def chunk(self, sequence: TextSequence, delta: Delta) -> bytes:
        """Return one chunk of one choice."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the chunk without choices that tells the usage."""
        ...

    def whole(self, sequences: Sequence[TextSequence], usage: Usage) -> bytes:
        """Return the plain answer; nothing of it has been taken from the sequences."""
        ...


class _Style:
    """What both endpoints have in common."""

    chunk_object = ""
    whole_object = ""

    def __init__(
        self, answer_id: str, *, created: int, model: str, logprobs: int | None, token_ids: bool
    ) -> None:
        self._base = {"id": answer_id, "created": created, "model": model}
        self._logprobs = logprobs
        self._token_ids = token_ids
        self._head = self._chunk_head()

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the chunk without choices that tells the usage."""
        return self._head + b'],"usage":' + encode(usage_body(usage)) + b"}\n\n"

    @property
    def _plain(self) -> bool:
        return self._logprobs is None and not self._token_ids

    def _chunk_head(self, **extra: object) -> bytes:
        head = encode({**self._base, "object": self.chunk_object, **extra})
        return b"data: " + head[:-1] + b',"choices":['

    def _event(self, choice: dict[str, Any]) -> bytes:
        return self._head + encode(choice) + b"]}\n\n"

    def _answer(self, choices: list[dict[str, Any]], usage: Usage, **extra: object) -> bytes:
        body = {**self._base, "object": self.whole_object, "choices": choices, **extra}
        return encode({**body, "usage": usage_body(usage), "system_fingerprint": None})

    def _rows(self, delta: Delta) -> list[list[tuple[int, float]]]:
        """Return the likeliest tokens in the place of each made one, which comes first."""
        return [
            tokens.top_logprobs(token, bits, max(1, self._logprobs or 0))
            for token, bits in zip(delta.token_ids, delta.bits, strict=True)
            if token != tokens.END
        ]


class ChatStyle(_Style):
    """/v1/chat/completions."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def opening(self, sequences: Sequence[TextSequence]) -> bytes:
        """Return each choice's chunk with the role; with `token_ids` they tell the prompt's."""
        extra = {"prompt_token_ids": sequences[0].prompt} if self._token_ids else {}
        head = self._chunk_head(**extra)
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return b"".join(
            head + encode({**choice, "index": sequence.choice}) + b"]}\n\n"
            for sequence in sequences
        )

    def chunk(self, sequence: TextSequence, delta: Delta) -> bytes:
        """Return one chunk of one choice."""
        if self._plain and delta.finish_reason is None:
            text = encode(delta.text)
            return b'%b{"index":%d,"delta":{"content":%b},%b}]}\n\n' % (
                self._head,
                sequence.choice,
                text,
                b'"logprobs":null,"finish_reason":null',
            )
        return self._event(
            {
                "index": sequence.choice,
                "delta": {"content": delta.text},
                **self._details(delta),
            }
        )

    def whole(self, sequences: Sequence[TextSequence], usage: Usage) -> bytes:
        """Return the plain answer."""
        choices = [
            {
                "index": sequence.choice,
                "message": {"role": "assistant", "content": delta.text, "refusal": None},
                **self._details(delta),
            }
            for sequence, delta in _final(sequences)
        ]
        extra = {"prompt_token_ids": sequences[0].prompt} if self._token_ids else {}
        return self._answer(choices, usage, **extra)

    def _details(self, delta: Delta) -> dict[str, Any]:
        found = {"logprobs": self._logprobs_of(delta), **_finish(delta)}
        return {**found, "token_ids": delta.token_ids} if self._token_ids else found

    def _logprobs_of(self, delta: Delta) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        content = []
        for row in self._rows(delta):
            entries = [_chat_logprob(token, logprob) for token, logprob in row]
            content.append({**entries[0], "top_logprobs": entries[: self._logprobs]})
        return {"content": content}


class CompletionStyle(_Style):
    """/v1/completions."""

    chunk_object = whole_object = "text_completion"

    def __init__(
        self, answer_id: str, *, created: int, model: str, logprobs: int | None, token_ids: bool
    ) -> None:
        super().__init__(
            answer_id, created=created, model=model, logprobs=logprobs, token_ids=token_ids
        )
        # Characters of the choice's tokens whose logprobs have been told.
        self._offsets: dict[int, int] = {}
        self._prompt_told: set[int] = set()

    def opening(self, sequences: Sequence[TextSequence]) -> bytes:
        """Return nothing: a completion begins with its first token."""
        return b""

    def chunk(self, sequence: TextSequence, delta: Delta) -> bytes:
        """Return one chunk of one choice."""
        if self._plain and delta.finish_reason is None:
            text = encode(delta.text)
            return b'%b{"index":%d,"text":%b,%b}]}\n\n' % (
                self._head,
                sequence.choice,
                text,
                b'"logprobs":null,"finish_reason":null,"stop_reason":null',
            )
        return self._event(self._choice(sequence, delta))

    def whole(self, sequences: Sequence[TextSequence], usage: Usage) -> bytes:
        """Return the plain answer."""
        return self._answer([self._choice(*found) for found in _final(sequences)], usage)

    def _choice(self, sequence: TextSequence, delta: Delta) -> dict[str, Any]:
        found = {
            "index": sequence.choice,
            "text": delta.text,
            "logprobs": self._logprobs_of(sequence.choice, delta),
            **_finish(delta),
        }
        if self._token_ids:
            first = sequence.choice not in self._prompt_told
            self._prompt_told.add(sequence.choice)
            found |= {
                "prompt_token_ids": sequence.prompt if first else None,
                "token_ids": delta.token_ids,
            }
        return found

    def _logprobs_of(self, choice: int, delta: Delta) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        rows = self._rows(delta)
        offsets, offset = [], self._offsets.get(choice, 0)
        for row in rows:
            offsets.append(offset)
            offset += len(tokens.word(row[0][0]))
        self._offsets[choice] = offset
        return {
            "text_offset": offsets,
            "tokens": [tokens.word(row[0][0]) for row in rows],
            "token_logprobs": [row[0][1] for row in rows],
            "top_logprobs": [{tokens.word(token): value for token, value in row} for row in rows],
        }


def error_body(error: ApiError) -> bytes:
    """Return the error as OpenAI's JSON."""
    return encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def embeddings_body(
    vectors: Sequence[list[float]], *, model: str, usage: Usage, base64: bool
) -> bytes:
    """Return the answer of /v1/embeddings."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _packed(vector) if base64 else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return encode({"object": "list", "data": data, "model": model, "usage": told})


def models_body(model: str, *, created: int, max_model_len: int) -> bytes:
    """Return the answer of /v1/models."""
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "aibrix_ray",
        "root": model,
        "parent": None,
        "max_model_len": max_model_len,
    }
    return encode({"object": "list", "data": [card]})


def _final(sequences: Sequence[TextSequence]) -> list[tuple[TextSequence, Delta]]:
    found = []
    for sequence in sequences:
        delta = sequence.take()
        assert delta is not None, f"{sequence} was told before"
        found.append((sequence, delta))
    return found


def _finish(delta: Delta) -> dict[str, Any]:
    return {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}


def _packed(vector: list[float]) -> str:
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()


def _chat_logprob(token: int, logprob: float) -> dict[str, Any]:
    text = tokens.word(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
