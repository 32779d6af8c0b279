"""An ONNX component -> its PyTorch module, with weights that bitsandbytes and torchao compute with, or in float.

What is written is the module's config.json and a safetensors file under the module's own names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.artifact import NOT_RUN, Component, WeightFile
from ..core.errors import BadInput, UsageError
from ..core.json_file import read_json_object
from ..core.progress import Event, Report, silent
from ..core.publish import link_or_copy
from ..core.registry import load_runtime
from ..core.safetensors_header import TensorEntry, read_header, read_tensor
from ..core.safetensors_writer import SafetensorsWriter
from ..core.tensors import Array
from ..proof.weights import FileHashes
from ..quant.recipes import Recipe
from ..quant.weights import fitting_group, packed, quantize_integers
from .quantize import FILE, SMALL, as_stored, external_weights, kept_dtype, prove_written

if TYPE_CHECKING:
    import torch

    from ..runtimes.torch.quantized import Layer

CONFIG = "config.json"
Plan = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Rounding:
    """How one layer's weight is stored.

    name: the layer's. shape: the weight's. kind: nf4, int8 or int4. group: weights that share a scale, along the
    weight as a matrix; of int8 along the input channels, 0 for one scale an output channel.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    group: int
    symmetric: bool

    @property
    def matrix(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def blocks(self) -> tuple[int, ...]:
        """The shape of the scales."""
        if self.kind == "int4":
            return self.shape[0], self.matrix[1] // self.group
        spread = self.shape[1] // self.group if self.group else 1
        return (self.shape[0], spread, *(self.shape[2:] if self.group else [1] * len(self.shape[2:])))

    def plan(self) -> Plan:
        """Name -> (dtype, shape) of the tensors that hold it; see runtimes/torch/quantized.py."""
        from ..runtimes.torch.quantized import NF4_STATE, nf4_state

        name, count = self.name, math.prod(self.shape)
        if self.kind == "nf4":
            return {
                f"{name}.weight": ("U8", ((count + 1) // 2, 1)),
                f"{name}.weight.absmax": ("F32", (-(-count // self.group),)),
                f"{name}.weight.quant_map": ("F32", (16,)),
                f"{name}.{NF4_STATE}": ("U8", (len(nf4_state(self.matrix, self.group)),)),
            }
        if self.kind == "int8":
            return {
                f"{name}._weight_qdata": ("I8", self.shape),
                f"{name}._weight_scale": ("F32", self.blocks),
                f"{name}._weight_zero_point": ("I8", self.blocks),
            }
        plan: Plan = {f"{name}.weight": ("U8", (count // 2,)), f"{name}.weight.scale": ("F32", self.blocks)}
        return plan if self.symmetric else plan | {f"{name}.weight.zero_point": ("I8", self.blocks)}

    def quantize(self, weight: Array) -> tuple[list[Array], Array]:
        """The tensors of `plan`, in its order, and the float32 weight that they stand for.

        Raises:
            BadInput: the weight holds NaN or infinity.
        """
        if self.kind == "nf4":
            return self._nf4(weight)
        bits = 4 if self.kind == "int4" else 8
        given = weight.reshape(self.matrix) if bits == 4 else weight
        done = quantize_integers(given, bits, self.group, self.symmetric)
        zeros = done.zeros if done.zeros is not None else np.zeros(self.blocks, np.int8)
        values = packed(done.values) if bits == 4 else done.values
        tensors = [values, done.scales.reshape(self.blocks), zeros.reshape(self.blocks)]
        return tensors[: len(self.plan())], done.dequantized().reshape(self.shape)

    def _nf4(self, weight: Array) -> tuple[list[Array], Array]:
        import torch

        from ..runtimes.torch.quantized import library, nf4_rows, nf4_state

        if not np.isfinite(weight).all():
            raise BadInput("A weight holds NaN or infinity.", "Use a checkpoint that is not damaged.")
        functional = library("bitsandbytes").functional
        given = torch.from_numpy(weight.reshape(nf4_rows(weight.size, self.group)))
        values, state = functional.quantize_4bit(
            given, blocksize=self.group, quant_type="nf4", compress_statistics=False
        )
        said = np.frombuffer(nf4_state(self.matrix, self.group), np.uint8)
        tensors = [values.numpy(), state.absmax.numpy(), state.code.numpy(), said]
        return tensors, functional.dequantize_4bit(values, state).numpy().reshape(self.shape)


def write_torch(
    component: Component, root: Path, *, recipe: Recipe | None = None, report: Report = silent
) -> Component:
    """Write `component` below `root` as a PyTorch module, its layers in the recipe's weights; in float without one.

    Memory is that of the largest tensor, whatever the model's size. Weights in float are linked where the checkpoint
    names them as the module does.

    Args:
        component: format onnx, in float, as `vitrify export` writes it.
        root: the new artifact's folder.

    Returns:
        The component there. `precision` lists the layers that were kept.

    Raises:
        BadInput: nothing to quantize, NaN in a weight, no config.json that fits the graph, or a quantized graph.
        UsageError: the recipe's groups are none that the library has.
        MissingDependency: the extra `torch` is not installed.
        ProofFailed: the file does not hold what was written.
        DiskError: the disk is full.
    """
    load_runtime("torch")  # says what is missing
    from ..runtimes.torch.quantized import layers_of

    source = source_of(component)
    weights, place = source.weights, source.place
    report(Event(f"convert {component.name}"))
    if recipe is None:
        chosen: dict[str, Rounding] = {}
        files, proof = float_weights(component, source, root, report)
    else:
        chosen = {r.name: r for r in find_layers(layers_of(source.module), weights, recipe)}
        if not chosen:
            raise BadInput(f"{component.name} has no layer that {recipe.id} would quantize.", "Use another recipe.")
        files, proof = _written(component.name, weights, chosen, recipe, root, f"{place}{FILE}", report)
    if not (root / place / CONFIG).exists():
        link_or_copy(component.root / place / CONFIG, root / place / CONFIG)
    precision = dict(component.precision)
    if recipe is not None:
        kept = [n.removesuffix(".weight") for n, e in weights.items() if len(e.shape) > 1]
        precision = {**recipe.to_json(), "kept": sorted(set(kept) - set(chosen)), "layers": len(chosen)}
    return replace(
        component,
        format="torch",
        graph=f"{place}{CONFIG}",
        weights=files,
        precision=precision,
        requires={"runtime": "torch>=2.8", "os": None, "compute_capability": None},
        proof={"graph": NOT_RUN, "weights": proof or component.proof.get("weights", NOT_RUN), "numeric": NOT_RUN},
        details=component.details | {"unused": _unused(source.module.state_dict(), weights)},
        root=root,
    )


@dataclass(frozen=True)
class Source:
    """What a component is made of.

    place: the folder of its config.json in the artifact, with a slash behind it, or nothing. config: its content.
    weights: those of its graph, by the names of the module's state dict. module: the library's own, without weights.
    """

    place: str
    config: dict[str, Any]
    weights: dict[str, TensorEntry]
    module: torch.nn.Module


def source_of(component: Component) -> Source:
    """The module and the weights behind an ONNX component in float.

    Raises:
        BadInput: no config.json that fits the graph, or a quantized graph.
    """
    import onnx_ir as ir

    from ..runtimes.torch.modules import build_empty, is_kind

    folder = Path(component.graph).parent
    place = "" if folder == Path() else f"{folder.as_posix()}/"
    kind = component.details.get("kind")
    if not is_kind(kind) or not (component.root / folder / CONFIG).is_file():
        raise BadInput(
            f"{component.name} does not say which module it is ({place}{CONFIG}, details.kind).",
            "Compile from the artifact that `vitrify export` made.",
        )
    weights = dict(external_weights(ir.load(component.graph_path), component))
    config = read_json_object(component.root / folder / CONFIG)
    module: Any = build_empty(kind, config).module
    strange = sorted(set(weights) - set(module.state_dict()))
    if strange:
        raise BadInput(
            f"{place}{CONFIG} describes another module than the graph of {component.name}: it has no {strange[0]}.",
            "Export the model again.",
        )
    return Source(place, config, weights, module)


def float_weights(
    component: Component, source: Source, root: Path, report: Report
) -> tuple[tuple[WeightFile, ...], dict[str, Any] | None]:
    """The weights below `root` under the module's names: linked where they bear them, else copied, with a proof of it.

    Raises:
        DiskError: the disk is full.
    """
    made = _linked(component, source.weights, root)
    return made or _written(component.name, source.weights, {}, None, root, f"{source.place}{FILE}", report)


def find_layers(layers: dict[str, Layer], weights: dict[str, TensorEntry], recipe: Recipe) -> Iterator[Rounding]:
    """The layers of a module whose weights the recipe quantizes: those of the graph that are neither small nor kept.

    Raises:
        UsageError: bitsandbytes has no groups of the recipe's size.
    """
    from ..runtimes.torch.quantized import NF4_GROUPS

    if recipe.weights == "nf4" and recipe.group not in NF4_GROUPS:
        raise UsageError(
            f"bitsandbytes has no groups of {recipe.group}.", f"Groups are {', '.join(map(str, NF4_GROUPS[:4]))}."
        )
    for name, layer in layers.items():
        entry = weights.get(f"{name}.weight")
        if entry is None or recipe.kept(name) or entry.elements < SMALL:
            continue
        shape = tuple(layer.weight.shape)
        conv = len(shape) == 4
        kind = (recipe.convs or recipe.weights) if conv else recipe.weights
        wanted = recipe.group if kind == recipe.weights else 0
        if kind == "int4":
            group = fitting_group(math.prod(shape[1:]), wanted)
            kind = "int4" if group else "int8"  # one scale for a whole channel loses too much in 4 bits
        elif kind == "nf4":
            group = wanted  # its groups run over the ends of rows
        else:
            group = fitting_group(shape[1], wanted) if wanted else 0
        yield Rounding(name, shape, kind, group, recipe.symmetric)


def _linked(
    component: Component, weights: dict[str, TensorEntry], root: Path
) -> tuple[tuple[WeightFile, ...], dict[str, Any] | None] | None:
    """The source's own files beside the config, where they name each tensor as the module does; else None.

    The proof of their weights is the source's, so none is given.
    """
    headers = {file: read_header(file) for file in {e.file for e in weights.values()}}
    for name, entry in weights.items():
        there = headers[entry.file].get(name)
        if there is None or (there.offset, there.shape) != (entry.offset, entry.shape):
            return None
    if len({name for header in headers.values() for name in header}) != sum(map(len, headers.values())):
        return None  # a name in two files: which one is meant is not to be seen
    for weight in component.weights:
        link_or_copy(component.root / weight.path, root / weight.path)
    return component.weights, None


def _written(
    name: str,
    weights: dict[str, TensorEntry],
    chosen: dict[str, Rounding],
    recipe: Recipe | None,
    root: Path,
    target: str,
    report: Report,
) -> tuple[tuple[WeightFile, ...], dict[str, Any]]:
    """One file of weights below `root`, written tensor by tensor, and the proof that it holds what was computed."""
    plans: dict[str, Plan] = {}
    for key, entry in weights.items():
        rounding = chosen.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        # without a recipe nothing may change, and float16 is not float32
        plain = entry.dtype if recipe is None else kept_dtype(entry)
        plans[key] = rounding.plan() if rounding else {key: (plain, entry.shape)}
    digests: dict[str, str] = {}
    noise = power = 0.0
    whole: Plan = {tensor: row for plan in plans.values() for tensor, row in plan.items()}
    with SafetensorsWriter(root / target, whole, _metadata(weights, chosen, recipe)) as writer:
        for number, (key, entry) in enumerate(weights.items()):
            report(Event(f"write {name}", number, len(weights), "tensors"))
            if len(plans[key]) > 1:
                weight = read_tensor(entry, "float32")
                values, stands_for = chosen[key.removesuffix(".weight")].quantize(weight)
                noise += float(np.square(weight - stands_for, dtype=np.float64).sum())
                power += float(np.square(weight, dtype=np.float64).sum())
            else:
                values = [as_stored(entry, plans[key][key][0])]
            for tensor, value in zip(plans[key], values, strict=True):
                writer.write(tensor, value)
                digests[tensor] = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    proof = prove_written(root / target, writer.entries, digests)
    if chosen:
        proof["quantized"] = len(chosen)
    if noise and power:
        proof["snr_db"] = 10 * math.log10(power / noise)
    path = root / target
    return (WeightFile(target, path.stat().st_size, FileHashes().file(path)),), proof


def _metadata(weights: dict[str, TensorEntry], chosen: dict[str, Rounding], recipe: Recipe | None) -> dict[str, str]:
    """The header's own words: the recipe, and in a file of int8 alone what torchao's loader asks for."""
    said = {"format": "pt"} | ({"recipe": recipe.id} if recipe else {})
    if not chosen or {r.kind for r in chosen.values()} != {"int8"}:
        return said
    said["tensor_names"] = json.dumps(list(weights))
    for key in weights:
        rounding = chosen.get(key.removesuffix(".weight"))
        if rounding is None:
            said[key] = json.dumps({"_type": "Tensor"})
            continue
        block = [d // s for d, s in zip(rounding.shape, rounding.blocks, strict=True)]
        float32, int8 = ({"_type": "torch.dtype", "_data": d} for d in ("float32", "int8"))
        data = {"target_dtype": int8, "block_size": block, "dtype": float32, "activation_quantization": None}
        tensors = ["qdata", "scale", "zero_point"]
        said[key] = json.dumps({"_type": "IntxUnpackedToInt8Tensor", "_data": data, "_tensor_data_names": tensors})
    return said


def _unused(names: Iterable[str], used: Iterable[str]) -> list[str]:
    """The names that are not used, whole modules of them as one prefix that ends in a dot."""
    used = set(used)
    above = {prefix for name in used for prefix in _prefixes(name)}
    left = (name for name in names if name not in used)
    return sorted({next((p for p in _prefixes(name) if p not in above), name) for name in left})


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) + "." for i in range(1, len(parts))]
