"""TensorRT and TensorRT-RTX: open plans, which export/plan.py builds.

Both libraries have one Python interface under two names, so the module is an argument. A plan runs on NVIDIA GPUs of
the architectures that it was built for, with the version that built it, and nowhere else.
"""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import BadArtifact, DeviceError, RuntimeFailure, UsageError
from .base import Options, Placement, Probe
from .cuda import Gpu, find_gpus
from .cuda_memory import Workspace
from .low_rank import Override
from .plan_weights import PlanWeight, kept_as, plan_weights
from .trt_engine import Opened, check_engine, load_engine, message_log, prepared
from .trt_session import TrtSession
from .trt_weights import refit, upload_weights

_FLOATS = ("fp32", "fp16", "bf16")  # what a plan calls itself that was compiled without --quant


class TrtRuntime:
    """The adapter of one of the two libraries."""

    takes = ("cuda_graphs", "resident_weights")

    def __init__(self, name: str, title: str, library: Any) -> None:
        self.name = name
        self.formats = (name,)
        self.title = title
        self.library = library

    @property
    def version(self) -> str:
        return str(self.library.__version__)

    def probe(self) -> Probe:
        try:
            gpus = find_gpus()
        except (DeviceError, RuntimeFailure) as exc:
            problem = f"{self.title} builds plans here and cannot run them. {exc.what}"
            return Probe(self.name, self.version, (), {"gpus": []}, problem, exc.fix)
        details = [{"name": g.name, "compute_capability": "{}.{}".format(*g.capability)} for g in gpus]
        return Probe(self.name, self.version, tuple(f"cuda:{g.index}" for g in gpus), {"gpus": details})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> TrtSession:
        """Load a plan onto a GPU.

        Args:
            overrides: changed weights of a plan that was built with --refit, --strip or --apart.

        Raises:
            UsageError: weights were to be changed in a plan that takes none, weights to be streamed in one that was not
                built for it, or another precision.
            DeviceError: the device is no NVIDIA GPU, there is none, or the plan was built for another GPU, version or
                system.
            BadInput: an override has no weight of its name and shape.
            BadArtifact: the plan or its weights are damaged, or are not what the manifest says.
        """
        overrides = overrides or {}
        weights = plan_weights(component)
        check_changes(component, weights, overrides)
        self._check_options(component, options)
        self._check_build(component)
        gpu = self._gpu(component, device)
        log = message_log(self.library)
        workspace = Workspace(gpu)
        try:
            with workspace.current():
                opened = self._opened(component, gpu, options, log, overrides, workspace)
                precision = str(component.precision.get("activations", "float32"))
                placement = Placement(self.name, gpu.name, f"cuda:{gpu.index}", precision)
                return TrtSession(opened, workspace, placement)
        except (RuntimeError, ValueError, TypeError, MemoryError) as exc:  # what the library's bindings raise
            workspace.close()
            said = log.first() if log.errors else str(exc)
            raise RuntimeFailure(f"{self.title} does not open {component.name}: {said}", rebuild(component)) from exc
        except BaseException:
            workspace.close()
            raise

    def _opened(
        self,
        component: Component,
        gpu: Gpu,
        options: Options,
        log: Any,
        overrides: Mapping[str, Override],
        workspace: Workspace,
    ) -> Opened:
        """An engine with its weights, on the current GPU."""
        trt, keeps = self.library, kept_as(component)
        engine = load_engine(trt, self.title, component, gpu, log, rebuild(component))
        check_engine(trt, component, engine, plan_weights(component) if keeps == "apart" else {})
        if keeps == "strip" or (keeps == "refit" and overrides):
            refit(trt, engine, component, overrides, self.title, keeps == "strip")
        if options.resident_weights is not None:  # before a context is made, whose memory depends on it
            engine.weight_streaming_budget_v2 = min(options.resident_weights, engine.streamable_weights_size)
        opened = prepared(trt, self.title, component, engine, options, gpu, log)
        if keeps == "apart":
            opened.weights = upload_weights(component, overrides, workspace, self.title)
        return opened

    def _check_options(self, component: Component, options: Options) -> None:
        computed = str(component.precision.get("activations", "float32"))
        if options.precision not in (None, computed):
            raise UsageError(
                f"{component.name} is a plan that computes in {computed}, not in {options.precision}.",
                "Leave the precision out, or compile the artifact in that precision.",
            )
        flags = dict(component.details.get("engine", {})).get("flags", ())
        if options.resident_weights is not None and "WEIGHT_STREAMING" not in flags:
            raise UsageError(
                f"{component.name} is a plan whose weights stay on the GPU: it was built without --weight-streaming.",
                rebuild(component, "--weight-streaming"),
            )

    def _check_build(self, component: Component) -> None:
        needed = re.fullmatch(rf"{re.escape(self.name)}==(\S+)", str(component.requires.get("runtime") or ""))
        if needed and needed[1] != self.version:
            raise DeviceError(
                f"{component.name} is a plan of {self.title} {needed[1]}, which {self.version} does not run; it needs "
                f"{needs(component)}.",
                rebuild(component),
            )
        system = component.requires.get("os")
        if system and system != platform.system():
            raise DeviceError(
                f"{component.name} is a plan for {system}, this is {platform.system()}; it needs {needs(component)}.",
                rebuild(component),
            )

    def _gpu(self, component: Component, device: Device) -> Gpu:
        if device.kind != "cuda":
            raise DeviceError(
                f"{self.title} cannot run {component.name} on {device}: it needs {needs(component)}.",
                f"Give --device cuda, or run the artifact that it was compiled from. {rebuild(component)}",
            )
        try:
            gpus = find_gpus()
        except DeviceError as exc:
            raise DeviceError(
                f"{component.name} needs {needs(component)}. {exc.what}", f"{exc.fix} {rebuild(component)}"
            ) from exc
        gpu = next((g for g in gpus if g.index == (device.index or 0)), None)
        if gpu is None:
            have = ", ".join(f"cuda:{g.index} {g}" for g in gpus)
            raise DeviceError(
                f"There is no {device} here; {self.title} has {have}.", f"Give --device cuda:{gpus[0].index}."
            )
        wanted = component.requires.get("compute_capability")
        if wanted and not fits(gpu.capability, str(wanted)):
            raise DeviceError(
                f"{component.name} needs {needs(component)}; {device} is {gpu}.",
                rebuild(component, capability="{}.{}".format(*gpu.capability)),
            )
        return gpu


def fits(capability: tuple[int, int], wanted: str) -> bool:
    """Whether a GPU of this compute capability is among those `wanted`: "8.6", "8.6,8.9", or "8.0+" for any newer."""
    for part in wanted.split(","):
        match = re.fullmatch(r"\s*(\d+)\.(\d+)(\+?)\s*", part)
        if match is None:
            raise BadArtifact(
                f"The manifest asks for the compute capability {wanted!r}, which is none.",
                "Compile the artifact again.",
            )
        least = int(match[1]), int(match[2])
        if capability == least or (match[3] and capability > least):
            return True
    return False


def needs(component: Component) -> str:
    """The GPU that a plan needs, in words."""
    wanted = str(component.requires.get("compute_capability") or "")
    if not wanted:
        return "an NVIDIA GPU like the one that it was built on"
    return f"an NVIDIA GPU of compute capability {wanted.replace('+', ' or newer').replace(',', ' or ')}"


def rebuild(component: Component, *added: str, capability: str = "") -> str:
    """How to build a plan again, from the artifact that it was compiled from, with the choices that it was built with.

    Args:
        added: choices more. capability: of the GPU that it shall run on, where it was built for named ones.
    """
    arguments = [str(a) for a in component.details.get("arguments", ())]
    if capability and "--compute-capability" in arguments:
        arguments[arguments.index("--compute-capability") + 1] = capability
    recipe = str(component.precision.get("recipe") or "fp32")
    quant = [] if recipe in _FLOATS else ["--quant", recipe]
    command = ["vitrify", "compile", "ARTIFACT", "--to", component.format, *quant, *arguments, *added, "-o", "DIR"]
    return f"To build it again where it will run: {shlex.join(command)}"


def check_changes(component: Component, weights: Mapping[str, PlanWeight], overrides: Mapping[str, Override]) -> None:
    """Refuse changes of a plan that takes none, before a GPU is looked for.

    Raises:
        UsageError: it holds its weights for good.
    """
    if overrides and not weights:
        raise UsageError(
            f"{component.name} is a plan, whose weights cannot be changed.",
            "Run the artifact that it was compiled from, or compile it with --refit (on a GPU) or --apart.",
        )
