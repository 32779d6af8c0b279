"""An ONNX component -> a package of AOTInductor: native code for this processor, its weights beside it.

The library's module is traced with every size open and compiled without looking at its weights: their memory is
reserved and never touched. So one package serves every checkpoint of an architecture, and it is kept in the cache.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.artifact import NOT_RUN, Component, WeightFile, hash_file
from ..core.cache import Cache, key_of
from ..core.errors import BadInput, MissingDependency, UsageError, VitrifyError
from ..core.json_file import read_json_object
from ..core.progress import Event, Report, silent
from ..core.publish import disk_errors, link_or_copy, write_whole
from ..core.registry import load_runtime
from ..core.tensors import DType
from .binding import COMPUTED
from .graph import is_variadic, quiet
from .libraries import library_that_failed
from .torch_target import float_weights, source_of

if TYPE_CHECKING:
    import torch

FORMAT = "aotinductor"
PACKAGE, CONSTANTS = "model.pt2", "constants.safetensors"
_FIRST = "2.13"  # PyTorch's version from which a package can be compiled for more than this very processor
_DOUBLINGS = 5
_FORM = 2  # raise the number when packages are made in another way than before
# what a config says of its checkpoint and of who wrote it: the code is the same
_SAYS_NOTHING = ("dtype", "torch_dtype", "transformers_version", "_diffusers_version", "_name_or_path")


def write_package(component: Component, root: Path, *, report: Report = silent) -> Component:
    """Write `component` below `root` as a package with its weights, for the processor of this machine.

    Args:
        component: format onnx, in float, as `vitrify export` writes it.
        root: the new artifact's folder.

    Returns:
        The component there: its files of weights are the package, what the module computes by itself, and the weights.

    Raises:
        BadInput: quantized weights, no config.json that fits the graph, or a module that cannot be traced or compiled.
        MissingDependency: PyTorch, a version of it that can, or a C++ compiler is missing.
        DiskError: the disk is full.
    """
    load_runtime("torch")  # says what is missing
    source = source_of(component)
    files, proof = float_weights(component, source, root, report)
    needs = _requirements()
    made = _package(component, source.config, needs, report)
    place = root / source.place
    for name in (PACKAGE, CONSTANTS):
        if (made / name).is_file():
            link_or_copy(made / name, place / name)
    tied = read_json_object(made / "names.json")
    names = {constant: next(n for n in group if n in source.weights) for constant, group in tied.items()}
    own = [f"{source.place}{name}" for name in (PACKAGE, CONSTANTS) if (place / name).is_file()]
    files = (*(WeightFile(p, (root / p).stat().st_size, hash_file(root / p)) for p in own), *files)
    return replace(
        component,
        format=FORMAT,
        graph=f"{source.place}{PACKAGE}",
        weights=files,
        requires=needs,
        proof={"graph": NOT_RUN, "weights": proof or component.proof.get("weights", NOT_RUN), "numeric": NOT_RUN},
        details=component.details | ({"constants": names} if names else {}),
        root=root,
    )


def _requirements() -> dict[str, Any]:
    from torch._inductor import config

    from ..runtimes.torch.aotinductor import requirements

    if not hasattr(config.cpp, "march"):
        raise MissingDependency(
            f"PyTorch compiles packages for a kind of processor from {_FIRST} on.", f'pip install "torch>={_FIRST}"'
        )
    return requirements()


def _package(component: Component, config: dict[str, Any], needs: dict[str, Any], report: Report) -> Path:
    """The cache's folder with the package, compiled now where it is not there.

    Raises:
        BadInput: it cannot be traced or compiled.
    """
    cache = Cache()
    inputs = [spec.to_json(name) for name, spec in component.inputs.items()]
    said = {name: value for name, value in config.items() if name not in _SAYS_NOTHING}
    key = key_of([_FORM, component.details["kind"], said, inputs, needs])
    found = cache.get(FORMAT, key)
    if found is None:
        report(Event(f"compile {component.name}", note=f"{component.name}: compiling, which takes minutes"))
        with cache.put(FORMAT, key) as folder:
            _compile(component, config, folder)
        found = cache.get(FORMAT, key)
    else:
        report(Event(f"compile {component.name}", note=f"{component.name}: its package is in the cache"))
    if found is None:
        raise BadInput(
            "The cache is too small to hold the package, or another process compiles the same.",
            "Raise VITRIFY_CACHE_MAX, or run it again.",
        )
    return found


def _compile(component: Component, config: dict[str, Any], folder: Path) -> None:
    import torch
    from safetensors.torch import save

    from ..runtimes.torch.inductor import SETTINGS, compiling

    with tempfile.TemporaryDirectory(prefix=".inductor-", dir=folder) as work, quiet(), disk_errors(folder):
        try:
            module = _reserved(component.details["kind"], config)
            with compiling(Path(work)):
                program = _traced(module, component)
                settings = {
                    **SETTINGS,
                    "aot_inductor.package_constants_in_so": False,
                    # small ones would else be written into the code, with whatever they hold now
                    "always_keep_tensor_constants": True,
                    # sizes are traced from 2 on, for 1 is always set apart; what is computed is the same
                    "aot_inductor.check_lowerbound": False,
                    # the instructions that `requires` names, and none that only this very processor has
                    "cpp.march": "",
                }
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(folder / PACKAGE), inductor_configs=settings
                )
            wanted = torch._inductor.aoti_load_package(str(folder / PACKAGE)).get_constant_fqns()
        except (VitrifyError, OSError):
            raise
        except Exception as exc:  # the compiler raises whatever a part of it does
            if library_that_failed(exc):
                raise
            if os.strerror(errno.ENOSPC) in str(exc):  # a C++ compiler's words
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from exc
            raise BadInput(
                f"{component.name} could not be compiled: {type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}",
                "Compile it for another runtime, or run it with --runtime torch.",
            ) from exc
    names, computed = _owners(module, program.constants, wanted)
    with disk_errors(folder):
        if computed:
            write_whole(folder / CONSTANTS, save({name: value.contiguous() for name, value in computed.items()}))
        write_whole(folder / "names.json", json.dumps(names))


def _reserved(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """The wrapped module; its parameters have memory that nobody has written to, so the system gave none."""
    import torch

    from ..runtimes.torch.modules import build_empty

    module = build_empty(kind, config)
    made: dict[int, torch.nn.Parameter] = {}  # a parameter that is tied to another stays the same one
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        path, _, leaf = name.rpartition(".")
        if id(parameter) not in made:
            empty = torch.empty(parameter.shape, dtype=torch.float32)
            made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
        module.get_submodule(path)._parameters[leaf] = made[id(parameter)]
    return module


def _traced(module: torch.nn.Module, component: Component) -> Any:
    """The program of the module, with every size that the manifest names left open.

    Where a picture is halved until a side is 1, PyTorch takes that 1 for granted, and with it the side that was traced
    with: such sizes are doubled.

    Raises:
        BadInput: a size stays fixed.
    """
    sizes = _example(component)
    for _ in range(_DOUBLINGS):
        program = _program(module, component, sizes)
        fixed = _fixed(program, component)
        if not fixed:
            return program
        for name in fixed:
            sizes[name] *= 2
            while list(sizes.values()).count(sizes[name]) > 1:  # sizes that are alike would be taken for one
                sizes[name] *= 2
    raise BadInput(
        f"PyTorch fixes the {' and '.join(sorted(fixed))} of {component.name}.", "Compile it --to onnx or openvino."
    )


def _fixed(program: Any, component: Component) -> set[str]:
    """Names of the sizes that the program takes for granted."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [nodes[name].meta["val"].shape for name in program.graph_signature.user_inputs]
    pairs = (
        (wanted, got)
        for spec, shape in zip(component.inputs.values(), shapes, strict=True)
        for wanted, got in zip(spec.shape, shape, strict=True)
    )
    # one that was found to be fixed later is still a symbolic integer, of which nothing is open
    return {wanted for wanted, got in pairs if isinstance(wanted, str) and not _open(got)}


def _open(size: Any) -> bool:
    return not isinstance(size, int) and not size.node.expr.is_number


def _program(module: torch.nn.Module, component: Component, sizes: dict[str, int]) -> Any:
    import torch

    arguments = []
    for spec in component.inputs.values():
        shape = [sizes[d] if isinstance(d, str) else d for d in spec.shape]
        dtype = torch.int64 if spec.dtype is DType.INT64 else torch.float32
        arguments.append(torch.ones(shape, dtype=dtype))
    dynamic: Any = tuple(
        {i: torch.export.Dim.AUTO for i, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in component.inputs.values()
    )
    if is_variadic(module):  # torch nests what is given to *tensors
        dynamic = (dynamic,)
    with torch.no_grad():
        return torch.export.export(module, tuple(arguments), dynamic_shapes=dynamic, strict=False)


def _example(component: Component) -> dict[str, int]:
    """Sizes to trace with: of the proof's, those without a 1, no two alike."""
    checks = component.details.get("checks") or []
    for check in checks:
        if 1 not in check.values():
            return dict(check)
    raise UsageError(f"{component.name} names no sizes of 2 and more to trace it with.", "Export the model again.")


def _owners(
    module: torch.nn.Module, constants: dict[str, Any], wanted: list[str]
) -> tuple[dict[str, list[str]], dict[str, torch.Tensor]]:
    """Where each constant of the package comes from.

    Returns:
        Of constants that are tied to others: the names that a file of weights may hold them by. And the constants that
        no file holds, for the module computes them.
    """
    import torch

    from ..runtimes.torch.aotinductor import PREFIX

    saved = {name for name in module.state_dict() if not COMPUTED.search(name)}
    buffers, computed = dict(module.named_buffers()), dict[str, torch.Tensor]()
    for constant in wanted:
        if constant in saved:
            continue
        value = buffers.get(constant, constants.get(constant))
        if not isinstance(value, torch.Tensor):
            raise BadInput(f"The package wants {constant}, which the module does not have.", "Report its config.json.")
        computed[constant] = value.detach().clone()
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    tied = [names for names in groups.values() if len(names) > 1]
    return {
        name: [n.removeprefix(PREFIX) for n in names] for names in tied for name in names if name in wanted
    }, computed
