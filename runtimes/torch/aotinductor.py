"""Packages of AOTInductor: PyTorch's compiler run ahead of time, opened with PyTorch alone.

A package holds native code, which runs with the user's rights when it is opened: so its hash is held against the
manifest's at every opening. The weights lie beside it and are mapped from their files, not copied.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ...core.artifact import Component, hash_file
from ...core.device import Device
from ...core.errors import BadArtifact, DeviceError, first_line
from ...core.machine import cpu_info
from ...core.tensors import Array
from ..base import Options, Placement, Probe
from ..low_rank import Override, no_weight, only_whole, wrong_shape
from . import devices
from .session import Tensors, TorchSession

PREFIX = "module."  # of the state dict's names in a package: the wrapper holds the library's module under this name
_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # of x86, each with the one before it
_LEVELS = {"avx2": "AVX2", "avx512": "AVX512"}


class AotInductorRuntime:
    """The adapter."""

    name = "aotinductor"
    formats = ("aotinductor",)
    takes: tuple[str, ...] = ()

    def probe(self) -> Probe:
        return Probe(self.name, torch.__version__, ("cpu",), {"cpu": torch.backends.cpu.get_cpu_capability()})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> TorchSession:
        """Check the package, load its code, and give it the weights.

        Raises:
            DeviceError: not the CPU, or a package for another PyTorch, system or processor.
            BadArtifact: the package is not the file that the manifest names, or a weight is missing or damaged.
            BadInput: an override has no weight of its name and shape.
            UsageError: an override is a branch beside a layer.
        """
        listed, place = devices.find(device, self.probe().devices)
        check_fits(component)
        _check_hash(component)
        changed = only_whole(overrides or {}, "AOTInductor")
        with _quiet():
            try:
                loader = torch._inductor.aoti_load_package(str(component.graph_path)).loader
                wanted = loader.get_constant_fqns()
            except Exception as exc:  # RuntimeError mostly; a package is a zip of native code
                raise BadArtifact(
                    f"{component.graph} does not load: {first_line(exc)}", "Compile the model again."
                ) from exc
            constants = _constants(component, wanted, changed)
            try:
                loader.load_constants(constants, False, True, True)
            except Exception as exc:
                raise BadArtifact(
                    f"{component.graph} does not take its weights: {first_line(exc)}", "Compile the model again."
                ) from exc

        placement = Placement(self.name, "inductor", str(listed), "float32")
        return TorchSession(component, _Package(loader, constants), place, placement, threads=options.threads)


class _Package:
    """A loaded package; it keeps the constants, of which the loader has pointers alone."""

    def __init__(self, loader: Any, constants: dict[str, torch.Tensor]) -> None:
        self._loader, self._constants = loader, constants

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        return tuple(self._loader.run([t.contiguous() for t in tensors]))


def requirements() -> dict[str, Any]:
    """What a package that is compiled here needs, for a manifest."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return {
        "runtime": f"torch=={_version()}",
        "os": platform.system(),
        "machine": platform.machine(),
        "instructions": str(pick_vec_isa()).split(),  # such as avx512 avx512_vnni
        "compute_capability": None,
    }


def check_fits(component: Component) -> None:
    """Refuse a package that was compiled for other than what is here: it would crash, or compute nonsense.

    Raises:
        DeviceError: says what it needs, what is here, and how to compile it again.
    """
    needs = component.requires
    here = {"runtime": f"torch=={_version()}", "os": platform.system(), "machine": platform.machine()}
    for key, has in here.items():
        if needs.get(key) != has:
            raise _unfit(component, str(needs.get(key)), has)
    lacks = [name for name in needs.get("instructions", []) if not _has(str(name))]
    if lacks:
        raise _unfit(component, f"a processor with {' and '.join(lacks)}", torch.backends.cpu.get_cpu_capability())


def _unfit(component: Component, needs: str, has: str) -> DeviceError:
    return DeviceError(
        f"{component.graph} was compiled for {needs}; here is {has}.",
        "Compile it again where it shall run: vitrify compile SOURCE --to aotinductor -o DIR.",
    )


def _version() -> str:
    """PyTorch's version without its build, such as +cpu, which decides no interface that a package uses."""
    return torch.__version__.partition("+")[0]


def _has(instructions: str) -> bool:
    level = _LEVELS.get(instructions)
    if level is not None:
        has = torch.backends.cpu.get_cpu_capability()
        return has in _CAPABILITIES and _CAPABILITIES.index(has) >= _CAPABILITIES.index(level)
    return any(instructions in value.split() for key, value in cpu_info() if key in ("flags", "Features"))


def _check_hash(component: Component) -> None:
    recorded = {w.path: w.sha256 for w in component.weights}.get(component.graph)
    if recorded is None:
        raise BadArtifact(
            f"The manifest holds no sha256 of {component.graph}, which is native code.", "Do not use this artifact."
        )
    try:
        found = hash_file(component.graph_path)
    except OSError as exc:
        raise BadArtifact(f"{component.graph_path} cannot be read: {exc}.", "Copy the whole folder again.") from exc
    if found != recorded:
        raise BadArtifact(
            f"{component.graph} is not the file that was built: its sha256 differs from the manifest's.",
            "It holds native code: do not use it. Copy it again, or compile the model again.",
        )


def _constants(component: Component, wanted: list[str], changed: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Constant's name in the package -> its tensor in float32, mapped from its file where it is stored so."""
    stored, names = _stored(component), component.details.get("constants", {})
    found: dict[str, torch.Tensor] = {}
    used = set()
    for constant in wanted:
        name = names.get(constant, constant if constant in stored else constant.removeprefix(PREFIX))
        tensor = stored.get(name)
        if tensor is None:
            raise BadArtifact(f"The weights of {component.name} lack {name}.", "Copy the whole folder again.")
        if name in changed:
            used.add(name)
            value = changed[name]
            if value.shape != tuple(tensor.shape):
                raise wrong_shape(name, value.shape, tensor.shape)
            tensor = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
        found[constant] = tensor.float() if tensor.is_floating_point() else tensor
    for name in changed:
        if name not in used:
            raise no_weight(name, "the model")
    return found


def _stored(component: Component) -> dict[str, torch.Tensor]:
    """Name -> tensor of all files beside the package.

    Raises:
        BadArtifact: a file is missing or damaged.
    """
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for weight in component.weights:
        if weight.path == component.graph:
            continue
        try:
            with safe_open(component.root / weight.path, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        except Exception as exc:  # SafetensorError, OSError
            raise BadArtifact(f"{weight.path} does not load: {first_line(exc)}", "Copy the file again.") from exc
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """The library warns of its own names that it is about to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


RUNTIME = AotInductorRuntime()
