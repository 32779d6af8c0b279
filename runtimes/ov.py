"""OpenVINO: opens `onnx` components and `openvino` ones (IR: an .xml graph beside its .bin).

What is computed is what the artifact says: left to itself, OpenVINO computes float32 graphs in bfloat16 or float16
where the device is quicker so, and activations in front of 8 and 4 bit weights in int8.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import openvino as ov

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import DeviceError, RuntimeFailure, UsageError
from ..core.machine import memory
from ..core.tensors import Array, TensorSpec, check_tensors
from .base import Options, Placement, Probe
from .initializers import external_bytes
from .ir_constants import constant_bytes
from .low_rank import Override
from .ov_cache import COMPILED, Compiler, Sizes
from .ov_model import VERSION, describe, load, ports, precision_of, translated

_LISTS = ("auto", "hetero")
_CAPABILITIES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_VARIANTS = 4  # compiled models that a session keeps at most, one for each set of sizes
_FIXES = {
    "gpu": "Install the GPU's OpenCL driver, or give --device cpu.",
    "npu": "Install the NPU's driver, or give --device cpu.",
}


class _Variant:
    """A compiled model and the requests that no call is using. ran: whether a call used it."""

    def __init__(self, component: Component, compiled: ov.CompiledModel, kept: Any) -> None:
        self.compiled = compiled
        self.outputs = ports(component, compiled)
        self.kept = kept
        self.ran = False
        self.idle: deque[ov.InferRequest] = deque()  # its append and pop are safe between threads

    def request(self) -> ov.InferRequest:
        try:
            return self.idle.pop()
        except IndexError:
            return self.compiled.create_infer_request()


class OvSession:
    """One component, opened. `run` may be called by several threads at once.

    details: cache ("hit", "miss" or "off": how the last compiled model came), compiled (how many this session made) and
    winograd (how many convolutions of the last one that it made compute fewer products; 0 for one from the cache).
    """

    def __init__(
        self, component: Component, compiler: Compiler, asked: tuple[Device, str], sizes: Sizes | None, static: bool
    ) -> None:
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = component.outputs
        self._component, self._compiler, self._static = component, compiler, static
        self._device, self._precision = asked
        self._lock = threading.Lock()
        self._most = _most(component) if static else 1
        self._variants: OrderedDict[Any, _Variant] | None = OrderedDict()
        # a static session that knows no sizes yet learns at its first run what will run it
        self.placement = Placement(RUNTIME.name, str(self._device).upper(), str(self._device), self._precision)
        if not static or sizes is not None:
            self._variant(sizes)

    @property
    def details(self) -> dict[str, Any]:
        made = self._compiler
        return {"cache": made.cached, "compiled": made.compiled, "winograd": made.winograd}

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        check_tensors(self.inputs, tensors)
        variant = self._variant({n: tensors[n].shape for n in self.inputs} if self._static else None, ran=True)
        with translated(self._component):
            request = variant.request()
            values = request.infer(dict(tensors), share_inputs=False, share_outputs=False)
            outputs = {name: values[number] for name, number in variant.outputs.items()}
        variant.idle.append(request)
        return outputs

    def close(self) -> None:
        with self._lock:
            self._variants = None
            self._compiler.close()

    def _variant(self, sizes: Sizes | None, *, ran: bool = False) -> _Variant:
        """The compiled model for these sizes, made now or kept.

        Each lays out the weights anew, and OpenVINO shares that between the streams of one compiled model alone: before
        another is made go those that no call used, and of the rest, where there are too many, those not used longest.
        """
        key = None if sizes is None else tuple(sizes.items())
        with self._lock:
            if self._variants is None:
                raise RuntimeFailure(f"The session of {self._component.name} is closed.", "Open it again.")
            if key not in self._variants:
                for unused in [k for k, one in self._variants.items() if not one.ran]:
                    del self._variants[unused]
                while len(self._variants) >= self._most:
                    self._variants.popitem(last=False)
                variant = _Variant(self._component, *self._compiler.compile(sizes))
                self.placement = self._placement(variant.compiled)
                self._variants[key] = variant
            self._variants.move_to_end(key)
            self._variants[key].ran |= ran
            return self._variants[key]

    def _placement(self, compiled: ov.CompiledModel) -> Placement:
        with translated(self._component, self._device):
            ran = [str(d) for d in compiled.get_property("EXECUTION_DEVICES")]
            if "INFERENCE_PRECISION_HINT" in compiled.get_property("SUPPORTED_PROPERTIES"):
                kept = [compiled.get_property("INFERENCE_PRECISION_HINT")]
            else:  # a list of devices has none of its own
                kept = [p["INFERENCE_PRECISION_HINT"] for p in compiled.get_property("DEVICE_PROPERTIES").values()]
        precisions = list(dict.fromkeys(precision_of(k) for k in kept))
        if precisions != [self._precision]:
            raise DeviceError(
                f"{self._component.name} shall run in {self._precision}; {', '.join(ran)} computes it in "
                f"{' and '.join(precisions)}.",
                "Leave the precision out, or name that one.",
            )
        return Placement(RUNTIME.name, ",".join(ran), str(self._device), self._precision)


class OpenVinoRuntime:
    """The adapter."""

    name = "openvino"
    formats = ("openvino", "onnx")
    takes = ("static", "lazy", "winograd")
    opens_beside = True

    @cached_property
    def _core(self) -> ov.Core:
        return ov.Core()

    @property
    def compiled(self) -> int:
        """How many models this process compiled and did not take from the cache."""
        return COMPILED.value

    def probe(self) -> Probe:
        available = self._core.available_devices
        details = {
            our: {
                "name": self._core.get_property(name, "FULL_DEVICE_NAME"),
                "capabilities": list(self._core.get_property(name, "OPTIMIZATION_CAPABILITIES")),
            }
            for our, name in zip(_ours(available), available, strict=True)
        }
        return Probe(self.name, VERSION, (*_ours(available), *["auto"] * bool(available)), {"devices": details})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> OvSession:
        """Open `component` on `device`.

        Raises:
            UsageError: a hint or a precision that does not exist.
            DeviceError: the device is not there, or does not compute in the precision that was asked for.
            BadArtifact: the graph or its weights do not load.
            BadInput: an override has no weight of its name and shape.
        """
        names = _devices(device, self._core.available_devices)
        target = f"{device.kind.upper()}:{','.join(names)}" if device.kind in _LISTS else names[0]
        precision = self._wanted(component, device, names, options)
        elsewhere = any(not name.startswith("CPU") for name in names)
        static = options.static or elsewhere
        early = static and (elsewhere or not options.lazy)  # a device may fail at what it is given: that shows now
        with translated(component, device):
            settings = self._settings(component, device, names, options, precision)
            usual = component.usual_sizes()
            fewer = options.winograd and target == "CPU" and precision == "float32" and component.takes_pictures()
            compiler = Compiler(
                self._core, component, device, target, settings, overrides or {}, fewer=fewer, usual=usual
            )
            if options.cache:
                compiler.use_cache()
        if static:
            compiler.prepare()
        return OvSession(component, compiler, (device, precision), usual if early else None, static)

    def describe(self, graph: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Inputs and outputs of a graph that no manifest describes.

        Raises:
            BadArtifact: it does not load, or takes something else than tensors of known types.
        """
        format = "onnx" if graph.suffix == ".onnx" else "openvino"
        component = Component(graph.parent.name, format, graph.name, {}, {}, root=graph.parent)
        return describe(graph, load(self._core, component))

    def _wanted(self, component: Component, device: Device, names: Sequence[str], options: Options) -> str:
        """The precision to compute in: the one that was asked for, or the artifact's; never a narrower one."""
        if options.precision is not None and options.precision not in _HINTS:
            raise UsageError(f"{options.precision!r} is no precision of OpenVINO's.", f"Give {', '.join(_HINTS)}.")
        can = [self._core.get_property(name, "OPTIMIZATION_CAPABILITIES") for name in names]
        known = [p for p in _HINTS if all(_CAPABILITIES[p] in c for c in can)]
        own = str(component.precision.get("activations", "float32"))
        wanted = options.precision or (own if own in known else "float32")
        if wanted not in known:
            raise DeviceError(
                f"{device} does not compute in {wanted}; it does in {', '.join(known)}.",
                f"Ask for that precision: {' or '.join(known)}.",
            )
        return wanted

    def _settings(
        self, component: Component, device: Device, names: Sequence[str], options: Options, precision: str
    ) -> dict[str, Any]:
        """OpenVINO's properties for these options; threads and streams where the device has them."""
        if options.hint not in ("latency", "throughput"):
            raise UsageError(f"{options.hint!r} is no hint.", "Give latency or throughput.")
        hint = {"PERFORMANCE_HINT": options.hint.upper()}
        asked = {"INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": options.streams}
        settings = {}
        for name in names:
            has = self._core.get_property(name, "SUPPORTED_PROPERTIES")
            own: dict[str, Any] = {**hint, "INFERENCE_PRECISION_HINT": _HINTS[precision]}
            own |= {n: v for n, v in asked.items() if v and n in has}
            if component.precision.get("activations") != "int8":
                own["EXECUTION_MODE_HINT"] = "ACCURACY"  # else activations may be rounded to int8 on the way
            settings[name] = own
        if device.kind not in _LISTS:
            return settings[names[0]]
        chosen: dict[str, Any] = {"DEVICE_PROPERTIES": settings}
        if device.kind == "auto":
            chosen |= hint
            if any(not name.startswith("CPU") for name in names):
                # neither start on the CPU while another device compiles, nor go there when that device fails
                chosen |= {"ENABLE_STARTUP_FALLBACK": False, "ENABLE_RUNTIME_FALLBACK": False}
        return chosen


def _most(component: Component) -> int:
    """How many compiled models a session may keep: their weights fill half of the machine's memory at most."""
    onnx = component.format == "onnx"
    size = external_bytes(component.graph_path) if onnx else constant_bytes(component.graph_path)
    room = memory()
    return _VARIANTS if room is None else max(1, min(_VARIANTS, room // 2 // max(size, 1)))


def _ours(available: Sequence[str]) -> list[str]:
    """OpenVINO's devices by our names: CPU is cpu, GPU and GPU.0 are gpu, GPU.1 is gpu:1."""
    split = [name.lower().partition(".") for name in available]
    return [kind if index in ("", "0") else f"{kind}:{index}" for kind, _, index in split]


def _devices(device: Device, available: Sequence[str]) -> list[str]:
    """OpenVINO's names of the device, or of those in its list; for `auto` without one, of all there are.

    Raises:
        DeviceError: one is not there, or hetero has no list.
    """
    if device.kind in _LISTS and device.detail:
        parts = [part.partition(".") for part in device.detail.split(",")]
        return [
            _found(Device(kind.lower(), int(n) if n.isdigit() else None), device, available) for kind, _, n in parts
        ]
    if device.kind == "hetero":
        raise DeviceError(
            f"{device} names no devices; there are {', '.join(_ours(available))}.",
            "Name them in order: hetero:GPU,CPU.",
        )
    return list(available) if device.kind == "auto" else [_found(device, device, available)]


def _found(one: Device, asked: Device, available: Sequence[str]) -> str:
    ours = _ours(available)
    name = one.kind if not one.index else str(one)
    if name not in ours:
        raise DeviceError(
            f"OpenVINO {VERSION} cannot run on {asked} here; it has {', '.join(ours)}.",
            _FIXES.get(one.kind, f"Give --device {ours[0] if ours else 'cpu'}."),
        )
    return available[ours.index(name)]


RUNTIME = OpenVinoRuntime()
