"""The official OpenAI client, with nothing changed but the address.

In one terminal `make serve`; in another, once it is ready:

    .venv/bin/python examples/openai_client.py

`python examples/openai_client.py URL MODEL` talks to another gateway or another model.
"""

from __future__ import annotations

import sys

import openai


def main(url: str = "http://127.0.0.1:8000", model: str = "default") -> None:
    # The client insists on a key; the gateway asks for none yet.
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    print("models:", ", ".join(served.id for served in client.models.list()))

    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is aibrix_ray?"}],
        temperature=0,
        max_tokens=256,
    )
    print("answer:", answer.choices[0].message.content)
    if answer.usage is not None:
        print("tokens:", answer.usage.prompt_tokens, "in,", answer.usage.completion_tokens, "out")

    print("stream: ", end="")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "How do I start it?"}],
        temperature=0,
        max_tokens=256,
        stream=True,
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()

    try:
        client.chat.completions.create(
            model=f"no-such-{model}", messages=[{"role": "user", "content": "Hello"}]
        )
    except openai.NotFoundError as error:
        print("error:", error.status_code, error.code)


if __name__ == "__main__":
    main(*sys.argv[1:])
