"""Every model that a gateway knows, and the names that they go by."""

from __future__ import annotations

from collections.abc import Iterable

from aibrix_ray.errors import BadRequest, ModelNotFound
from aibrix_ray.pipeline.life import Life
from aibrix_ray.pipeline.model import ModelState
from aibrix_ray.types import RequestView


class Pipeline:
    """Resolves names to models and begins lives. One a gateway."""

    def __init__(self) -> None:
        self._models: dict[str, ModelState] = {}
        self._aliases: dict[str, str] = {}

    @property
    def models(self) -> dict[str, ModelState]:
        """Every known model by its own name, ready or not."""
        return self._models

    @property
    def aliases(self) -> dict[str, str]:
        """Other names → the model's own name."""
        return self._aliases

    def set_aliases(self, aliases: dict[str, str]) -> None:
        """Replace all aliases; an alias of a model that is not known yet is kept."""
        self._aliases = dict(aliases)

    def resolve(self, name: object) -> ModelState:
        """Return the model that a request names; with one model only, none need be named.

        Raises:
            BadRequest: no model is named and there are several, or the name is not a string.
            ModelNotFound: no model or alias has this name.
        """
        if name is None or name == "":
            if len(self._models) == 1:
                return next(iter(self._models.values()))
            raise BadRequest(
                "`model` is required because this server has more than one; "
                f"choose one of: {', '.join(sorted(self.names())) or '(none yet)'}",
                param="model",
            )
        if not isinstance(name, str):
            raise BadRequest("`model` must be a string", param="model")
        model = self._models.get(name) or self._models.get(self._aliases.get(name, ""))
        if model is None:
            raise ModelNotFound(name, self.names())
        return model

    def names(self) -> Iterable[str]:
        """Every name that a request may use."""
        return [*self._models, *(a for a, m in self._aliases.items() if m in self._models)]

    def begin(self, model: ModelState, request: RequestView, now_s: float) -> Life:
        """Start the life of a request that was resolved to `model`."""
        return Life(model, request, now_s)
