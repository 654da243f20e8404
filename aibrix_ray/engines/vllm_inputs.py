"""Bounds what a wrong body may cost: vLLM stops at the first wrong item of a long list.

An item of a response's `input` is tried as each of some sixty types, and each says what it misses:
ten thousand wrong items, a body of 100 KB, are two million errors. Making them takes half a minute,
in which the replica's loop does nothing else and its health checks fail. Right items cost the same.
"""

from __future__ import annotations

import importlib
import logging
import typing
from typing import Annotated, Any

from pydantic import BaseModel, FailFast

logger = logging.getLogger(__name__)

_MODULE = "vllm.entrypoints.openai.responses.protocol"
_MODEL = "ResponsesRequest"
_FIELD = "input"


class _FailFast(FailFast):
    """Hashable, as a member of a union has to be."""

    __hash__ = object.__hash__


def bound_inputs() -> None:
    """Change vLLM's request model; before its application is built, which copies it.

    A vLLM that has no such field any more is served all the same, with a line in the log.
    """
    try:
        model = getattr(importlib.import_module(_MODULE), _MODEL)
        stop_at_first_error(model, _FIELD)
    except (ImportError, AttributeError, LookupError) as error:
        logger.warning("cannot bound what wrong items of /v1/responses cost: %r", error)


def stop_at_first_error(model: type[BaseModel], field: str) -> None:
    """Make the lists that `field` may be fail at their first wrong item.

    Raises:
        LookupError: there is no such field, or no list among its types.
    """
    info = model.model_fields[field]
    kinds = typing.get_args(info.annotation)
    if not any(typing.get_origin(kind) is list for kind in kinds):
        raise LookupError(f"{model.__name__}.{field} is no union with a list")
    changed: Any = typing.Union[  # noqa: UP007 - made of a tuple
        tuple(
            Annotated[kind, _FailFast()] if typing.get_origin(kind) is list else kind
            for kind in kinds
        )
    ]
    info.annotation = changed
    model.model_rebuild(force=True)
