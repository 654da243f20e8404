"""The requests of this suite, as plain JSON."""

from __future__ import annotations

from typing import Any

MODEL = "tiny"
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
EMBEDDING = "/v1/embeddings"
RESPONSES = "/v1/responses"

QUESTION = "What is Ray?"

ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "strict": True, "parameters": ARGUMENTS}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def chat(text: str = QUESTION, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, **more}


def completion(prompt: Any = "Ray is", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": 8, **more}


def response(asked: Any = QUESTION, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": asked, "max_output_tokens": 8, **more}
