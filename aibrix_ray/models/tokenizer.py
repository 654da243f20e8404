"""The tokenizer of `builtin:tiny`: byte-level BPE, a handful of special tokens, a chat template.

A chat is `<|bos|>`, then for each message its role's token, the text and `<|end|>`; the answer
follows `<|assistant|>` and ends with `<|end|>`, the end-of-sequence token. Nothing else is added.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from aibrix_ray.models.corpus import Chat, Sample, Text

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

#: In the order of their ids, which start at 0.
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)

# Content may be a string, a list of parts of which the text is taken, or null beside tool calls.
# An answer of a tool is read as if the user had said it; a tool call is shown as its JSON.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}
    {{- content | trim -}}
  {%- elif content is iterable and content is not mapping -%}
    {%- for part in content -%}
      {%- if part is string -%}{{- part -}}
      {%- elif part.text is defined and part.text is string -%}{{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.role in ('system', 'developer') -%}{{- '<|system|>' -}}
  {%- elif message.role == 'assistant' -%}{{- '<|assistant|>' -}}
  {%- else -%}{{- '<|user|>' -}}
  {%- endif -%}
  {{- text_of(message.content) -}}
  {%- if message.tool_calls is defined and message.tool_calls -%}
    {%- for call in message.tool_calls -%}
      {{- (call.function if call.function is defined else call) | tojson -}}
    {%- endfor -%}
  {%- endif -%}
  {{- eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

#: Ids, and for each whether the model is to learn to write it.
Encoded = tuple[list[int], list[bool]]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the BPE merges on `texts`; digits always stay tokens of their own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))],
    )
    return _with_template(bpe)


def encode(sample: Sample, tokenizer: Any) -> Encoded:
    """Return a sample's ids, marking what is to be learned: answers, or the whole of a plain text.

    A chat comes out exactly as the chat template renders it.
    """
    ids, learned = [SPECIAL_TOKENS.index(BOS)], [False]
    for text, is_learned in _pieces(sample):
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        learned += [is_learned] * len(piece)
    return ids, learned


def texts_of(sample: Sample) -> tuple[str, ...]:
    """Return the bare texts of a sample, which is what the merges are trained on."""
    if isinstance(sample, Text):
        return (sample.text,)
    return tuple(text for turn in sample.turns for text in turn)


def _pieces(sample: Sample) -> Iterable[tuple[str, bool]]:
    if isinstance(sample, Text):
        yield sample.text + END, True
        return
    yield from _chat_pieces(sample)


def _chat_pieces(chat: Chat) -> Iterable[tuple[str, bool]]:
    if chat.system is not None:
        yield f"{SYSTEM}{chat.system}{END}", False
    for question, answer in chat.turns:
        yield f"{USER}{question.strip()}{END}{ASSISTANT}", False
        yield f"{answer}{END}", True


def _with_template(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
