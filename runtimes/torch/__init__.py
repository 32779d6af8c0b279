"""PyTorch: opens `torch` components, the reference that every artifact is proved against and what `compile` writes.

The component's graph is a config.json. A reference names no files of weights: the libraries load the source's own
safetensors. A compiled component names its file, whose layers may be quantized.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ...core.artifact import Component
from ...core.device import Device
from ...core.errors import BadArtifact, BadInput, DeviceError, MissingDependency, RuntimeFailure, VitrifyError
from ...core.json_file import read_json_object
from ...core.tensors import Array, TensorSpec, check_tensors
from ..base import Options, Placement, Probe
from ..low_rank import LowRank, Override, no_weight, wrong_shape
from .branches import add_branches
from .modules import load
from .quantized import load_stored
from .single_file import load_single_file

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
    """The library's module behind the contract: it computes in float32, also over quantized weights."""

    def __init__(
        self, component: Component, module: torch.nn.Module, device: torch.device, threads: int, precision: str
    ) -> None:
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = component.outputs
        self.placement = Placement("torch", "eager", str(device), precision)
        self._name = component.name
        self._module: torch.nn.Module | None = module
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
    formats = ("torch",)

    def probe(self) -> Probe:
        devices = ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))
        return Probe(self.name, torch.__version__, devices, {"threads": torch.get_num_threads()})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> TorchSession:
        """Load the module and its weights.

        Raises:
            DeviceError: no such device here.
            BadArtifact: the library does not load the folder, or lacks weights in it.
            BadInput: an override has no weight of its name and shape, or replaces one that is quantized.
            MissingDependency: diffusers, transformers or the library of the weights' precision is missing or broken.
        """
        # "cpu:0" is the CPU and "cuda" the first GPU; their other numbers must be there
        named = str(Device(device.kind, device.index or (0 if device.kind == "cuda" else None), device.detail))
        if named not in self.probe().devices:
            raise DeviceError(
                f"PyTorch {torch.__version__} cannot run on {device} here; it has {', '.join(self.probe().devices)}.",
                "Give --device cpu.",
            )
        place = torch.device(named)
        module, stored = _load(component, place)
        _override(module, stored, overrides or {}, place)
        kinds = "".join(f" over {kind}" for kind in [" and ".join(sorted(set(stored.values())))] if kind)
        return TorchSession(component, module, place, options.threads, f"float32{kinds}")


def _load(component: Component, device: torch.device) -> tuple[torch.nn.Module, dict[str, str]]:
    """The wrapped module on `device`, and what each of its quantized layers is stored in."""
    try:
        if component.weights:
            return load_stored(component, device)
        kind, path, file = component.details["kind"], component.graph_path, component.details.get("single_file")
        if file is not None:
            module = load_single_file(kind, Path(file), path, read_json_object(path))
        else:
            module = load(kind, path.parent, component.details.get("variant"))
        return module.to(device), {}
    except VitrifyError:
        raise
    except ImportError as exc:
        raise MissingDependency(
            f"PyTorch components need diffusers and transformers: {_first_line(exc)}.",
            'pip install "vitrify[torch]"',
        ) from exc
    except Exception as exc:  # a damaged folder makes the libraries raise anything
        raise BadArtifact(f"{component.graph} does not load: {_first_line(exc)}", "Download the model again.") from exc


def _override(
    module: torch.nn.Module, stored: Mapping[str, str], changed: Mapping[str, Override], device: torch.device
) -> None:
    """Put changed weights in place, and branches beside layers; `stored` names those that take branches alone."""
    state = dict(module.named_parameters(remove_duplicate=False))
    branches: dict[str, LowRank] = {}
    for name, value in changed.items():
        if isinstance(value, LowRank):
            branches[name] = value
            continue
        kind = stored.get(name.removesuffix(".weight"))
        if kind is not None and name.endswith(".weight"):
            raise BadInput(
                f"Override {name}: the weight is stored in {kind}, which takes no changed weight.",
                "Give a low-rank change, or keep that layer when you compile (--quant RECIPE:keep=NAME).",
            )
        target = state.get(f"module.{name}")
        if target is None:
            raise no_weight(name, "the model")
        if tuple(target.shape) != value.shape:
            raise wrong_shape(name, value.shape, target.shape)
        with torch.no_grad():
            target.copy_(torch.from_numpy(np.array(value, order="C")))
    add_branches(module, branches, device)


RUNTIME = TorchRuntime()
