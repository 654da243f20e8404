"""Asks one question in many ways: other words, other case, typing errors. Pure, given its `rng`.

The FAQ holds some ten questions an answer; what a small model needs is thousands. Each function
below loosens one habit of careful writing, and `reword` applies a random few of them.
"""

from __future__ import annotations

import re
from random import Random

PROJECT = "aibrix_ray"

_PROJECT_NAMES = (
    "aibrix-ray", "aibrix ray", "AIBrix Ray", "Aibrix_ray", "aibrixray", "this project",
    "the project", "this framework", "this software", "this",
)  # fmt: skip

# The openings within a group ask the same; a question that has one may get any other.
_OPENINGS = (
    ("How do I ", "How can I ", "How would I ", "How to ", "How does one ", "How should I ",
     "How do you ", "How do we ", "How can you ", "How could I ", "Tell me how to ",
     "Show me how to ", "Explain how to ", "What is the way to ", "What do I do to ",
     "I want to ", "I would like to ", "I need to ", "Is there a way to ", "What must I do to "),
    ("What is ", "What's ", "Whats ", "What exactly is ", "Explain ", "Define ", "Describe ",
     "Tell me about ", "Can you explain ", "Could you explain ", "What do you mean by ",
     "What do you know about ", "I do not understand ", "Please explain ", "Tell me what is ",
     "What about "),
    ("What are ", "Explain ", "Tell me about ", "Describe ", "Tell me what are "),
    ("Which ", "What ", "Tell me which ", "Tell me what "),
    ("Can I ", "Could I ", "May I ", "Is it possible to ", "Am I able to ", "Can you ", "Can one ",
     "Is there a way to ", "How can I ", "I want to ", "Do you know if I can "),
    ("Does it ", "Will it ", "Does aibrix_ray ", "Can it ", "Do you know if it would "),
    ("Do I need ", "Do you need ", "Will I need ", "Must I have ", "Do I require ", "Do we need ",
     "Is there a need for "),
    ("Where is ", "Where can I find ", "Where do I find ", "Where can I see ", "Show me "),
    ("Where are ", "Where can I find ", "Where do I find ", "Where can I see ", "Show me "),
    ("What happens when ", "What happens if ", "What if ", "And if ", "What will happen when ",
     "What does it do when "),
    ("Why do I get ", "Why am I getting ", "I get ", "Why did I get ", "I am getting "),
    ("What does error ", "What is error ", "What does status ", "Explain error ", "I see error "),
    ("Who are you", "Who r u", "Who are u", "So who are you", "Who is this", "Who might you be"),
    ("Tell me ", "Please tell me ", "Can you tell me ", "Could you tell me ", "Say "),
    ("Why is ", "What is the reason that ", "How come "),
)  # fmt: skip

_SYNONYMS = (
    ("start", "launch", "run", "boot", "bring up", "fire up"), ("server", "service", "system"),
    ("mean", "stand for"), ("need", "require"), ("supported", "available", "possible", "there"),
    ("large", "big", "huge"), ("stop", "end", "halt", "shut down", "terminate"),
    ("engine", "backend"), ("default", "standard", "normal"), ("licence", "license"),
    ("change", "modify", "replace", "switch"), ("use", "try", "run", "serve"),
    ("my own", "a custom", "my", "another", "a different"), ("policy", "strategy", "algorithm"),
    ("dies", "crashes", "fails", "goes down", "is killed"), ("made", "created", "built", "trained"),
    ("call", "use", "query", "access", "reach"), ("from", "in", "with"), ("on", "in", "at"),
    ("see", "find", "get", "view"), ("list", "show", "print"), ("listen", "run", "serve"),
    ("send", "make", "post"), ("compatible with", "like", "a drop-in for"), ("here", "in it"),
    ("it", "this", "the thing", "aibrix_ray", "everything", "that"),
    ("do", "do here", "do exactly"), ("error", "status", "code", "HTTP"),
)  # fmt: skip

_BEFORE = (
    "Hi, ", "Hello, ", "Hello! ", "Hey, ", "Hi! ", "Please, ", "Quick question: ", "So, ", "OK, ",
    "Sorry, ", "Excuse me, ", "And ", "One more question: ", "I have a question. ", "Well, ",
    "Now ", "Just curious, ", "I am new here. ", "Good morning. ", "Question: ", "Thanks. ",
    "Can you tell me: ", "Could you tell me, ", "I would like to know: ", "I wonder, ", "Also, ",
)  # fmt: skip

_AFTER = (
    " please", ", please", " Thanks!", " in short", " briefly", " exactly", " in one sentence",
    " for a beginner", " then", " Thank you.", " in simple words", " I am new to this.", " anyway",
    " again", " here", " today", " in this project", " for me", " in detail", " really",
)  # fmt: skip

_SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "do",
        "does",
        "of",
        "to",
        "i",
        "it",
        "in",
        "for",
        "my",
        "your",
        "with",
        "on",
        "at",
    ]
)
_WHAT_IS = re.compile(r"^(?:What is|What are|Explain|Define) (?:the |an? )?([^?.]+)[?.]$")
_ABOUT = (
    "{}", "{}?", "{} meaning", "meaning of {}", "what does {} mean?", "{} explained", "about {}",
    "the {}?", "{} - what is that?", "can you explain what {} is?", "do you know {}?",
    "what do you mean by {}?", "tell me what {} is", "I never understood {}.", "explain {} to me",
    "what does {} mean here?", "give me a definition of {}", "{} definition",
    "what is meant by {}?",
)  # fmt: skip
_LOOSE_STARTS = frozenset(
    [
        "what",
        "which",
        "who",
        "how",
        "why",
        "where",
        "when",
        "can",
        "could",
        "does",
        "do",
        "is",
        "are",
        "am",
        "will",
        "should",
        "tell",
        "explain",
        "define",
        "describe",
        "list",
        "show",
        "give",
        "write",
    ]
)


def reword(question: str, rng: Random) -> str:
    """Return `question` as somebody else might have typed it."""
    text = question
    if text.split()[0].lower() in _LOOSE_STARTS:
        text = _other_words(text, rng)
    if rng.random() < 0.12:
        text = _mistype(text, rng)
    return _other_case(_other_ending(text, rng), rng)


def _other_words(text: str, rng: Random) -> str:
    about = _WHAT_IS.match(text)
    if about and rng.random() < 0.25:
        text = rng.choice(_ABOUT).format(about[1])
    elif rng.random() < 0.5:
        text = _other_opening(text, rng)
    if PROJECT in text and rng.random() < 0.4:
        text = text.replace(PROJECT, rng.choice(_PROJECT_NAMES))
    if rng.random() < 0.3:
        text = _synonym(text, rng)
    if rng.random() < 0.16:
        text = _keywords(text) if rng.random() < 0.4 else _drop_small_word(text, rng)
    if rng.random() < 0.2:
        text = rng.choice(_BEFORE) + (text if rng.random() < 0.4 else _lower_first(text))
    if rng.random() < 0.12:
        after = rng.choice(_AFTER)
        text = text.rstrip("?.!") + after if after[1].islower() or after[0] == "," else text + after
    return text


def _other_opening(text: str, rng: Random) -> str:
    groups = [
        (group, old) for group in _OPENINGS for old in group if text.lower().startswith(old.lower())
    ]
    if not groups:
        return text
    group, old = rng.choice(groups)
    return rng.choice(group) + text[len(old) :]


def _synonym(text: str, rng: Random) -> str:
    found = [
        (word, group)
        for group in _SYNONYMS
        for word in group[:2]
        if re.search(rf"\b{word}\b", text)
    ]
    if not found:
        return text
    word, group = rng.choice(found)
    return re.sub(rf"\b{word}\b", rng.choice(group), text, count=1)


def _drop_small_word(text: str, rng: Random) -> str:
    words = text.split(" ")
    small = [at for at, word in enumerate(words) if word.lower() in _SMALL_WORDS]
    if len(words) > 3 and small:
        del words[rng.choice(small)]
    return " ".join(words)


def _keywords(text: str) -> str:
    """Keep what a search box would be given."""
    small = _SMALL_WORDS | {"what", "how", "which", "where", "can"}
    kept = [word for word in text.split(" ") if word.lower() not in small]
    return " ".join(kept) if kept else text


def _mistype(text: str, rng: Random) -> str:
    """Swap, drop or double one letter, but never in a word that is too short to survive it."""
    spots = [m.start() + 1 for m in re.finditer(r"[a-zA-Z]{4,}", text) if m.end() - m.start() > 3]
    if not spots:
        return text
    at = rng.choice(spots) + rng.randrange(2)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if kind == 1 else text[:at] + text[at] + text[at:]


def _other_ending(text: str, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return text.rstrip("?.! ")
    if draw < 0.45:
        return text.rstrip("?.!") + rng.choice(("?", "??", " ?", "!", "...", ".", "?!", "!!"))
    return text


def _other_case(text: str, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.3:
        return text.lower()
    if draw < 0.36:
        return text.upper()
    if draw < 0.4:
        return text.title()
    if draw < 0.5:
        return _lower_first(text)
    return text[0].upper() + text[1:]


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]
