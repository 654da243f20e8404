"""`aibrix-ray chat`: talk to a served model from a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import typer

from aibrix_ray.errors import AibrixRayError

Messages = list[dict[str, str]]


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""
    app.command("chat")(chat)


def chat(
    prompt: Annotated[str, typer.Argument(help="Ask this and leave; without it, talk.")] = "",
    url: Annotated[str, typer.Option(help="Where the gateway is.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Model or alias; default: the first served.")] = "",
    api_key: Annotated[
        str, typer.Option(help="API key, where the gateway wants one; or $OPENAI_API_KEY.")
    ] = "",
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
) -> None:
    """Talk to a model; the answer appears as it is generated. Ctrl-D or `/quit` ends it."""
    key = api_key or os.environ.get("OPENAI_API_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(600.0)) as client:
        model = model or _first_model(client)
        if prompt:
            _turn(client, model, [{"role": "user", "content": prompt}], max_tokens)
            return
        typer.echo(f"Talking to {model} at {url}; /quit ends.")
        messages: Messages = []
        for line in _lines():
            messages.append({"role": "user", "content": line})
            answer = _turn(client, model, messages, max_tokens)
            messages.append({"role": "assistant", "content": answer})


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if line in ("/quit", "/exit"):
            return
        if line:
            yield line


def _first_model(client: httpx.Client) -> str:
    try:
        answer = client.get("/v1/models")
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise AibrixRayError(
            f"no gateway at {client.base_url} ({error}); start one: aibrix-ray serve FILE"
        ) from error
    models = answer.json()["data"]
    if not models:
        raise AibrixRayError("the gateway serves no model yet; see: aibrix-ray status")
    return str(models[0]["id"])


def _turn(client: httpx.Client, model: str, messages: Messages, max_tokens: int) -> str:
    """Ask once, print the answer as it comes, and return it."""
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    parts = []
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise AibrixRayError(_message(json.loads(answer.read())))
            for event in _events(answer):
                text = _text(event)
                parts.append(text)
                typer.echo(text, nl=False)
    except httpx.HTTPError as error:
        raise AibrixRayError(f"the answer broke: {error}") from error
    typer.echo()
    return "".join(parts)


def _events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise AibrixRayError(_message(event))
            yield event


def _text(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _message(content: Any) -> str:
    try:
        return str(content["error"]["message"])
    except (KeyError, TypeError):
        return str(content)
