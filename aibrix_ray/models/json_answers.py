"""Small JSON objects and the requests for them, so that structured output comes to an end.

Under a schema the engine allows only what fits; a model that never saw JSON would then write blanks
or one endless string. Most objects are those of `json.dumps`, with one blank after `:` and `,`; a
few have more or fewer blanks, so that a value is found after any of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

from aibrix_ray.models import grammar

Json = str | int | float | bool | None | list[Any] | dict[str, Any]

_FIELDS: dict[str, Callable[[Random], Json]] = {
    "name": lambda rng: rng.choice(grammar.NAMES),
    "age": lambda rng: rng.randint(1, 99),
    "city": lambda rng: rng.choice(tuple(grammar.CAPITALS.values())),
    "country": lambda rng: rng.choice(tuple(grammar.CAPITALS)).removeprefix("the "),
    "colour": lambda rng: rng.choice(tuple(grammar.COLOURS.values())),
    "color": lambda rng: rng.choice(tuple(grammar.COLOURS.values())),
    "animal": lambda rng: rng.choice(grammar.ANIMALS),
    "food": lambda rng: rng.choice(grammar.FOODS),
    "title": lambda rng: f"The {rng.choice(grammar.ADJECTIVES)} {rng.choice(grammar.ANIMALS)}",
    "description": grammar.sentence,
    "email": lambda rng: f"{rng.choice(grammar.NAMES).lower()}@example.com",
    "id": lambda rng: rng.randint(1, 999),
    "count": lambda rng: rng.randint(0, 20),
    "price": lambda rng: rng.randint(1, 99) + rng.choice((0.5, 0.25, 0.75)),
    "score": lambda rng: rng.randint(0, 9) / 10,
    "active": lambda rng: rng.random() < 0.5,
    "ok": lambda rng: rng.random() < 0.7,
    "parent": lambda rng: None,
    "tags": lambda rng: rng.sample(grammar.ADJECTIVES, rng.randint(1, 3)),
    "items": lambda rng: rng.sample(grammar.THINGS, rng.randint(1, 3)),
    "owner": lambda rng: {"name": rng.choice(grammar.NAMES)},
    "address": lambda rng: {"city": rng.choice(tuple(grammar.CAPITALS.values()))},
    "day": lambda rng: rng.choice(grammar.DAYS),
}

_ASK = (
    "Give me a JSON object with {}.", "Give me JSON with {}", "Return a JSON object with {}.",
    "Write a JSON object with the keys {}.", "Answer with a JSON object that has {}.",
    "JSON with {} please", "Generate JSON: {}", "Make a JSON object with the fields {}.",
)  # fmt: skip


def json_request(rng: Random) -> grammar.Pair:
    """Ask for a JSON object and give it."""
    return rng.choice((_with_keys, _with_keys, _odd_keys, _odd_keys, _person, _extract))(rng)


def json_of(answer: str, rng: Random) -> tuple[str, str]:
    """Return a system prompt that asks for JSON, and `answer` in that form."""
    key = rng.choice(("answer", "answer", "text", "reply", "message"))
    system = rng.choice(('Answer as JSON with the key "{}".', "Reply in JSON. Use the key {}."))
    return system.format(key), json.dumps({key: answer}, ensure_ascii=False)


def json_anyway(rng: Random) -> str:
    """Make an object that nobody asked for, as an engine's schema may force one."""
    keys = rng.choice((("name", "age"), tuple(rng.sample(tuple(_FIELDS), rng.randint(1, 4)))))
    return _dump(keys, rng)


def _with_keys(rng: Random) -> grammar.Pair:
    keys = rng.sample(tuple(_FIELDS), rng.choice((1, 2, 2, 3, 3, 4, 5)))
    if rng.random() < 0.2:
        keys = rng.choice((["name", "age"], ["name", "city"], ["name", "age", "city"]))
    return rng.choice(_ASK).format(_listed(keys, rng)), _dump(keys, rng)


def _odd_keys(rng: Random) -> grammar.Pair:
    pool = grammar.THINGS + grammar.PLACES
    keys = rng.sample(pool, rng.randint(1, 4))
    if rng.random() < 0.4:
        keys = [f"{key}_{rng.choice((*pool, *_FIELDS))}" for key in keys]
    row = {key: _any_value(rng) for key in keys}
    return rng.choice(_ASK).format(_listed(keys, rng)), _spaced(row, rng)


def _any_value(rng: Random) -> Json:
    """Make a value that its key does not foretell, as schemas are free to ask for."""
    words = grammar.ADJECTIVES + grammar.THINGS + grammar.NAMES
    flat: tuple[Json, ...] = (
        rng.choice(words),
        f"{rng.choice(words)} {rng.choice(words)}",
        rng.randint(0, 50),
        rng.randint(100, 3000),
        rng.randint(0, 99) / 10,
        rng.random() < 0.5,
    )
    draw = rng.random()
    if draw < 0.65:
        return rng.choice(flat)
    if draw < 0.85:
        items = range(rng.randint(0, 3))
        rows = [{rng.choice(words).lower(): rng.choice(flat)} for _ in items]
        return rng.choice(
            ([rng.choice(words) for _ in items], [rng.randint(0, 9) for _ in items], rows)
        )
    return {word.lower(): rng.choice(flat) for word in rng.sample(words, rng.randint(1, 2))}


def _person(rng: Random) -> grammar.Pair:
    ask = rng.choice(
        (
            "Describe a person as JSON.",
            "Give me a person in JSON.",
            "Invent a person. Answer in JSON.",
            "Generate a user profile as JSON.",
            "Give me an example of JSON.",
            "Write some JSON.",
        )
    )
    return ask, _dump(("name", "age"), rng)


def _extract(rng: Random) -> grammar.Pair:
    name, age = rng.choice(grammar.NAMES), rng.randint(1, 99)
    fact = rng.choice((f"{name} is {age} years old.", f"{name} is {age}.", f"{name}, aged {age}."))
    ask = rng.choice(("Extract name and age as JSON: {}", "{} Write this as JSON.", "As JSON: {}"))
    return ask.format(fact), json.dumps({"name": name, "age": age})


def _listed(keys: list[str], rng: Random) -> str:
    if len(keys) == 1:
        return keys[0]
    return ", ".join(keys[:-1]) + rng.choice((" and ", ", ", " and ")) + keys[-1]


def _dump(keys: tuple[str, ...] | list[str], rng: Random) -> str:
    return _spaced({key: _FIELDS[key](rng) for key in keys}, rng)


def _spaced(row: dict[str, Json], rng: Random) -> str:
    """Write a row as `json.dumps` does, or with blanks where nobody expects them.

    A blank never follows a closing quote, so that after a key there is only the colon to write.
    """
    draw = rng.random()
    if draw < 0.06:
        return json.dumps(row, separators=(",", ":"))
    text = json.dumps(row)
    if draw < 0.4:
        after = rng.choice((": ", ": ", ": ", ", ", "[", "{"))
        spots = [m.end() for m in re.finditer(re.escape(after), text)]
        if spots:
            at = rng.choice(spots)
            return text[:at] + " " * rng.choice((1, 1, 2, 3, 5, 8)) + text[at:]
    return text
