"""Weights of 8 and 4 bits: how a safetensors file holds them, and the modules that compute with them.

How a layer is stored is read from its tensors' names:

    nf4   as bitsandbytes saves it: X.weight (uint8 [ceil(n/2), 1], the first of two values in the high half),
          X.weight.absmax (float32, one a group), X.weight.quant_map, X.weight.quant_state.bitsandbytes__nf4 (JSON)
    int8  as torchao saves it: X._weight_qdata, X._weight_scale (float32, one a block), X._weight_zero_point
    int4  X.weight (uint8 [n/2], the first of two values in the low half), X.weight.scale (float32 [out, groups]),
          X.weight.zero_point (int8 like the scale) where it is asymmetric

They stay so in memory: a call computes the weight of the layer at hand in float32 and forgets it.
"""

from __future__ import annotations

import importlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from ...core.artifact import Component
from ...core.dtypes import FLOATS
from ...core.errors import BadArtifact, BadInput, MissingDependency
from ...core.json_file import read_json_object
from ...core.safetensors_header import TensorEntry, read_header, read_tensor
from ...quant.weights import NF4_LEVELS
from .modules import build_empty, quiet_imports

NF4_STATE = "weight.quant_state.bitsandbytes__nf4"
NF4_GROUPS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # those that bitsandbytes has kernels for
_AGAIN = "Copy the file again, or compile the model again."
Entries = Mapping[str, TensorEntry]
Layer = torch.nn.Linear | torch.nn.Conv2d


def library(name: str) -> Any:
    """bitsandbytes or torchao, imported without its chatter.

    Raises:
        MissingDependency: it is not installed, or does not import.
    """
    try:
        with quiet_imports():
            return importlib.import_module(name)
    except Exception as exc:  # a broken library raises anything
        first = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise MissingDependency(
            f"Quantized PyTorch components need {name}, which does not import: {first}.", 'pip install "vitrify[torch]"'
        ) from exc


def layers_of(module: torch.nn.Module) -> dict[str, Layer]:
    """The layers whose weight can be quantized, by name: linear layers and convolutions that share it with nobody."""
    owners = Counter(id(p) for m in module.modules() for p in m._parameters.values() if p is not None)
    return {
        name: m
        for name, m in module.named_modules()
        # a subclass may read its weight elsewhere than in its forward
        if type(m) in (torch.nn.Linear, torch.nn.Conv2d) and owners[id(m.weight)] == 1
    }  # type: ignore[return-value]


def load_stored(component: Component, device: torch.device) -> tuple[torch.nn.Module, dict[str, str]]:
    """The wrapped module of a component whose weights lie in its own files, under the module's names.

    It is built without weights and filled one tensor at a time.

    Returns:
        The module on `device`, and what each quantized layer is stored in: layer -> nf4, int8 or int4.

    Raises:
        BadArtifact: a file is damaged, a tensor is missing or does not fit, or other layers are quantized than the
            manifest says.
        MissingDependency: the library of this precision is missing or broken.
    """
    try:
        module = build_empty(component.details["kind"], read_json_object(component.graph_path))
        entries: dict[str, TensorEntry] = {}
        for weight in component.weights:
            entries |= read_header(component.root / weight.path)
        stored = fill(module.module, entries, component.details.get("unused", []), device)  # type: ignore[arg-type]
    except BadInput as exc:
        raise BadArtifact(exc.what, _AGAIN) from exc
    _check_precision(component, stored)
    return module, stored


def _check_precision(component: Component, stored: Mapping[str, str]) -> None:
    """Hold what the files hold against what the manifest says."""
    precision = component.precision
    weights, layers = str(precision.get("weights", "float32")), precision.get("layers", 0)
    kinds = {"nf4": {"nf4"}, "int8": {"int8", "int4"}, "int4": {"int8", "int4"}}.get(weights, set())
    if len(stored) != layers or (kinds and not layers) or not kinds.issuperset(stored.values()):
        found = Counter(stored.values())
        counted = ", ".join(f"{n} in {kind}" for kind, n in sorted(found.items())) or "none"
        raise BadArtifact(
            f"{component.name} shall have {layers} layers in {weights}; its files have {counted}.", _AGAIN
        )


def fill(module: torch.nn.Module, entries: Entries, unused: Collection[str], device: torch.device) -> dict[str, str]:
    """Give a module that was built without weights those of a file; quantized layers compute with them as they are.

    Args:
        unused: names, or prefixes that end in a dot, of parameters that the component does not use: they become None.

    Returns:
        Layer -> nf4, int8 or int4.

    Raises:
        BadInput: a tensor is missing, or has another shape or dtype than its place.
    """
    layers = layers_of(module)
    stored = {name: kind for name in layers if (kind := _kind(name, entries))}
    put: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}  # old and new by identity: tied ones stay one
    for path, owner in module.named_modules():
        for leaf in [*owner._parameters, *owner._buffers]:
            name = f"{path}.{leaf}" if path else leaf
            if not (path in stored and leaf == "weight"):
                _put_plain(owner, leaf, name, entries, _is_unused(name, unused), device, put)
    for name, kind in stored.items():
        layer = _QUANTIZED[kind](layers[name], name, entries, device)
        if layer is not layers[name]:
            module.set_submodule(name, layer)
    return stored


def _put_plain(
    owner: torch.nn.Module,
    leaf: str,
    name: str,
    entries: Entries,
    unused: bool,
    device: torch.device,
    put: dict[int, tuple[torch.Tensor, torch.Tensor | None]],
) -> None:
    """One parameter or buffer that is not quantized, in float32 whatever float it is stored in."""
    is_parameter = leaf in owner._parameters
    old = owner._parameters[leaf] if is_parameter else owner._buffers[leaf]
    if old is None:
        return
    if id(old) not in put:
        new: torch.Tensor | None = None
        if not is_parameter and (unused or leaf in owner._non_persistent_buffers_set):
            new = old.to(device)  # the module computed it when it was built
        elif not unused:
            new = _tensor(entries, name, tuple(old.shape), old.dtype.is_floating_point, device)
            new = torch.nn.Parameter(new, requires_grad=False) if is_parameter else new
        put[id(old)] = old, new
    places: dict[str, Any] = owner._parameters if is_parameter else owner._buffers  # type: ignore[assignment]
    places[leaf] = put[id(old)][1]


def _is_unused(name: str, unused: Collection[str]) -> bool:
    return any(name == u or (u.endswith(".") and name.startswith(u)) for u in unused)


def _kind(name: str, entries: Entries) -> str | None:
    if f"{name}.{NF4_STATE}" in entries:
        return "nf4"
    if f"{name}._weight_qdata" in entries:
        return "int8"
    return "int4" if f"{name}.weight.scale" in entries else None


def _tensor(
    entries: Entries, name: str, shape: tuple[int, ...] | None, floats: bool, device: torch.device
) -> torch.Tensor:
    """A tensor of a file: float32 of any float, or whole numbers as they are stored.

    Raises:
        BadInput: it is not there, or has another shape or kind of numbers.
    """
    entry = entries.get(name)
    if entry is None:
        raise BadInput(f"The weights lack {name}.", _AGAIN)
    if (shape is not None and entry.shape != shape) or floats != (entry.dtype in FLOATS):
        wanted = f"{'floats' if floats else 'whole numbers'} {list(shape) if shape is not None else ''}".strip()
        raise BadInput(f"{name} is {entry.dtype} {list(entry.shape)}, expected {wanted}.", _AGAIN)
    return torch.from_numpy(read_tensor(entry, "float32" if floats else None)).to(device)


def _exactly(entries: Entries, name: str, dtype: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A tensor of exactly this dtype and shape: the kernels read it without asking."""
    entry = entries.get(name)
    if entry is not None and entry.dtype != dtype:
        raise BadInput(f"{name} is {entry.dtype}, expected {dtype}.", _AGAIN)
    return _tensor(entries, name, shape, dtype == "F32", device)


# nf4 -----------------------------------------------------------------------------------------------------------------


def nf4_state(shape: tuple[int, ...], group: int) -> bytes:
    """bitsandbytes' description of a weight in nf4: JSON, as `QuantState.as_dict(packed=True)` writes it."""
    state = {"quant_type": "nf4", "blocksize": group, "dtype": "float32", "shape": list(shape)}
    return json.dumps(state).encode()


def matrix(layer: Layer) -> tuple[int, int]:
    """The sizes of a layer's weight as a matrix: [out, in], a convolution's as [out, in*height*width]."""
    return layer.weight.shape[0], math.prod(layer.weight.shape[1:])


def nf4_rows(count: int, group: int) -> torch.Size:
    """The shape in which bitsandbytes is given a weight of so many numbers: a group a row, or all in one.

    Its CPU kernel counts groups anew in each row: with a row's end inside a group it gives wrong numbers (0.50.2).
    """
    return torch.Size((1, count) if count % group else (count // group, group))


class Nf4Weight(torch.nn.Module):
    """A weight from packed nf4: for convolutions, which bitsandbytes has kernels to unpack for and none to run.

    dequantize: bitsandbytes' own, of a packed weight and its `QuantState`.
    """

    def __init__(self, dequantize: Callable[[torch.Tensor, Any], torch.Tensor], state: Any, shape: torch.Size) -> None:
        super().__init__()
        self._dequantize, self._state, self._shape = dequantize, state, shape

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        return self._dequantize(packed, self._state).reshape(self._shape)


def _nf4(layer: Layer, name: str, entries: Entries, device: torch.device) -> torch.nn.Module:
    bnb = library("bitsandbytes")
    try:
        said = json.loads(bytes(read_tensor(entries[f"{name}.{NF4_STATE}"])))
        group = int(said["blocksize"])
    except (ValueError, LookupError, TypeError) as exc:
        raise BadInput(f"{name}.{NF4_STATE} is not bitsandbytes' description of a weight ({exc}).", _AGAIN) from exc
    shape, count = matrix(layer), layer.weight.numel()
    if said != json.loads(nf4_state(shape, group)) or group not in NF4_GROUPS:
        raise BadInput(f"{name} is described as {said}, expected nf4 of float32 {list(shape)}.", _AGAIN)
    code = _exactly(entries, f"{name}.weight.quant_map", "F32", (16,), device)
    if not np.allclose(code.cpu().numpy(), NF4_LEVELS, atol=1e-6):
        raise BadInput(f"{name}.weight.quant_map does not hold the levels of nf4.", _AGAIN)
    state = bnb.functional.QuantState(
        absmax=_exactly(entries, f"{name}.weight.absmax", "F32", (-(-count // group),), device),
        shape=torch.Size(shape), code=code, blocksize=group, quant_type="nf4", dtype=torch.float32,
    )  # fmt: skip
    packed = _exactly(entries, f"{name}.weight", "U8", ((count + 1) // 2, 1), device)
    if isinstance(layer, torch.nn.Conv2d) or shape[1] % group:
        state.shape = nf4_rows(count, group)
        return _parametrized(layer, packed, Nf4Weight(bnb.functional.dequantize_4bit, state, layer.weight.shape))
    made = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.float32,
        compress_statistics=False, quant_type="nf4", device="meta",
    )  # fmt: skip
    made.weight = bnb.nn.Params4bit(
        packed, quant_state=state, blocksize=group, compress_statistics=False, quant_type="nf4", module=made,
        bnb_quantized=True,
    )  # fmt: skip
    made.bias, made.quant_state = layer.bias, state
    # on processors that have it, bitsandbytes would compute in bfloat16 without a word
    made.support_avx512bf16_for_cpu = False
    return made.eval()  # type: ignore[no-any-return]


def _parametrized(layer: Layer, packed: torch.Tensor, weight: torch.nn.Module) -> torch.nn.Module:
    """The layer, whose weight is computed from `packed` each time that it is read."""
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    # unsafe: of another shape and dtype than what it is computed from
    return parametrize.register_parametrization(layer, "weight", weight, unsafe=True)


# int8 ----------------------------------------------------------------------------------------------------------------


def _int8(layer: Layer, name: str, entries: Entries, device: torch.device) -> torch.nn.Module:
    quantization = library("torchao.quantization")
    shape = tuple(layer.weight.shape)
    values = _exactly(entries, f"{name}._weight_qdata", "I8", shape, device)
    scale = _tensor(entries, f"{name}._weight_scale", None, True, device)
    zeros = _exactly(entries, f"{name}._weight_zero_point", "I8", tuple(scale.shape), device)
    fits = scale.ndim == len(shape) and all(s and not d % s for d, s in zip(shape, scale.shape, strict=True))
    if not fits:
        raise BadInput(f"{name}._weight_scale has shape {list(scale.shape)}, which divides no {list(shape)}.", _AGAIN)
    block = tuple(d // s for d, s in zip(shape, scale.shape, strict=True))
    weight = quantization.IntxUnpackedToInt8Tensor(values, scale, zeros, torch.int8, block, torch.float32, None)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


# int4 ----------------------------------------------------------------------------------------------------------------


class Int4Weight(torch.nn.Module):
    """A weight from two 4-bit integers a byte.

    torchao has none for this: its Int4Tensor needs CUDA and bfloat16, its Int4OpaqueTensor takes 60 times float32's
    time at the 512 rows of a small picture, and IntxUnpackedToInt8Tensor gives each value a byte.
    """

    def __init__(self, shape: torch.Size, scale: torch.Tensor, zeros: torch.Tensor | None) -> None:
        super().__init__()
        self._shape = shape
        self._scale, self._zeros = scale.unsqueeze(-1), None if zeros is None else zeros.unsqueeze(-1)

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        low, high = (packed << 4).view(torch.int8) >> 4, packed.view(torch.int8) >> 4
        weight = torch.stack([low, high], -1).reshape(*self._scale.shape[:2], -1).float()
        if self._zeros is not None:
            weight -= self._zeros
        return weight.mul_(self._scale).reshape(self._shape)


def _int4(layer: Layer, name: str, entries: Entries, device: torch.device) -> torch.nn.Module:
    rows, inputs = matrix(layer)
    scale = _tensor(entries, f"{name}.weight.scale", None, True, device)
    if scale.ndim != 2 or scale.shape[0] != rows or not scale.shape[1] or inputs % (2 * scale.shape[1]):
        raise BadInput(f"{name}.weight.scale has shape {list(scale.shape)}, expected [{rows}, groups].", _AGAIN)
    zeros = None
    if f"{name}.weight.zero_point" in entries:
        zeros = _exactly(entries, f"{name}.weight.zero_point", "I8", tuple(scale.shape), device)
    packed = _exactly(entries, f"{name}.weight", "U8", (rows * inputs // 2,), device)
    return _parametrized(layer, packed, Int4Weight(layer.weight.shape, scale, zeros))


_QUANTIZED: dict[str, Callable[[Layer, str, Entries, torch.device], torch.nn.Module]] = {
    "nf4": _nf4,
    "int8": _int8,
    "int4": _int4,
}
