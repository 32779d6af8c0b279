"""What could win: runtimes and recipes, pruned by what is known; then their options and threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...core.artifact import Artifact
from ...core.machine import usable_cores
from ...quant.recipes import RECIPES, recipe
from ...quant.support import TARGETS, WHAT_WAS_MEASURED, cell
from ..matrix import Axes, Matrix, Skipped, expand
from ..spec import Spec
from .goal import Goal

# of float32's time: above, a recipe is not tried for latency
_SLOW = 1.1
# what changes speed or memory, and of the numbers that are computed the rounding at most
_OPTIONS: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "latency": {"openvino": ({"static": True},)},
    "memory": {
        "onnx": (
            {"winograd": False},
            {"prepack": False},
            {"arena": False},
            {"winograd": False, "arena": False},
            {"prepack": False, "arena": False},
        ),
        "openvino": ({"static": True}, {"winograd": False}),
    },
}


def candidates(name: str, source: str, artifact: Artifact, axes: Axes, goal: Goal, everything: bool = False) -> Matrix:
    """A cell for each runtime and recipe, with default options and threads.

    Args:
        axes: without recipes all of them are tried; one size and batch.
        everything: prune nothing but what cannot run.
    """
    matrix = expand(name, source, artifact, replace(axes, recipes=axes.recipes or tuple(RECIPES)))
    if everything or goal.objective != "latency":
        return matrix
    kept, skipped = [], list(matrix.skipped)
    for spec in matrix.specs:
        why = _too_slow(spec)
        if why and not axes.recipes:  # what was named is tried
            skipped.append(Skipped(spec, why, "--exhaustive tries it all the same."))
        else:
            kept.append(spec)
    return Matrix(kept, skipped)


def _too_slow(spec: Spec) -> str:
    made = recipe(spec.recipe)
    if spec.runtime not in TARGETS or made.lossless:
        return ""
    found = cell(made, spec.runtime)
    share = found.measured.get("time", 0.0)
    if share > _SLOW:
        return f"{spec.recipe} took {share:.2f} of float32's time on {spec.runtime}, of {WHAT_WAS_MEASURED}."
    if spec.runtime == "torch":
        return f"{spec.recipe} on torch buys disk and memory, at more than float32's time."
    return ""


def variants(spec: Spec, goal: Goal) -> Iterator[Spec]:
    """The same artifact with other options and numbers of threads."""
    options: Sequence[dict[str, Any]] = _OPTIONS.get(goal.objective, {}).get(spec.runtime, ())
    for one in ({}, *options):
        for threads in _threads(goal):
            if one or threads != spec.threads:
                yield replace(spec, options=one, threads=threads)


def _threads(goal: Goal) -> list[int]:
    """The library's choice, one, half of the cores and all of them, each number once."""
    if goal.objective != "latency":
        return [0]
    cores = usable_cores()
    # all of them is what a library chooses by itself, but for one that counts hyperthreads otherwise
    return list(dict.fromkeys([0, 1, max(1, cores // 2), *([cores] if cores > 2 else [])]))
