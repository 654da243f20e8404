"""Ask a model from Python code on the Ray cluster: no HTTP, the same policies and errors.

In one terminal `make serve`; in another, on the same machine, once it is ready:

    .venv/bin/python examples/python_handle.py

The same lines work inside of a Ray task, an actor or another Serve deployment.
"""

from __future__ import annotations

import asyncio
import sys

import aibrix_ray
from aibrix_ray.errors import ApiError


async def main(model: str = "default") -> None:
    client = aibrix_ray.connect()

    answer = await client.chat(
        model=model,
        messages=[{"role": "user", "content": "What is aibrix_ray?"}],
        temperature=0,
        max_tokens=256,
    )
    print("answer:", answer["choices"][0]["message"]["content"])

    print("stream: ", end="")
    async for event in client.chat_stream(
        model=model,
        messages=[{"role": "user", "content": "How do I start it?"}],
        temperature=0,
        max_tokens=256,
    ):
        for choice in event["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
    print()

    try:
        await client.chat(model=f"no-such-{model}", messages=[])
    except ApiError as error:
        print("error:", error.status, error.code)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
