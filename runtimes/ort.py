"""ONNX Runtime: opens `onnx` components.

A device that is named runs or is an error: the session is refused when ONNX Runtime placed it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import BadArtifact
from ..core.tensors import DType, TensorSpec
from .base import Options, Placement, Probe
from .initializers import check_listed, external_bytes
from .low_rank import LowRank, Override
from .ort_binding import HOST, Memory
from .ort_builds import quietly, version
from .ort_cache import built_folder, optimized
from .ort_choice import check_placement, no_fallback, precision_of, provider_of
from .ort_errors import translated
from .ort_probe import attach, probe_providers
from .ort_providers import CPU, Asked
from .ort_session import OrtSession, Ways
from .ort_source import can_be_fewer, edited
from .resident import OPENING, HeldWhole, Resident

_NO_PREPACKING = ("session.disable_prepacking", "1")


class OrtRuntime:
    """The adapter."""

    name = "onnx"
    formats = ("onnx",)
    takes = ("winograd", "provider", "cuda_graphs", "resident_weights")
    opens_beside = True

    def probe(self) -> Probe:
        """Its devices are the CPU and those on which a provider opened a graph of one node; no more are tried than that
        takes.
        """
        return self._probed(every=False)

    def probe_every(self) -> Probe:
        """As `probe`, with every provider tried: one that builds engines takes seconds."""
        return self._probed(every=True)

    def _probed(self, every: bool) -> Probe:
        providers = probe_providers(every)
        opened = dict.fromkeys(kind for one in providers for kind in one["opened"])
        devices = (*(kind for kind in opened if kind != "cpu"), *(["cpu"] if "cpu" in opened else []))
        return Probe(self.name, ort.__version__, devices, {"providers": providers})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> OrtSession:
        """Open `component` on `device`.

        Raises:
            UsageError: a precision that the graph does not have, a provider that does not run this device, or one that
                records no CUDA graphs.
            DeviceError: the device or the provider is not here, or the session would run elsewhere, or in
                TF32 without leave; or weights cannot be held in part.
            BadArtifact: the graph or its weights do not load.
            BadInput: an override has no weight of its name and shape.
            MissingDependency: a branch needs onnx, which is not installed.
        """
        try:
            return self._open(component, device, options, overrides or {})
        except HeldWhole as exc:
            if "resident_weights" not in options.optional:
                raise
            why = exc.what
        # only now, as what was opened for nothing goes with the error
        session = self._open(component, device, replace(options, resident_weights=None), overrides or {})
        session.left_out["resident_weights"] = why
        return session

    def _open(
        self, component: Component, device: Device, options: Options, overrides: Mapping[str, Override]
    ) -> OrtSession:
        row = provider_of(device, options)
        in_part = _in_part(component, options)
        if in_part and row is not CPU:
            raise HeldWhole(
                f"ONNX Runtime holds weights in part on the CPU alone, not on {device}.", "Leave resident_weights out."
            )
        computed = precision_of(component, row, options)
        settings = _settings(component, options)
        check_listed(component)
        # tiles are copies of weights, which without prepacking and with weights held in part stay in their files
        few = options.winograd and options.prepack and row is CPU and computed == "float32" and not in_part
        fewer, why = can_be_fewer(component) if few else (False, "")
        with translated(component, device, None if row is CPU else row):
            if options.cache and not overrides and row is CPU:
                source = optimized(component, prepack=options.prepack, fewer=fewer)
            else:
                source = edited(component, overrides, fewer=fewer)
            held = source.settle(settings)
            folder = None
            files = [component.root / weights.path for weights in component.weights]
            if source.kept is not None:
                settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                files = list(source.kept.iterdir())
            elif options.cache and not overrides and row.keeps:
                folder = built_folder(component, row, version(row))
            if in_part and source.kept is None:
                # beyond this level convolutions get weights in a layout of their own; that and prepacking make copies
                settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
                settings.add_session_config_entry(*_NO_PREPACKING)
            asked = Asked(component, device, options, folder, bool(overrides))
            with quietly() if row is not CPU else nullcontext():
                providers = attach(settings, row, asked)
                if row is not CPU:
                    settings.add_session_config_entry(*no_fallback())
                with OPENING.turn(alone=bool(in_part)):
                    resident = Resident(files, options.resident_weights or 0) if in_part else None
                    # without enable_fallback=0 the library prints a line and retries on the CPU, here and in each run
                    session = ort.InferenceSession(source.model, settings, providers=providers, enable_fallback=0)
                    if resident is not None:
                        resident.found(in_part - _replaced(component, overrides))
        layers = source.winograd
        del held, source
        ran = check_placement(component, device, row, session)
        _check_names(component, session)
        placement = Placement(self.name, ran, str(device), computed)
        memory = HOST if row.memory == "cpu" else Memory(row.memory, device.index or 0)
        opened = OrtSession(component, session, placement, Ways(memory, options.cuda_graphs, row.alone, resident))
        opened.details["winograd"] = layers
        if why:
            opened.left_out["winograd"] = why
        return opened

    def describe(self, graph: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Inputs and outputs of a graph that no manifest describes.

        Raises:
            BadArtifact: it does not load, or takes something else than tensors of known types.
        """
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.add_session_config_entry(*_NO_PREPACKING)
        component = Component(graph.parent.name, "onnx", graph.name, {}, {}, root=graph.parent)
        with translated(component, Device("cpu")), OPENING.turn(alone=False):
            session = ort.InferenceSession(str(graph), settings, providers=[CPU.title])
        return (
            {v.name: _spec(graph, v) for v in session.get_inputs()},
            {v.name: _spec(graph, v) for v in session.get_outputs()},
        )


def _in_part(component: Component, options: Options) -> int:
    """Bytes of the weights, where they shall not all be held; 0 where they may be."""
    if options.resident_weights is None:
        return 0
    found = external_bytes(component.graph_path)
    return found if found > options.resident_weights else 0


def _replaced(component: Component, overrides: Mapping[str, Override]) -> int:
    """Bytes of the weights that are given in place of those in the files."""
    whole = {name for name, value in overrides.items() if not isinstance(value, LowRank)} if overrides else set()
    return external_bytes(component.graph_path, whole) if whole else 0


def _settings(component: Component, options: Options) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads
    settings.enable_cpu_mem_arena = options.arena
    if not options.prepack:
        settings.add_session_config_entry(*_NO_PREPACKING)
    # ONNX Runtime would round activations to int8 in front of few-bit weights, which only some recipes want
    level = str(component.precision.get("accuracy_level", 0))
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    return settings


def _check_names(component: Component, session: ort.InferenceSession) -> None:
    """Hold the graph's inputs and outputs against the manifest's, whose specs each run is checked by."""
    for kind, listed, values in (
        ("inputs", component.inputs, session.get_inputs()),
        ("outputs", component.outputs, session.get_outputs()),
    ):
        has = [v.name for v in values]
        if set(has) != set(listed):
            raise BadArtifact(
                f"{component.graph} has the {kind} {', '.join(has)}; the manifest says {', '.join(listed)}.",
                "Copy the whole folder again or export again.",
            )


def _spec(graph: Path, value: Any) -> TensorSpec:
    """A session's input or output as our spec; a size that has no name gets its own."""
    name = {"float": "float32", "double": "float64"}.get(value.type[7:-1], value.type[7:-1])
    if not value.type.startswith("tensor(") or name not in list(DType):
        raise BadArtifact(
            f"{graph}: {value.name} is a {value.type}, which is not supported.", "Export it with vitrify."
        )
    shape = [d if isinstance(d, int) or d else f"{value.name}_{i}" for i, d in enumerate(value.shape)]
    return TensorSpec(DType(name), tuple(shape))


RUNTIME = OrtRuntime()
