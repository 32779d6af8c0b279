"""What every plan must be: the manifest says of it what TensorRT itself read back, and its files are those listed."""

from __future__ import annotations

from typing import Any

from vitrify.core.artifact import Component
from vitrify.runtimes.plan_weights import kept_as, plan_weights


def check_plan(plan: Component, source: Component) -> None:
    """Hold a plan's manifest against what the library told of the network and the profile that it was built from."""
    engine = plan.details["engine"]
    assert dict(plan.inputs) == dict(source.inputs)
    assert dict(plan.outputs) == dict(source.outputs)
    assert set(engine["inputs"]) == set(source.inputs)
    for name, spec in source.inputs.items():
        told = engine["inputs"][name]
        assert told["dtype"] == spec.dtype
        assert _fits(told["shape"], spec.shape)
        sizes = [[source.shapes[d][k] if isinstance(d, str) else d for d in spec.shape] for k in range(3)]
        assert [told["min"], told["opt"], told["max"]] == sizes
    assert set(engine["outputs"]) == set(source.outputs)
    for name, spec in source.outputs.items():
        assert engine["outputs"][name]["dtype"] == spec.dtype
        assert _fits(engine["outputs"][name]["shape"], spec.shape)
    held = plan.weights[0]
    assert held.path == plan.graph
    assert plan.graph_path.stat().st_size == held.bytes == engine["bytes"] == engine["header"]["bytes"]
    version = str(plan.requires["runtime"]).partition("==")[2]
    assert engine["header"]["version"] == version
    outside = plan_weights(plan)
    assert (kept_as(plan) != "inside") is bool(outside)
    assert {w.path for w in outside.values()} <= {w.path for w in plan.weights[1:]}
    if kept_as(plan) == "apart":
        assert 0 < engine["weight_inputs"] <= len(outside)


def _fits(shape: list[int], told: tuple[Any, ...]) -> bool:
    """-1 where the network leaves a size open."""
    return len(shape) == len(told) and all(
        has in (-1, size) or isinstance(size, str) for has, size in zip(shape, told, strict=True)
    )
