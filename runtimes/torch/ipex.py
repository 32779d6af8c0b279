"""Intel Extension for PyTorch: opens `torch` components, with its own kernels for linear layers and convolutions.

It is at its end: 2.8.0 is the last release, it runs with PyTorch 2.8 alone, and what it was for is in PyTorch itself.
So it lives in an environment of its own; docs/ipex.md says what it gains there.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from ...core.artifact import Component
from ...core.device import Device
from ...core.errors import MissingDependency, UsageError
from ...core.machine import installed
from ..base import Options, Probe
from ..low_rank import Override
from . import TorchRuntime, TorchSession
from .modules import quiet_imports

DISTRIBUTION = "intel_extension_for_pytorch"
NOTE = (
    "Intel ended it with 2.8.0. PyTorch itself has what it was for: oneDNN's kernels and inductor on a CPU "
    "(--runtime torch -O compile=regional), and Intel's GPUs (xpu); OpenVINO runs on both (--runtime openvino)."
)
PRECISIONS = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16})
_FIX = 'It needs an environment of its own: pip install "vitrify[ipex]" in a new one.'
# what the library's operators say when they take the place of PyTorch's: a line of the C++ log, and its indented rest
_REPLACED = re.compile(rb"^\[W\S+ \S+ OperatorEntry\.cpp:\d+\] .*\n(?:^ .*\n)*", flags=re.M)
_LOGGERS = ("IPEX", "torch.utils.cpp_extension")


def _check_versions() -> None:
    """The library asks for the PyTorch of its own number, and where it meets another one it fails over its own error.

    It also imports classes that transformers 5 no longer has, whatever it is used for.

    Raises:
        MissingDependency: it is not installed, or one of the two is another version.
    """
    version = installed(DISTRIBUTION)
    if version is None:
        raise MissingDependency("The ipex runtime needs intel_extension_for_pytorch, which is not installed.", _FIX)
    wanted = ".".join(version.split(".")[:2])
    if not torch.__version__.startswith(f"{wanted}."):
        raise MissingDependency(
            f"intel_extension_for_pytorch {version} runs with PyTorch {wanted} alone; this is {torch.__version__}.",
            _FIX,
        )
    transformers = installed("transformers")
    if transformers is not None and int(transformers.partition(".")[0]) >= 5:
        raise MissingDependency(
            f"intel_extension_for_pytorch {version} does not import beside transformers {transformers}; 4 is needed.",
            _FIX,
        )


@contextmanager
def _without_replaced() -> Iterator[None]:
    """Of what is written to the process's stderr meanwhile, the library's replaced operators are left out.

    The C++ log is no stream of Python's: what is written while this lasts comes at its end.
    """
    sys.stderr.flush()
    try:
        before = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    try:
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(before, 2)
                said.seek(0)
                if rest := _REPLACED.sub(b"", said.read()):
                    os.write(2, rest)
    finally:
        os.close(before)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Logging stays the process's own: at import the library sets a class for all loggers, and a handler for the root.

    Of loggers that are made meanwhile, the library's class stays.
    """
    root, kind = logging.getLogger(), logging.getLoggerClass()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.setLoggerClass(kind)
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)


def _import() -> Any:
    _check_versions()
    with _without_replaced(), _own_logging(), quiet_imports(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own code, which nobody mends any more
        import intel_extension_for_pytorch

    return intel_extension_for_pytorch


ipex = _import()


class InBfloat16(torch.nn.Module):
    """Calls a module whose layers are in bfloat16 with float32 tensors, and gives float32 again."""

    def __init__(self, module: torch.nn.Module, kind: str) -> None:
        super().__init__()
        self.optimized, self._kind = module, kind

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(self._kind, torch.bfloat16):
            values = self.optimized(*given)
        return tuple(v.float() if v.is_floating_point() else v for v in values)


def _drop_unused(module: torch.nn.Module) -> None:
    """Take out convolutions that were given no weight, since the component does not use them: the library reads all."""
    for name, part in list(module.named_modules()):
        if isinstance(part, torch.nn.modules.conv._ConvNd) and part.weight is None:
            module.set_submodule(name, torch.nn.Identity())


class IpexRuntime(TorchRuntime):
    """The adapter."""

    name = "ipex"
    takes = ()

    def probe(self) -> Probe:
        devices = ("cpu", *(f"xpu:{i}" for i in range(torch.xpu.device_count())))
        details = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "isa": str(ipex._C._get_current_isa_level()),
            "note": NOTE,
        }
        return Probe(self.name, str(installed(DISTRIBUTION)), devices, details)

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> TorchSession:
        """Load the module, change its weights, and let the library rewrite its layers.

        Raises:
            UsageError: the weights are quantized, or the processor does not compute in the precision.
            VitrifyError: as `TorchRuntime.open`.
        """
        stored = str(component.precision.get("weights", "float32"))
        if component.precision.get("layers", 0):
            raise UsageError(
                f"IPEX computes with float weights, and those of {component.name} are in {stored}.",
                "Run it with --runtime torch.",
            )
        precision = options.precision or "float32"
        if precision not in PRECISIONS:
            raise UsageError(
                f"IPEX computes in {' or '.join(PRECISIONS)}, not in {precision}.", "Give one of them, or none."
            )
        if precision == "bfloat16" and device.kind == "cpu" and not ipex._C.onednn_has_bf16_support():
            raise UsageError(
                f"This processor ({ipex._C._get_current_isa_level()}) does not compute in bfloat16.",
                "Leave the precision out.",
            )
        return super().open(component, device, replace(options, precision=precision), overrides)

    def prepared(self, module: torch.nn.Module, options: Options, place: torch.device) -> tuple[torch.nn.Module, str]:
        """The module with the library's layers in place of PyTorch's; hooks stay with their layers."""
        _drop_unused(module)
        dtype = PRECISIONS[options.precision or "float32"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = ipex.optimize(
                module.eval(),
                dtype=dtype,
                inplace=True,
                weights_prepack=options.prepack and place.type == "cpu",
                # it traces the module, which bakes the sizes of a call in; diffusion models have no BatchNorm to fold
                conv_bn_folding=False,
                linear_bn_folding=False,
            )
        return (made if dtype is torch.float32 else InBfloat16(made, place.type)), "ipex"


RUNTIME = IpexRuntime()
