"""torch.compile around a module: whole, or the blocks that it repeats, each kind of them once.

Sizes stay open, so one compilation serves every size; but the compiler always sets a batch of 1 apart. What the first
call of a kind costs is paid when the component is opened, with the sizes of its proof.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...core.artifact import Component, hash_file
from ...core.cache import key_of
from ...core.errors import UsageError
from ..base import Options
from .inductor import compiling, keep, work_folder
from .session import Tensors, TorchSession

MODES = ("regional", "whole")
Kind = tuple[Any, ...]


def check_mode(asked: str | None) -> None:
    """Raises:
    UsageError: there is no such way to compile.
    """
    if asked is not None and asked not in MODES:
        raise UsageError(f"compile is {asked!r}.", f"Give compile={' or compile='.join(MODES)}.")


class Compiled:
    """A module that is compiled when it is called with tensors of sizes that are new; the caller holds `PROCESS`.

    details: compile (regional or whole), compiled (what is), compile_s (seconds that calls took in which something was
        compiled), graphs, breaks (where Python ran between two graphs), cache: "miss", "part" or "hit" of the cache on
        disk, or "process" where this process had compiled all of it before; not_kept: why nothing went into it.
    """

    def __init__(self, module: torch.nn.Module, component: Component, options: Options, place: torch.device) -> None:
        self._call, what = _arranged(module, str(options.compile))
        self._component, self._seen = component, set[Kind]()
        self._key = key_of(_identity(component, options, place))
        self._found = Counter[str]()
        self.details: dict[str, Any] = {"compile": options.compile, "compiled": what}
        self.details |= {"compile_s": 0.0, "graphs": 0, "breaks": 0, "cache": "process"}

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        kind = tuple(t.shape for t in tensors)
        if kind not in self._seen:
            return self._first(kind, tensors)
        values: Tensors = self._call(*tensors)
        return values

    def warm(self, session: TorchSession) -> None:
        """Compile for a batch as the manifest expects it; without sizes in it, the first call does."""
        sizes = _usual(self._component)
        if sizes is None:
            return
        shapes = {n: [sizes[d] if isinstance(d, str) else d for d in s.shape] for n, s in session.inputs.items()}
        session.run({n: np.zeros(shape, session.inputs[n].dtype.value) for n, shape in shapes.items()})

    def _first(self, kind: Kind, tensors: Tensors) -> Tensors:
        with work_folder(self._key) as folder:
            before, start = _counted(), time.perf_counter()
            with compiling(folder):
                values: Tensors = self._call(*tensors)
            took, made = time.perf_counter() - start, _counted() - before
            if made["graphs"]:
                self._note(took, made)
            if made["misses"]:
                why = keep(folder, self._key)
                self.details |= {"not_kept": why} if why else {}
        self._seen.add(kind)
        return values

    def _note(self, took: float, made: Counter[str]) -> None:
        self._found += made
        misses, hits = self._found["misses"], self._found["hits"]
        self.details["compile_s"] = round(self.details["compile_s"] + took, 3)
        self.details["graphs"] += made["graphs"]
        self.details["breaks"] += made["breaks"]
        self.details["cache"] = "hit" if not misses else "part" if hits else "miss"


def _counted() -> Counter[str]:
    """What the process has compiled so far."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return Counter(
        graphs=counters["stats"]["unique_graphs"],
        breaks=sum(counters["graph_break"].values()),
        hits=found["fxgraph_cache_hit"],
        misses=found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"],
    )


def _arranged(module: torch.nn.Module, mode: str) -> tuple[Any, str]:
    """What is called, and in words what of it is compiled."""
    blocks = list(repeated_blocks(module)) if mode == "regional" else []
    if not blocks:
        return torch.compile(module, dynamic=True), "whole"
    for block in blocks:
        block.compile(dynamic=True)
    kinds = Counter(type(block).__name__ for block in blocks)
    return module, ", ".join(f"{count} {name}" for name, count in kinds.items())


def repeated_blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The blocks that diffusers says a model repeats; else those of its lists that have the class and sizes of another.

    Of blocks in each other, the outermost.
    """
    named = {name for m in module.modules() for name in getattr(m, "_repeated_blocks", None) or ()}
    if any(type(m).__name__ in named for m in module.modules()):
        yield from _outermost(module, lambda m: type(m).__name__ in named)
        return
    listed = [child for m in module.modules() if isinstance(m, torch.nn.ModuleList) for child in m]
    often = {shape for shape, count in Counter(map(_shape, listed)).items() if count > 1}
    members = {id(child) for child in listed if _shape(child) in often and any(True for _ in child.parameters())}
    yield from _outermost(module, lambda m: id(m) in members)


def _outermost(module: torch.nn.Module, wanted: Any) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if wanted(child):
            yield child
        else:
            yield from _outermost(child, wanted)


def _shape(module: torch.nn.Module) -> tuple[Any, ...]:
    return type(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _usual(component: Component) -> dict[str, int] | None:
    """The sizes of a proof that have a 1 where the manifest's usual ones have it."""
    checks: list[dict[str, int]] = component.details.get("checks") or []
    usual = {name: sizes[1] for name, sizes in component.shapes.items()}
    for check in checks:
        if all((size == 1) == (usual.get(name, size) == 1) for name, size in check.items()):
            return check
    return checks[-1] if checks else None


def _identity(component: Component, options: Options, place: torch.device) -> list[Any]:
    """What decides which code is made: the architecture, how it computes, and for what. Weights do not."""
    names = {"cpu": torch.backends.cpu.get_cpu_capability, "cuda": lambda: torch.cuda.get_device_name(place)}
    name = names.get(place.type, str)()
    how = [options.compile, options.precision, options.channels_last, options.attention]
    stored = [component.precision.get("recipe"), component.precision.get("layers", 0)]
    kind = component.details.get("kind")
    return [torch.__version__, kind, hash_file(component.graph_path), stored, how, place.type, name]
