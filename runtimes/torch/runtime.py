"""The adapter of `torch` components: a module with its weights, on a device, in a precision, eager or compiled.

The component's graph is a config.json. A reference names no files of weights: the libraries load the source's own
safetensors. A compiled component names its file, whose layers may be quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...core.artifact import Component
from ...core.device import Device
from ...core.errors import BadArtifact, BadInput, MissingDependency, VitrifyError, first_line
from ...core.json_file import read_json_object
from ..base import Options, Placement, Probe
from ..low_rank import LowRank, Override, no_weight, wrong_shape
from . import devices
from .branches import add_branches
from .compiled import Compiled, check_mode
from .computing import in_channels_last, in_precision, kernel_of, precision_of, told
from .modules import load
from .quantized import load_stored
from .session import TorchSession
from .single_file import load_single_file


class TorchRuntime:
    """The adapter. One for a library that rewrites PyTorch's modules overrides `prepared`."""

    name = "torch"
    formats: tuple[str, ...] = ("torch",)
    takes: tuple[str, ...] = ("compile", "attention", "channels_last")

    def probe(self) -> Probe:
        return Probe(self.name, torch.__version__, tuple(devices.names()), devices.details())

    def prepared(self, module: torch.nn.Module, options: Options, place: torch.device) -> tuple[torch.nn.Module, str]:
        """What a session calls: the module in the precision and order of memory that the options name.

        Args:
            module: the wrapper, on `place`, in float32, its weights changed already. It may be changed in place.
            options: `precision` is settled: never None.

        Returns:
            The module, called with the same float32 tensors, and the provider's name for the placement.
        """
        if options.channels_last:
            module = in_channels_last(module)
        return in_precision(module, options.precision or "float32"), "eager"

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> TorchSession:
        """Load the module and its weights, and compile it where the options say so.

        Raises:
            DeviceError: no such device here, or it does not have the precision or the attention.
            UsageError: no such precision, attention or way to compile, or a precision for quantized weights.
            BadArtifact: the library does not load the folder, or lacks weights in it.
            BadInput: an override has no weight of its name and shape, or replaces one that is quantized.
            MissingDependency: diffusers, transformers, the library of the weights' precision, or a compiler is missing.
        """
        listed, place = devices.find(device, self.probe().devices)
        check_mode(options.compile)
        precision = precision_of(component, options.precision, place)
        around = kernel_of(options.attention, precision, place)
        module, stored = _load(component, place)
        _override(module, stored, overrides or {}, place)
        made, provider = self.prepared(module, replace(options, precision=precision), place)
        call: torch.nn.Module | Compiled = made
        if options.compile is not None:
            call, provider = Compiled(made, component, options, place), "inductor"
        placement = Placement(self.name, provider, str(listed), told(precision, stored))
        threads = options.threads
        if options.compile is not None or options.attention is not None:
            threads = threads or torch.get_num_threads()  # what the process holds alone, one call at a time sets
        session = TorchSession(component, call, place, placement, threads=threads, around=around)
        if isinstance(call, Compiled):
            session.details = call.details
            call.warm(session)
        return session


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
            f"PyTorch components need diffusers and transformers: {first_line(exc)}.", 'pip install "vitrify[torch]"'
        ) from exc
    except Exception as exc:  # a damaged folder makes the libraries raise anything
        raise BadArtifact(f"{component.graph} does not load: {first_line(exc)}", "Download the model again.") from exc


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
