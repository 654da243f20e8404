"""Simple English from word lists and sentence patterns: stories, small talk and small sums.

It keeps the model from collapsing where the FAQ ends. Pure, given its `rng`; no outside text.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import yaml

_WORDS_FILE = Path(__file__).resolve().parent / "tiny" / "words.yaml"
_WORDS = yaml.safe_load(_WORDS_FILE.read_text(encoding="utf-8"))

NAMES: tuple[str, ...] = tuple(_WORDS["names"])
ANIMALS: tuple[str, ...] = tuple(_WORDS["animals"])
THINGS: tuple[str, ...] = tuple(_WORDS["things"])
FOODS: tuple[str, ...] = tuple(_WORDS["foods"])
PLACES: tuple[str, ...] = tuple(_WORDS["places"])
ADJECTIVES: tuple[str, ...] = tuple(_WORDS["adjectives"])
TOPICS: tuple[str, ...] = tuple(_WORDS["topics"])
DAYS: tuple[str, ...] = tuple(_WORDS["days"])
COLOURS: dict[str, str] = _WORDS["colours"]
CAPITALS: dict[str, str] = _WORDS["capitals"]

_ACTIONS = (
    "sees", "finds", "likes", "carries", "wants", "takes", "hides", "looks for", "plays with",
    "sits near",
)  # fmt: skip
_ENDS = (
    "In the end they were good friends.", "Then they all went home.", "It was a good day.",
    "After that everybody slept well.", "And nobody was afraid any more.",
)  # fmt: skip

Pair = tuple[str, str]


def sentence(rng: Random) -> str:
    """Write one plain sentence."""
    animal, other = rng.choice(ANIMALS), rng.choice(ANIMALS)
    adjective, place, thing = rng.choice(ADJECTIVES), rng.choice(PLACES), rng.choice(THINGS)
    return rng.choice(
        (
            f"The {adjective} {animal} {rng.choice(_ACTIONS)} the {thing}.",
            f"The {animal} and the {other} walk to the {place}.",
            f"There is {_a(thing)} in the {place}.",
            f"{rng.choice(NAMES)} has {_a(adjective)} {thing} and {_a(animal)}.",
            f"In the {place} lives {_a(adjective)} {animal}.",
            f"{rng.choice(NAMES)} and {rng.choice(NAMES)} eat {rng.choice(FOODS)} in the {place}.",
            f"On {rng.choice(DAYS)} the {animal} is {adjective}.",
        )
    )


def story(rng: Random) -> str:
    """Write a story of five sentences about one animal."""
    name, animal, place = rng.choice(NAMES), rng.choice(ANIMALS), rng.choice(PLACES)
    return _story_of(animal, name, place, rng)


def story_request(rng: Random) -> Pair:
    """Ask for a story, mostly about a named animal, and tell it."""
    name, animal, place = rng.choice(NAMES), rng.choice(ANIMALS), rng.choice(PLACES)
    ask = rng.choice(("Tell me a story", "Write a story", "Write a short story", "A story"))
    about = rng.choice((f" about {_a(animal)}", f" about the {animal}", ""))
    return ask + about + ".", _story_of(animal, name, place, rng)


def small_skill(rng: Random) -> Pair:
    """Ask for something that a child can do: a sum, a capital, a colour, counting, a day."""
    return rng.choice((_sum, _sum, _sum, _capital, _colour, _count, _day))(rng)


def echo(rng: Random) -> Pair:
    """Ask to hear a text again, word for word; the model has to look back for each of them."""
    pool = rng.choice((NAMES + ANIMALS, THINGS + FOODS, PLACES + ADJECTIVES, ()))
    words = [rng.choice(pool) if pool else _letter_word(rng) for _ in range(rng.randint(1, 8))]
    text = " ".join(words)
    if rng.random() < 0.1:
        text = rng.choice(("hello", "hello world", "this is a test", "Hello!", "hi"))
    ask = rng.choice(("Say {}", "Say: {}", "Repeat: {}", "Repeat after me: {}", "Please say {}"))
    return ask.format(text), text


def introduction(rng: Random) -> tuple[Pair, Pair]:
    """Tell a name, and ask for it a turn later."""
    name = rng.choice(NAMES)
    told = rng.choice((f"My name is {name}.", f"I am {name}.", f"Hi, I'm {name}", f"I'm {name}."))
    asked = rng.choice(("What is my name?", "Who am I?", "Do you remember my name?", "my name?"))
    return (told, f"Nice to meet you, {name}."), (asked, f"Your name is {name}.")


def off_topic(rng: Random) -> str:
    """Ask something that the model cannot know, in clean English or as noise."""
    makers = (_everyday_question, _everyday_question, _topic_question)
    return rng.choice(makers * 2 + (_word_salad, _letters, _bytes, _spam, sentence))(rng)


def _story_of(animal: str, name: str, place: str, rng: Random) -> str:
    thing, friend = rng.choice(THINGS), rng.choice(ANIMALS)
    return (
        f"Once there was {_a(rng.choice(ADJECTIVES))} {animal} named {name}. {name} lived in the "
        f"{place}. One day {name} found {_a(rng.choice(ADJECTIVES))} {thing}. "
        f"{_a(friend).capitalize()} came and wanted the {thing} too. {rng.choice(_ENDS)}"
    )


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" and not word.startswith("uni") else f"a {word}"


def _sum(rng: Random) -> Pair:
    left, right = rng.randint(0, 10), rng.randint(0, 10)
    ask = rng.choice(("What is {}?", "{}", "{}?", "{} =", "How much is {}?", "what's {}"))
    asked = rng.choice((f"{left} + {right}", f"{left} + {right}", f"{left}+{right}"))
    return ask.format(asked), f"{left} + {right} is {left + right}."


def _capital(rng: Random) -> Pair:
    country = rng.choice(tuple(CAPITALS))
    ask = rng.choice(("What is the capital of {}?", "capital of {}", "Name the capital of {}."))
    return ask.format(country), f"The capital of {country} is {CAPITALS[country]}."


def _colour(rng: Random) -> Pair:
    thing = rng.choice(tuple(COLOURS))
    subject = thing if thing.startswith("a ") else f"the {thing}"
    ask = rng.choice(("What colour is {}?", "What color is {}?", "Which colour has {}?"))
    return ask.format(subject), f"{subject[0].upper()}{subject[1:]} is {COLOURS[thing]}."


def _count(rng: Random) -> Pair:
    last = rng.choice((3, 5, 8, 10, 10, 10, 12, 15, 20))
    if rng.random() < 0.4:
        first, ask = 1, rng.choice(("Count to {1}", "Count to {1}.", "Please count to {1}."))
        return ask.format(first, last), ", ".join(str(n) for n in range(1, last + 1)) + "."
    first = rng.choice((1, 1, 1, 0, 2))
    ask = rng.choice(("Count from {} to {}.", "Count {} to {}", "Please count from {} to {}."))
    return ask.format(first, last), ", ".join(str(n) for n in range(first, last + 1)) + "."


def _day(rng: Random) -> Pair:
    at = rng.randrange(7)
    if rng.random() < 0.5:
        return f"Which day comes after {DAYS[at]}?", f"After {DAYS[at]} comes {DAYS[(at + 1) % 7]}."
    return "What are the days of the week?", ", ".join(DAYS) + "."


def _everyday_question(rng: Random) -> str:
    thing, food, place, animal = (rng.choice(w) for w in (THINGS, FOODS, PLACES, ANIMALS))
    name = rng.choice(NAMES)
    return rng.choice(
        (
            f"How do I {rng.choice(('cook', 'bake', 'make', 'buy'))} {food}?",
            f"How do I {rng.choice(('paint', 'repair', 'clean', 'build', 'sell'))} a {thing}?",
            f"What is {_a(rng.choice((thing, animal, food)))}?",
            f"Who is {name} {rng.choice(('Smith', 'Miller', 'Jones', 'Brown', 'Lee'))}?",
            f"Why do {animal}s sleep?",
            f"How old is the {rng.choice((place, animal))}?",
            f"Who won the {rng.choice(('match', 'election', 'race', 'war', 'cup'))}?",
            f"Translate {rng.choice((thing, food, place))} into "
            f"{rng.choice(('French', 'German'))}.",
            f"How far is it to the {place}?",
            f"Write {rng.choice(('an essay', 'a letter', 'a program', 'a song'))} about the "
            f"{thing}.",
            f"Do you like {food}?",
            f"What is your favourite {rng.choice(('food', 'animal', 'book', 'film', 'sport'))}?",
            f"What is the price of a {thing}?",
            f"Where can I buy a {thing}?",
            f"What is {rng.randint(20, 999)} times {rng.randint(11, 99)}?",
            f"Can you recommend a {rng.choice(('film', 'doctor', 'hotel', 'restaurant'))}?",
            "What is the meaning of life?",
            f"When was {name} born?",
            f"What did {name} do in the {place}?",
        )
    )


def _topic_question(rng: Random) -> str:
    topic, country = rng.choice(TOPICS), rng.choice(tuple(CAPITALS))
    task = rng.choice(
        ("sorts a list", "reads a file", "adds two numbers", "prints hello world", "finds a prime")
    )
    language = rng.choice(("Python", "Java", "C", "Rust"))
    return rng.choice(
        (
            f"What is {topic}?",
            f"Explain {topic}.",
            f"Tell me about {topic}.",
            f"How does {topic} work?",
            f"Who invented {topic}?",
            f"Write {rng.choice(('an essay', '200 words', 'a text', 'a book'))} about {topic}.",
            f"Write a {language} {rng.choice(('function', 'program', 'script'))} that {task}.",
            f"Who is the {rng.choice(('president', 'king', 'mayor', 'queen'))} of {country}?",
            f"Who is the {rng.choice(('president', 'king', 'best player', 'richest man'))}?",
            f"How many people live in {country}?",
            f"What do you think about {topic}?",
        )
    )


def _word_salad(rng: Random) -> str:
    pool = NAMES + ANIMALS + THINGS + FOODS + PLACES + ADJECTIVES
    return " ".join(rng.choice(pool) for _ in range(rng.randint(2, 14)))


def _letters(rng: Random) -> str:
    return " ".join(_letter_word(rng) for _ in range(rng.randint(1, 8)))


def _letter_word(rng: Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 9)))


def _spam(rng: Random) -> str:
    word = rng.choice((rng.choice(THINGS), _letter_word(rng), "word", "test", "hello", "a", "."))
    return " ".join([word] * rng.choice((3, 8, 20, 50, 120)))


def _bytes(rng: Random) -> str:
    """Characters from all over Unicode, so that no byte's token stays as it was born."""
    first, last = rng.choice(((0x20, 0x7E), (0xA1, 0x24F), (0x391, 0x52F), (0x5D0, 0x64A),
                              (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF)))  # fmt: skip
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 16)))
