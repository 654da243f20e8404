"""The models that ship with the package, and how a `model:` line becomes something to load.

Knows names and folders only: neither torch nor transformers is imported here, nor any weight read.
How `builtin:tiny` is made stands in `aibrix_ray.models.train`.
"""

from __future__ import annotations

from pathlib import Path

from aibrix_ray.errors import ConfigError

BUILTIN_PREFIX = "builtin:"

_FOLDER = Path(__file__).resolve().parent
_BUILTIN = {"tiny": _FOLDER / "tiny"}


def builtin_models() -> tuple[str, ...]:
    """List the sources that need no download, in the form in which a `model:` line names them."""
    return tuple(BUILTIN_PREFIX + name for name in sorted(_BUILTIN))


def resolve_model(source: str) -> str:
    """Return what an engine should load for `source`.

    A built-in name becomes the absolute path of its packaged folder, a path that exists is made
    absolute (`~` is expanded), and anything else, such as a Hugging Face id, is returned unchanged.

    Raises:
        ConfigError: `source` is empty, or names a built-in model that this package does not have.
    """
    if source.startswith(BUILTIN_PREFIX):
        return str(_builtin_folder(source))
    if not source.strip():
        raise ConfigError(path="model", value=source, expected=_expected())
    local = _expand(source)
    return str(local.resolve()) if local.exists() else source


def _builtin_folder(source: str) -> Path:
    folder = _BUILTIN.get(source.removeprefix(BUILTIN_PREFIX))
    if folder is None:
        known = ", ".join(builtin_models())
        raise ConfigError(
            path="model",
            value=source,
            expected=f"a built-in model ({known})",
            hint="name one of these, a Hugging Face id or a local directory",
        )
    return folder


def _expand(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # `~nobody/…`: there is no such user, so it is no path of this machine
        return Path(source)


def _expected() -> str:
    return f"{', '.join(builtin_models())}, a Hugging Face id or a local directory"


__all__ = ["BUILTIN_PREFIX", "builtin_models", "resolve_model"]
