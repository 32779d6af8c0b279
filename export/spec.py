"""What the exporter must know of one kind of component; a family lists its own in export/families/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.artifact import Component, WeightFile
from ..core.tensors import TensorSpec

Config = dict[str, Any]
Specs = Callable[[Config], dict[str, TensorSpec]]


@dataclass(frozen=True)
class ComponentSpec:
    """One component of a family.

    name: its name and folder in the artifact. kind: the wrapper in runtimes/torch/modules.py.
    folder: where its config and checkpoint lie in the source ("" is the source's root). stem: the checkpoint's file
    name without .safetensors. library: who names its tensors, diffusers or transformers.
    inputs, outputs: tensor specs, given the config. example: a size for each symbol, odd and above 1, to trace with.
    shapes: (min, optimum, max) for each symbol. checks: the sets of sizes, two or more, at which a proof compares.
    narrow: the config of a twin with the same structure and a few MB of weights.
    """

    name: str
    kind: str
    folder: str
    stem: str
    library: str
    inputs: Specs
    outputs: Specs
    example: Callable[[Config], dict[str, int]]
    shapes: Callable[[Config], dict[str, tuple[int, int, int]]]
    checks: Callable[[Config], list[dict[str, int]]]
    narrow: Callable[[Config], Config]
    # the parameters that this component does not use, by prefix, such as the decoder's in a VAE encoder
    unused: tuple[str, ...] = ()
    # a pipeline may come without it
    optional: bool = False
    # for each input that is not normal noise, the whole numbers (low, high) that a proof draws it from
    samples: Callable[[Config], dict[str, list[int]]] | None = None

    def component(
        self, config: Config, format: str, graph: str, root: Path, weights: tuple[WeightFile, ...]
    ) -> Component:
        """The component of this kind with this config, whose graph and weights lie below `root`."""
        details: dict[str, Any] = {"kind": self.kind, "checks": self.checks(config)}
        if self.samples is not None:
            details["samples"] = self.samples(config)
        return Component(
            name=self.name,
            format=format,
            graph=graph,
            inputs=self.inputs(config),
            outputs=self.outputs(config),
            weights=weights,
            shapes=self.shapes(config),
            details=details,
            root=root,
        )
