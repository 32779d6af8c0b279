"""PyTorch: opens `torch` components, the reference that every artifact is proved against.

The component's graph is the source's config.json and its weights are the source's own safetensors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from ...core.artifact import Component
from ...core.device import Device
from ...core.errors import BadArtifact, BadInput, DeviceError, MissingDependency, RuntimeFailure, VitrifyError
from ...core.tensors import Array, TensorSpec, check_tensors
from ..base import Options, Placement, Probe
from .modules import load

_THREADS = threading.Lock()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch computes on `count` threads while this lasts; the number is the process's, so one at a time sets it."""
    if not count:
        yield
        return
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


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
        try:
            with _threads(self._threads), torch.inference_mode():
                values = self._module(*given)
            return {n: v.cpu().numpy().copy() for n, v in zip(self.outputs, values, strict=True)}
        except Exception as exc:  # a module's own code raises whatever its author chose
            raise RuntimeFailure(f"PyTorch failed in {self._name}: {_first_line(exc)}", "Check the sizes.") from exc

    def close(self) -> None:
        self._module = None


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:300]


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
            BadArtifact: the library does not load the folder, or lacks weights in it.
            BadInput: an override has no weight of its name and shape.
            MissingDependency: diffusers or transformers is missing or broken.
        """
        # "cpu:0" is the CPU and "cuda" the first GPU; their other numbers must be there
        named = str(Device(device.kind, device.index or (0 if device.kind == "cuda" else None), device.detail))
        if named not in self.probe().devices:
            raise DeviceError(
                f"PyTorch {torch.__version__} cannot run on {device} here; it has {', '.join(self.probe().devices)}.",
                "Give --device cpu.",
            )
        try:
            module = load(component.details["kind"], component.graph_path.parent, component.details.get("variant"))
        except VitrifyError:
            raise
        except ImportError as exc:
            raise MissingDependency(
                f"PyTorch components need diffusers and transformers: {_first_line(exc)}.",
                'pip install "vitrify[torch]"',
            ) from exc
        except Exception as exc:  # a damaged folder makes the libraries raise anything
            raise BadArtifact(
                f"{component.graph} does not load: {_first_line(exc)}", "Download the model again."
            ) from exc
        state = dict(module.named_parameters(remove_duplicate=False))
        for name, value in (overrides or {}).items():
            target = state.get(f"module.{name}")
            if target is None:
                raise BadInput(f"Override {name}: the model has no such weight.", "Check its name in the state dict.")
            if tuple(target.shape) != value.shape:
                raise BadInput(
                    f"Override {name} has shape {list(value.shape)}, expected {list(target.shape)}.",
                    "Give the whole changed weight, in the model's own shape.",
                )
            with torch.no_grad():
                target.copy_(torch.from_numpy(np.array(value, order="C")))
        return TorchSession(component, module, torch.device(named), options.threads)


RUNTIME = TorchRuntime()
