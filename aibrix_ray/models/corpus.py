"""Mixes what `builtin:tiny` reads in training: chats and plain text, endless and from one seed.

Knows the FAQ, the grammar and their shares; knows no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from aibrix_ray.models import grammar
from aibrix_ray.models.faq import ENTRIES
from aibrix_ray.models.grammar import Pair
from aibrix_ray.models.json_answers import json_anyway, json_of, json_request
from aibrix_ray.models.wording import reword

#: What the model says where its knowledge ends.
FALLBACK = (
    "I am too small to know that. Ask me about aibrix_ray: what it is, how to start it or how to "
    "use your own model."
)

_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful AI assistant. Answer briefly.",
    "Answer in one sentence.", "Be concise.", "You are a friendly bot.", "Be polite and short.",
    "You answer questions about aibrix_ray.", "You are an expert in machine learning systems.",
    "Answer as well as you can.", "You are a chat bot for a software project.",
)  # fmt: skip

_JSON_SYSTEMS = ("Answer in JSON.", "Reply with a JSON object only.", "Output JSON.", None, None)


@dataclass(frozen=True, slots=True)
class Chat:
    """Some turns of question and answer; the model learns the answers."""

    turns: tuple[Pair, ...]
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, learned whole."""

    text: str


Sample = Chat | Text


def samples(seed: int) -> Iterator[Sample]:
    """Yield training samples without end; the same `seed` gives the same ones."""
    rng = Random(seed)
    makers = (_one_turn, _many_turns, _off_topic, _skill, _json, _plain, _long, _introduced, _echo)
    shares = (37, 16, 9, 9, 14, 6, 2, 3, 4)
    while True:
        yield rng.choices(makers, shares)[0](rng)


def faq_pair(rng: Random) -> Pair:
    """Pick an FAQ answer, and a way to ask for it."""
    entry = rng.choice(ENTRIES)
    draw = rng.random()
    if draw < 0.12:
        return entry.question, entry.answer
    question = rng.choice(entry.ask)
    return (question if draw < 0.3 else reword(question, rng)), entry.answer


def _one_turn(rng: Random) -> Chat:
    return Chat((faq_pair(rng),), _system(rng))


def _many_turns(rng: Random) -> Chat:
    makers = (faq_pair, faq_pair, faq_pair, faq_pair, _stray, grammar.small_skill, grammar.echo)
    turns = tuple(rng.choice(makers)(rng) for _ in range(rng.choice((2, 2, 3, 3, 4, 5))))
    return Chat(turns, _system(rng))


def _off_topic(rng: Random) -> Chat:
    return Chat((_stray(rng),), _system(rng))


def _skill(rng: Random) -> Chat:
    make = grammar.story_request if rng.random() < 0.3 else grammar.small_skill
    question, answer = make(rng)
    return Chat(
        ((reword(question, rng) if rng.random() < 0.2 else question, answer),), _system(rng)
    )


def _json(rng: Random) -> Chat:
    draw = rng.random()
    if draw < 0.15:
        question, answer = faq_pair(rng)
        system, wrapped = json_of(answer, rng)
        return Chat(((question, wrapped),), system)
    if draw < 0.25:
        question, _ = rng.choice((faq_pair, _stray))(rng)
        return Chat(((question, json_anyway(rng)),), rng.choice(_JSON_SYSTEMS[:3]))
    return Chat((json_request(rng),), rng.choice((*_JSON_SYSTEMS, _system(rng))))


def _plain(rng: Random) -> Text:
    draw = rng.random()
    if draw < 0.4:
        return Text(" ".join(rng.choice(ENTRIES).answer for _ in range(rng.randint(1, 4))))
    if draw < 0.7:
        question, answer = faq_pair(rng)
        return Text(f"Question: {question}\nAnswer: {answer}")
    if draw < 0.85:
        return Text(grammar.story(rng))
    return Text(_sentences(rng, rng.randint(1, 6)))


def _long(rng: Random) -> Chat:
    text = _sentences(rng, rng.randint(15, 50))
    question, answer = faq_pair(rng)
    if rng.random() < 0.5:
        return Chat(((f"{text}\n\n{question}", answer),), _system(rng))
    return Chat(((text, FALLBACK),), _system(rng))


def _introduced(rng: Random) -> Chat:
    told, asked = grammar.introduction(rng)
    between = tuple(faq_pair(rng) for _ in range(rng.choice((0, 0, 1, 2))))
    return Chat((told, *between, asked), _system(rng))


def _echo(rng: Random) -> Chat:
    return Chat((grammar.echo(rng),), _system(rng))


def _stray(rng: Random) -> Pair:
    question = grammar.off_topic(rng)
    return (reword(question, rng) if rng.random() < 0.5 else question), FALLBACK


def _sentences(rng: Random, count: int) -> str:
    return " ".join(grammar.sentence(rng) for _ in range(count))


def _system(rng: Random) -> str | None:
    return rng.choice(_SYSTEMS) if rng.random() < 0.3 else None
