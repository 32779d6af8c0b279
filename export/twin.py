"""The graph proof: an architecture with real random weights, exported and compared with its module.

A large architecture is proved on its narrow twin, which is traced for that; a small one is its own twin.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ProofFailed
from ..core.safetensors_header import open_checkpoint
from ..proof.numeric import compared
from ..proof.parity import require
from .graph import graph_from_module, operators, quiet
from .link import link_weights
from .names import bind_module
from .spec import ComponentSpec, Config

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_SEED = 20


def prove_itself(spec: ComponentSpec, config: Config, model: ir.Model) -> dict[str, Any]:
    """Run a graph with random weights beside its module at two shapes and batches.

    Args:
        model: the graph of `config` without weights; it stays as it is.

    Returns:
        As `prove_graph` does.

    Raises:
        ProofFailed: the outputs differ.
    """
    import onnx_ir as ir

    return _proved(
        spec, config, ir.serde.deserialize_model(ir.serde.serialize_model(model)), random_module(spec, config)
    )


def prove_graph(spec: ComponentSpec, config: Config, wanted: Counter[str]) -> dict[str, Any]:
    """Export the narrow twin of `config` and run it beside its module at two shapes and batches.

    Args:
        wanted: the operators of the full graph; the twin's must be the same, or it would prove another graph.

    Returns:
        The proof for the manifest: the largest error, where, and what compared it.

    Raises:
        ProofFailed: the outputs differ, or the twin is no twin.
    """
    narrow = spec.narrow(config)
    model = graph_from_module(spec, narrow)
    got = operators(model)
    if got != wanted:
        differing = sorted(k for k in got.keys() | wanted.keys() if got[k] != wanted[k])
        raise ProofFailed(
            f"The narrow twin of {spec.name} has other operators than the model: {', '.join(differing[:5])}.",
            "Report the model's config.json.",
        )
    return _proved(spec, narrow, model, random_module(spec, narrow))


def _proved(spec: ComponentSpec, config: Config, model: ir.Model, module: torch.nn.Module) -> dict[str, Any]:
    """Link the graph to the module's weights, and compare the two."""
    import onnx_ir as ir

    from ..runtimes.torch.modules import no_bars

    with tempfile.TemporaryDirectory(prefix="vitrify-twin-") as scratch:
        source, root = Path(scratch) / "source", Path(scratch) / "artifact"
        with quiet(), no_bars():
            library_module: Any = module
            library_module.save_pretrained(source)
        bindings = bind_module(module, open_checkpoint(source, (spec.stem,)))
        weights, _ = link_weights(model, bindings.linked, root, "")
        ir.save(model, root / "model.onnx")
        component = spec.component(config, "onnx", "model.onnx", root, tuple(weights))
        reference = spec.component(config, "torch", "config.json", source, ())
        with quiet():
            found, _ = compared(component, reference, spec.checks(config))
    require(f"The graph of {spec.name}", found)
    worst = max(found, key=lambda p: p.relative)
    return {
        "max_abs": worst.max_abs,
        "relative": worst.relative,
        "shapes": spec.checks(config),
        "outputs": [p.to_json() for p in found],
        "reference": "torch float32",
    }


def random_module(spec: ComponentSpec, config: Config) -> torch.nn.Module:
    """The library's module with every parameter random, also those that start at 0 or 1: a swap would show."""
    import torch

    from ..runtimes.torch.modules import build

    generator = torch.Generator().manual_seed(_SEED)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module: torch.nn.Module = build(spec.kind, config).module  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
                continue
            if not parameter.abs().any():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
            # fresh weights are so small that attention hardly changes anything: raise them to about unit gain
            gain = 1.5 * parameter[0].numel() ** -0.5 / float(parameter.std())
            parameter.mul_(max(1.0, gain))
    return module
