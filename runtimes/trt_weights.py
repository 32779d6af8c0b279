"""Weights that go into a plan when it is opened: by a refit, or as inputs of one whose weights are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.artifact import Component
from ..core.errors import BadArtifact, BadInput, RuntimeFailure
from ..core.tensors import Array
from .cuda_memory import Memory, Workspace
from .low_rank import Override
from .plan_weights import PlanWeight, changed_weights, plan_weights, stored_bytes
from .trt_engine import made, message_log

# our names -> DataType's members
MEMBERS = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8", "uint8": "UINT8", "int32": "INT32",
    "int64": "INT64", "float8_e4m3fn": "FP8", "int4": "INT4",
}  # fmt: skip


def upload_weights(
    component: Component, overrides: Mapping[str, Override], gpu: Workspace, title: str
) -> dict[str, Memory]:
    """Every weight of a plan apart on the GPU, changed or as its file has it.

    Raises:
        BadInput: an override has no weight of its name and shape.
        BadArtifact: a file of weights is missing or too short.
        RuntimeFailure: they do not fit.
    """
    weights = plan_weights(component)
    placed: dict[str, Memory] = {}

    def place(name: str, array: Array) -> None:
        placed[name] = gpu.allocate(array.nbytes)
        gpu.upload(array, placed[name].address)
        gpu.synchronize()  # before the array goes

    for name, _, array in changed_weights(component, weights, overrides, title):
        place(name, array)
    for name, weight in weights.items():
        if name not in placed:
            place(name, np.ascontiguousarray(stored_bytes(component, weight)))
    return placed


def refit(
    trt: Any, engine: Any, component: Component, overrides: Mapping[str, Override], title: str, everything: bool
) -> None:
    """Give an engine that was just opened its changed weights; of a stripped one all the others too.

    It was opened with the base weights or with none, so nothing of an earlier change is in it.

    Raises:
        BadInput: an override has no weight of its name and shape.
        BadArtifact: the plan's weights are not those of the manifest, or a file of weights is missing or too short.
        RuntimeFailure: the library does not take them.
    """
    weights = plan_weights(component)
    log = message_log(trt)
    refitter = made(trt.Refitter, engine, log)
    known = set(refitter.get_all_weights())
    if not known <= set(weights):
        raise BadArtifact(
            f"{component.graph} wants the weight {sorted(known - set(weights))[0]}, which the manifest does not list.",
            "Copy the whole folder again or compile the artifact again.",
        )
    held: list[Array] = []  # the library reads them when it refits, not before

    def give(name: str, weight: PlanWeight, array: Array) -> None:
        prototype = refitter.get_weights_prototype(name)
        kind = getattr(trt.DataType, MEMBERS[weight.dtype])
        if prototype.dtype != kind or prototype.size != weight.count:
            raise BadArtifact(
                f"{component.graph} wants {name} as {prototype.size} of {prototype.dtype}, the manifest says "
                f"{weight.count} of {weight.dtype}.",
                "Compile the artifact again.",
            )
        held.append(array)
        if not refitter.set_named_weights(name, trt.Weights(kind, array.ctypes.data, weight.count)):
            raise RuntimeFailure(f"{title} does not take the weight {name}: {log.first()}", "Compile it with --apart.")

    given: set[str] = set()
    for name, weight, array in changed_weights(component, weights, overrides, title):
        if name not in known:
            raise BadInput(f"Override {name}: {component.graph} computes nothing with it.", "Leave it out.")
        give(name, weight, array)
        given.add(name)
    # of a plan that holds its weights: those that it has joined with a changed one
    wanted = known - given if everything else set(refitter.get_missing_weights())
    for name in sorted(wanted & known):
        give(name, weights[name], stored_bytes(component, weights[name]))
    left = refitter.get_missing_weights()
    if left:
        raise RuntimeFailure(f"{title} misses weights of {component.name}: {', '.join(left[:3])}.", "Compile it again.")
    if (everything or given) and not refitter.refit_cuda_engine():
        raise RuntimeFailure(
            f"{title} does not change the weights of {component.name}: {log.first()}", "Compile it with --apart."
        )
    held.clear()
