"""Recipes: precision as data. Each has an id that rebuilds it and survives JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """What a component's numbers are made of.

    weights, activations: the dtypes that are stored and computed with.
    """

    id: str
    weights: str
    activations: str

    def to_json(self) -> dict[str, Any]:
        return {"recipe": self.id, "weights": self.weights, "activations": self.activations}


RECIPES = {r.id: r for r in (Recipe("fp32", "float32", "float32"),)}


def recipe(id: str) -> Recipe:
    """The recipe with this id.

    Raises:
        UsageError: there is none; names those that exist.
    """
    if id not in RECIPES:
        raise UsageError(f"There is no recipe {id!r}.", f"Recipes are {', '.join(RECIPES)}.")
    return RECIPES[id]
