"""API keys as texts: 256 random bits. The store holds their SHA-256 and never the key.

A plain hash is right here, and a slow one of passwords is not: nobody can try 2^256 keys.
"""

from __future__ import annotations

import hashlib
import re
import secrets

_PREFIX = "sk-"
_RANDOM_BYTES = 32
#: `sk-` and what `token_urlsafe` makes of 32 bytes.
_KEY = re.compile(rb"sk-[A-Za-z0-9_-]{43}")
_SHOWN_CHARACTERS = 8


def new_key() -> str:
    """Return a new key."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(key: bytes) -> bytes:
    """Return what is stored and looked up instead of a key."""
    return hashlib.sha256(key).digest()


def shown_prefix(key: str) -> str:
    """Return the beginning of a key, by which people recognise it in a list."""
    return key[:_SHOWN_CHARACTERS]


def looks_like_key(key: bytes) -> bool:
    """Return whether this can be a key of ours at all, so that the store need not be asked."""
    return _KEY.fullmatch(key) is not None


def new_id(kind: str) -> str:
    """Return a new id, such as `key_1f0c…`."""
    return f"{kind}_{secrets.token_hex(8)}"
