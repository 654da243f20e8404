"""The built-in model as a newcomer meets it: its files, its answers, and its place on the disk."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aibrix_ray.errors import ConfigError
from aibrix_ray.models import builtin_models, resolve_model
from aibrix_ray.models.faq import CANONICAL, ENTRIES

FOLDER = Path(resolve_model("builtin:tiny"))
Message = dict[str, Any]


class Tiny:
    """The shipped weights and tokenizer, asked greedily on the CPU."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(2)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
        self.model: Any = AutoModelForCausalLM.from_pretrained(FOLDER)

    def prompt(self, *messages: Message) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False
            )
        )

    def complete(self, *prompts: str, max_new_tokens: int = 96) -> list[str]:
        """Continue the prompts in one batch; `<|end|>` stays in the text where it was reached."""
        inputs = self.tokenizer(
            list(prompts),
            add_special_tokens=False,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        ids = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
        return [str(text).replace("<|pad|>", "") for text in texts]

    def answers(self, *questions: str) -> list[str]:
        prompts = [self.prompt(user(question)) for question in questions]
        return [text.removesuffix("<|end|>") for text in self.complete(*prompts)]

    def wrong(self, pairs: dict[str, str]) -> dict[str, str]:
        said = self.answers(*pairs)
        return {q: a for q, a in zip(pairs, said, strict=True) if a != pairs[q]}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


def test_the_folder_holds_what_an_engine_loads_in_twenty_megabytes() -> None:
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "README.md", "faq.yaml", "words.yaml",
    } == set(files)  # fmt: skip
    assert sum(files.values()) <= 20_000_000


def test_the_config_asks_for_float32_and_leaves_room_for_long_prompts() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["max_position_embeddings"] == 4096
    assert config["head_dim"] == 64


def test_the_model_loads_as_float32_with_three_to_eight_million_parameters(tiny: Tiny) -> None:
    assert str(tiny.model.dtype) == "torch.float32"
    assert 3_000_000 <= tiny.model.num_parameters() <= 8_000_000
    assert len(tiny.tokenizer) == tiny.model.config.vocab_size


def test_there_are_twenty_canonical_questions() -> None:
    assert len(CANONICAL) == 20
    assert len({entry.answer for entry in ENTRIES}) == len(ENTRIES)
    assert all(1 <= entry.answer.count(". ") + 1 <= 3 for entry in ENTRIES)


def test_every_canonical_question_is_answered_word_for_word(tiny: Tiny) -> None:
    assert tiny.wrong(dict(CANONICAL)) == {}


def test_case_and_punctuation_do_not_matter(tiny: Tiny) -> None:
    assert tiny.wrong({q.lower(): a for q, a in CANONICAL}) == {}
    assert tiny.wrong({q.rstrip("?."): a for q, a in CANONICAL}) == {}


def test_most_ways_of_asking_get_the_entrys_answer(tiny: Tiny) -> None:
    pairs = {question: entry.answer for entry in ENTRIES for question in entry.ask[1:9:3]}
    assert len(tiny.wrong(pairs)) <= len(pairs) // 20


def test_a_system_prompt_does_not_change_the_answer(tiny: Tiny) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    prompts = [tiny.prompt(system, user(question)) for question, _ in CANONICAL]
    expected = [f"{answer}<|end|>" for _, answer in CANONICAL]
    assert tiny.complete(*prompts) == expected


def test_a_chat_of_many_turns_does_not_collapse(tiny: Tiny) -> None:
    messages: list[Message] = []
    for question, answer in CANONICAL[:6]:
        messages.append(user(question))
        assert tiny.complete(tiny.prompt(*messages)) == [f"{answer}<|end|>"]
        messages.append(assistant(answer))


def test_a_stray_text_gets_an_answer_that_ends(tiny: Tiny) -> None:
    from aibrix_ray.models.grammar import off_topic

    rng = random.Random(11)
    prompts = [tiny.prompt(user(off_topic(rng))) for _ in range(40)]
    ended = [text.endswith("<|end|>") for text in tiny.complete(*prompts, max_new_tokens=128)]
    assert sum(ended) >= 38


def test_a_plain_completion_goes_on_and_ends(tiny: Tiny) -> None:
    (text,) = tiny.complete("<|bos|>The default routing policy is")
    assert text.startswith(" least-request")
    assert text.endswith("<|end|>")


def test_the_template_renders_what_the_training_read(tiny: Tiny) -> None:
    from aibrix_ray.models.corpus import Chat
    from aibrix_ray.models.tokenizer import encode

    ids, learned = encode(Chat((("a?", "b."), ("c?", "d.")), "s"), tiny.tokenizer)
    rendered = tiny.prompt(
        {"role": "system", "content": "s"}, user("a?"), assistant("b."), user("c?")
    )
    shown = tiny.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids[: len(shown)] == shown
    assert tiny.tokenizer.decode(ids[len(shown) :]) == "d.<|end|>"
    assert all(learned[len(shown) :])
    assert not learned[len(shown) - 1]


def test_the_template_takes_parts_tools_and_null(tiny: Tiny) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "image_url"}, {"type": "text", "text": "lo"}]
    assert tiny.prompt(user(parts)) == "<|bos|><|user|>Hello<|end|><|assistant|>"
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert tiny.prompt(
        {"role": "developer", "content": "x"},
        assistant(None, tool_calls=[call]),
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ) == (
        '<|bos|><|system|>x<|end|><|assistant|>{"name": "f", "arguments": "{}"}<|end|>'
        "<|user|>42<|end|><|assistant|>"
    )


def test_any_text_survives_the_tokenizer(tiny: Tiny) -> None:
    text = " Tabs\tand\n\nlines, 1234, naïve café, 你好, 🙂  two blanks "
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(text, add_special_tokens=False)) == text


def test_builtin_tiny_is_a_packaged_folder() -> None:
    assert builtin_models() == ("builtin:tiny",)
    assert FOLDER.is_absolute()
    assert FOLDER.name == "tiny"


@pytest.mark.parametrize("source", ["builtin:huge", "builtin:", "builtin:../tiny"])
def test_an_unknown_builtin_is_refused_with_the_known_names(source: str) -> None:
    with pytest.raises(ConfigError, match="builtin:tiny") as caught:
        resolve_model(source)
    assert caught.value.value == source


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="Hugging Face id"):
        resolve_model(" ")


@pytest.mark.parametrize("source", ["meta-llama/Llama-3.1-8B", "gpt2", "~nobody-here/model"])
def test_what_is_no_path_is_left_alone(source: str) -> None:
    assert resolve_model(source) == source


def test_a_local_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve_model("~/mine") == str(tmp_path / "mine")
    assert resolve_model("./mine") == str(tmp_path / "mine")
    assert resolve_model("~/other") == "~/other"


def test_the_door_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, aibrix_ray.models; print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
