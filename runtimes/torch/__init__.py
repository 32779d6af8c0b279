"""PyTorch: opens `torch` components, the reference that every artifact is proved against.

The component's graph is the source's config.json and its weights are the source's own safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...core.artifact import Component
from ...core.device import Device
from ...core.errors import BadArtifact, DeviceError, RuntimeFailure
from ...core.tensors import Array, TensorSpec, check_tensors
from ..base import Options, Placement, Probe
from .modules import load


class TorchSession:
    """The library's module behind the contract, in float32."""

    def __init__(self, component: Component, module: torch.nn.Module, device: torch.device, threads: int) -> None:
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = component.outputs
        self.placement = Placement("torch", "eager", str(device), "float32")
        self._name = component.name
        self._module: torch.nn.Module | None = module.to(device)
        self._device = device
        self._threads = threads

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        check_tensors(self.inputs, tensors)
        if self._module is None:
            raise RuntimeFailure(f"The session of {self._name} is closed.", "Open it again.")
        given = [torch.from_numpy(np.array(tensors[n], order="C")).to(self._device) for n in self.inputs]
        before = torch.get_num_threads()
        if self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                values = self._module(*given)
        except (RuntimeError, ValueError, IndexError) as exc:
            text = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise RuntimeFailure(f"PyTorch failed in {self._name}: {text}", "Check the sizes.") from exc
        finally:
            torch.set_num_threads(before)
        return {n: v.cpu().numpy().copy() for n, v in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        self._module = None


class TorchRuntime:
    """The adapter."""

    name = "torch"

    def probe(self) -> Probe:
        devices = ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))
        return Probe(self.name, torch.__version__, devices, {"threads": torch.get_num_threads()})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Array] | None = None,
    ) -> TorchSession:
        """Load the module and its weights.

        Raises:
            DeviceError: no such device here.
            BadArtifact: the library does not load the folder, or an override has no owner or another shape.
        """
        if str(device) not in self.probe().devices and not (device.kind == "cuda" and torch.cuda.is_available()):
            raise DeviceError(
                f"PyTorch {torch.__version__} cannot run on {device} here; it has {', '.join(self.probe().devices)}.",
                "Give --device cpu.",
            )
        try:
            module = load(component.details["kind"], component.graph_path.parent, component.details.get("variant"))
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as exc:
            text = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise BadArtifact(f"{component.graph} does not load: {text}", "Download the model again.") from exc
        state = dict(module.named_parameters())
        for name, value in (overrides or {}).items():
            target = state.get(f"module.{name}")
            if target is None or tuple(target.shape) != value.shape:
                have = "no weight" if target is None else f"shape {list(target.shape)}"
                raise BadArtifact(f"Override {name}: {have} there, given {list(value.shape)}.", "Check its name.")
            with torch.no_grad():
                target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return TorchSession(component, module, torch.device(str(device)), options.threads)


RUNTIME = TorchRuntime()
