"""Detached actors by name: found, made, and replaced by a newer version of this package.

An actor of this kind is `Versioned`. Every function here may block for
seconds (the GCS is asked, an actor is started): call them in a thread where a loop must go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from packaging.version import Version
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aibrix_ray import __version__

logger = logging.getLogger(__name__)

NAMESPACE = "aibrix_ray"
#: Long polls hold a place each; reports come beside them.
MAX_CONCURRENCY = 10_000
#: What a call to an actor that dies, restarts or hangs raises: nothing to be surprised about.
UNREACHABLE = (RayActorError, TimeoutError)
_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class DetachedActor:
    """How an actor is made if there is none: its name, class, arguments and place."""

    name: str
    cls: type
    strategy: NodeAffinitySchedulingStrategy
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class Versioned:
    """Base of a detached actor: says which version of this package it runs, and where."""

    _code_version: str

    async def code_version(self) -> str:
        """Return the version of the package that this actor runs."""
        return self._code_version

    async def pid(self) -> int:
        """Return the process id."""
        return os.getpid()


def find(name: str) -> Any | None:
    """Return the handle of a living (or restarting) actor, or `None`."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def ensure(actor: DetachedActor, *, timeout_s: float = 30.0) -> Any:
    """Return the handle of an actor that answers and is not older than this package.

    Makes it if there is none; of several callers at once, one makes it and all get it. An actor of
    an older version is ended and made anew, one of a newer version is left alone.

    Raises:
        TimeoutError: no such actor answered in time.
    """
    until_s = time.monotonic() + timeout_s
    last: RayActorError | None = None
    while (left_s := until_s - time.monotonic()) > 0:
        handle = find(actor.name) or make(actor)
        try:
            # Not `ray.get`: it warns in async actors, whichever of their threads it blocks.
            found = handle.code_version.remote().future().result(left_s)
        except TimeoutError:
            break
        except RayActorError as error:
            last = error
            time.sleep(_RETRY_S)  # It is dying or restarts; look again.
            continue
        if Version(found) >= Version(__version__):
            return handle
        logger.info("replacing actor name=%s version=%s by=%s", actor.name, found, __version__)
        ray.kill(handle, no_restart=True)
    why = f"; the last failure: {last}" if last else ""
    raise TimeoutError(f"{actor.name!r} did not answer within {timeout_s:g} s{why}") from last


def make(actor: DetachedActor) -> Any:
    """Make the actor and return its handle, or that of the one which has its name already."""
    return (
        ray.remote(actor.cls)
        .options(
            name=actor.name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=MAX_CONCURRENCY,
            scheduling_strategy=actor.strategy,
        )
        .remote(**actor.kwargs)
    )


def softly_on_head() -> NodeAffinitySchedulingStrategy:
    """Place an actor on the head node while there is one."""
    heads = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and "node:__internal_head__" in node["Resources"]
    ]
    node_id = heads[0] if heads else ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node_id, soft=True)


def myself() -> Any:
    """Return the handle of the actor that this process is."""
    with warnings.catch_warnings():
        # Ray's own property calls a deprecated method of Ray's.
        warnings.simplefilter("ignore", DeprecationWarning)
        return ray.get_runtime_context().current_actor


async def end(handle: Any) -> None:
    """End an actor for good; what it was doing fails with an error that says so.

    Not `exit_actor`, which waits for the calls that the actor itself has made: one of them to
    itself, and it neither ends nor answers.
    """
    await asyncio.to_thread(ray.kill, handle, no_restart=True)


async def result(reference: Any, *, timeout_s: float) -> Any:
    """Await an object reference.

    Raises:
        TimeoutError: it took longer.
        ray.exceptions.RayError: the call failed.
    """
    return await asyncio.wait_for(asyncio.wrap_future(reference.future()), timeout_s)
