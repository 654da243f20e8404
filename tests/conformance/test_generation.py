"""What the official client gets for what it may ask of a chat, a completion, a response."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.conformance.requests import (
    ARGUMENTS,
    FUNCTION,
    MODEL,
    NAMED,
    QUESTION,
    TOOL,
    chat,
    completion,
    response,
)
from tests.engines.conftest import CONTEXT

pytestmark = [pytest.mark.engine, pytest.mark.slow]


async def ask(client: AsyncOpenAI, text: str = QUESTION, **more: Any) -> ChatCompletion:
    answer: ChatCompletion = await client.chat.completions.create(**known(chat(text, **more)))
    return answer


async def stream(
    client: AsyncOpenAI, text: str = QUESTION, **more: Any
) -> list[ChatCompletionChunk]:
    body = known(chat(text, stream=True, **more))
    return [chunk async for chunk in await client.chat.completions.create(**body)]


def known(body: dict[str, Any]) -> dict[str, Any]:
    """Put what the client has no argument for where it takes it."""
    foreign = ("structured_outputs", "ignore_eos", "top_k")
    extra = {name: body.pop(name) for name in foreign if name in body}
    return body | ({"extra_body": extra} if extra else {})


def text_of(answer: ChatCompletion, choice: int = 0) -> str:
    content = answer.choices[choice].message.content
    assert content is not None
    return content


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


async def test_a_chat(client: AsyncOpenAI) -> None:
    answer = await ask(client, max_tokens=64)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer).startswith("Ray is")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_an_alias_names_the_model_too(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**chat() | {"model": "alias"})
    assert answer.choices[0].message.content


async def test_a_stream_says_what_a_whole_answer_says(client: AsyncOpenAI) -> None:
    whole = await ask(client, max_tokens=24, temperature=0)
    chunks = await stream(
        client, max_tokens=24, temperature=0, stream_options={"include_usage": True}
    )
    assert joined(chunks) == text_of(whole)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(chunks[-1].usage, name) == getattr(whole.usage, name)
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL], "tool_choice": "auto"}])
async def test_each_choice_of_a_stream_finishes_once(
    client: AsyncOpenAI, n: int, tools: dict[str, Any]
) -> None:
    chunks = await stream(client, n=n, temperature=1.0, **tools)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert all("finish_reason" in choice.model_fields_set for choice in choices)
    for index in range(n):
        reasons = [choice.finish_reason for choice in choices if choice.index == index]
        assert reasons[-1] in ("stop", "length", "tool_calls")
        assert set(reasons[:-1]) == {None}


async def test_the_clients_own_stream_helper_is_content(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_completion_tokens=64
    ) as events:
        seen = [event.type async for event in events]
        final = await events.get_final_completion()
    assert seen.count("content.delta") > 3
    assert seen.count("content.done") == 1
    assert final.choices[0].message.content


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_forced_tool_is_called_by_its_schema(
    client: AsyncOpenAI, choice: Any, streamed: bool
) -> None:
    asked = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 90}
    if streamed:
        parts = [
            call
            for chunk in await stream(client, **asked)
            for each in chunk.choices
            for call in each.delta.tool_calls or ()
        ]
        assert parts[0].id
        functions = [part.function for part in parts if part.function]
        names = [function.name for function in functions if function.name]
        arguments = "".join(function.arguments or "" for function in functions)
    else:
        answer = await ask(client, **asked)
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        [call] = calls
        assert call.type == "function"
        assert call.id
        names, arguments = [call.function.name], call.function.arguments
        expected = "tool_calls" if choice == "required" else "stop"  # as OpenAI's own
        assert answer.choices[0].finish_reason == expected
    assert names == ["get_weather"]
    jsonschema.validate(json.loads(arguments), ARGUMENTS)


async def test_a_tools_answer_is_taken_back(client: AsyncOpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages: Any = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "20 degrees"},
    ]
    answer = await client.chat.completions.create(**chat(tools=[TOOL]) | {"messages": messages})
    assert answer.choices[0].message.role == "assistant"


async def test_no_tool_is_called_where_none_may_be(client: AsyncOpenAI) -> None:
    answer = await ask(client, tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None


SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "size": {"enum": ["s", "m", "l"]}},
    "required": ["yes", "size"],
    "additionalProperties": False,
}


async def test_a_json_schema_is_kept(client: AsyncOpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    answer = await ask(client, response_format=form, max_tokens=64)
    jsonschema.validate(json.loads(text_of(answer)), SCHEMA)
    chunks = await stream(client, response_format=form, max_tokens=64)
    jsonschema.validate(json.loads(joined(chunks)), SCHEMA)


async def test_a_json_object_is_an_object(client: AsyncOpenAI) -> None:
    answer = await ask(
        client, "Answer in JSON.", response_format={"type": "json_object"}, max_tokens=200
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text_of(answer)), dict)
    else:
        assert text_of(answer).startswith("{")


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ({"choice": ["red", "green"]}, {"red", "green"}),
        ({"regex": "(yes|no)!"}, {"yes!", "no!"}),
    ],
)
async def test_vllms_structured_outputs_pass(
    client: AsyncOpenAI, asked: dict[str, Any], allowed: set[str]
) -> None:
    assert text_of(await ask(client, structured_outputs=asked)) in allowed


@pytest.mark.parametrize("stop", ["source", ["zzz", "source"]])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_stop_sequence_ends_the_text_and_is_not_in_it(
    client: AsyncOpenAI, stop: Any, streamed: bool
) -> None:
    asked = {"stop": stop, "max_tokens": 32, "temperature": 0}
    undisturbed = text_of(await ask(client, max_tokens=32, temperature=0))
    assert "source" in undisturbed
    if streamed:
        chunks = await stream(client, **asked)
        text, reason = joined(chunks), chunks[-1].choices[0].finish_reason
    else:
        answer = await ask(client, **asked)
        text, reason = text_of(answer), answer.choices[0].finish_reason
    assert text == undisturbed.partition("source")[0]
    assert reason == "stop"


#: As random as it gets; the tiny model is sure of most of what it says.
SAMPLED: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "top_k": -1, "ignore_eos": True}


async def test_the_same_seed_says_the_same(client: AsyncOpenAI) -> None:
    asked = SAMPLED | {"max_tokens": 16}
    texts = [text_of(await ask(client, seed=seed, **asked)) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


async def test_n_choices_have_indices_and_texts_of_their_own(client: AsyncOpenAI) -> None:
    answer = await ask(client, n=4, seed=5, **SAMPLED)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({text_of(answer, i) for i in range(4)}) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * 8


async def test_a_logit_bias_forbids_a_token(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    said = text_of(await ask(client, max_tokens=1, temperature=0))
    text = {"model": MODEL, "prompt": said, "add_special_tokens": False}
    [token] = (await http.post("/tokenize", json=text)).json()["tokens"]
    answer = await ask(client, max_tokens=1, temperature=0, logit_bias={str(token): -100})
    assert text_of(answer) != said


async def test_logprobs(client: AsyncOpenAI) -> None:
    answer = await ask(client, logprobs=True, top_logprobs=3, max_tokens=4)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * 4
    assert "".join(entry.token for entry in logprobs.content) == text_of(answer)
    chunks = await stream(client, logprobs=True, top_logprobs=1, max_tokens=4)
    streamed = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    assert sum(len(each.content or ()) for each in streamed) == 4


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_most_tokens_are_the_most(client: AsyncOpenAI, name: str) -> None:
    body = known(chat(ignore_eos=True))
    del body["max_tokens"]
    body[name] = 5
    answer = await client.chat.completions.create(**body)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}],
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}],
        [{"role": "developer", "content": "Be short."}, {"role": "user", "content": QUESTION}],
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
         {"role": "user", "content": "c"}],
        [{"role": "user", "content": "\N{GRINNING FACE} ﷽ é e\u0301 \u202e \x00 日本語"}],
    ],
    ids=["empty", "system", "developer", "parts", "turns", "unicode"],
)  # fmt: skip
async def test_messages_of_every_kind_are_taken(client: AsyncOpenAI, messages: Any) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    assert answer.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("text", ["\N{GRINNING FACE}", "日本語", "naïve", '"},{"audio":null,"x":"'])
async def test_a_text_comes_back_as_it_went(client: AsyncOpenAI, text: str) -> None:
    form = {"choice": [text]}
    assert text_of(await ask(client, structured_outputs=form, max_tokens=64)) == text
    assert joined(await stream(client, structured_outputs=form, max_tokens=64)) == text


async def test_a_big_prompt_is_taken(client: AsyncOpenAI) -> None:
    answer = await ask(client, "a " * (CONTEXT - 100), max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > CONTEXT // 2


async def test_requests_in_parallel_do_not_mix(client: AsyncOpenAI) -> None:
    words = [f"w{i}x" for i in range(24)]
    answers = await asyncio.gather(
        *(ask(client, word, structured_outputs={"choice": [word]}, max_tokens=32) for word in words)
    )
    assert [text_of(answer) for answer in answers] == words
    assert len({answer.id for answer in answers}) == len(words)


async def test_a_completion_whole_and_streamed(client: AsyncOpenAI) -> None:
    asked = known(completion("Ray is", max_tokens=6, temperature=0))
    whole = await client.completions.create(**asked)
    chunks = [chunk async for chunk in await client.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.object == "text_completion"
    two = await client.completions.create(**completion(["a", "b"], max_tokens=2, n=2))
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    echoed = await client.completions.create(**completion("Ray is", max_tokens=2, echo=True))
    assert echoed.choices[0].text.startswith("Ray is")


async def test_a_response_whole_and_streamed(client: AsyncOpenAI) -> None:
    whole = await client.responses.create(**response(temperature=0.0))
    assert whole.output_text.startswith("Ray is")
    assert whole.status == "incomplete"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 8
    events = [
        e async for e in await client.responses.create(**response(temperature=0.0), stream=True)
    ]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")


async def test_a_responses_tool_is_called(client: AsyncOpenAI) -> None:
    tool: Any = {"type": "function", **FUNCTION, "strict": False}
    answer = await client.responses.create(
        **response(tools=[tool], tool_choice="required", max_output_tokens=90)
    )
    assert {item.type for item in answer.output} == {"function_call"}
